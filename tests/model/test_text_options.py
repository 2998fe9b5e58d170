"""How a model wants its texts travels with the tokenizer: saved apart, through pipelines, in copies and in threads."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, PreTrainedTokenizerFast, pipeline

from hf_clip import (
    HFCLIPConfig,
    HFCLIPImageProcessor,
    HFCLIPModel,
    HFCLIPProcessor,
    HFCLIPSiglipConfig,
    HFCLIPSiglipModel,
    HFCLIPTokenizer,
)
from tests.helpers.counts import soak_count

CAPTIONS = ["a red cat", "a blue dog", "a green fish"]
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
IMAGES = HFCLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


def clip_tokenizer(length: int = 20, **options) -> HFCLIPTokenizer:
    return HFCLIPTokenizer.train(CAPTIONS * 3, vocab_size=560, model_max_length=length, **options)


def foreign_tokenizer() -> PreTrainedTokenizerFast:
    """One of transformers' own, that knows words as they are spelled."""
    words = ["<pad>", "<eos>", "<unk>", "a", "red", "cat", "blue", "dog", "Red", "Cat"]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=8
    )


def dual_encoder(tokenizer, is_sigmoid: bool = True, **text):
    config_class, model_class = (HFCLIPSiglipConfig, HFCLIPSiglipModel) if is_sigmoid else (HFCLIPConfig, HFCLIPModel)
    text = {
        **SMALL,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **text,
    }
    torch.manual_seed(0)
    config = config_class(text_config=text, vision_config={**SMALL, "image_size": 16, "patch_size": 8})
    return model_class(config).eval()


@pytest.mark.parametrize("make", [clip_tokenizer, foreign_tokenizer])
@pytest.mark.parametrize(
    "options",
    [
        {"text_padding": "max_length", "text_cleaning": "canonicalize", "returns_text_mask": False},
        {"text_padding": "longest", "text_cleaning": "lower", "returns_text_mask": True},
    ],
)
def test_halves_that_are_saved_apart_are_the_processor_again(make, options, tmp_path):
    processor = HFCLIPProcessor(IMAGES, make(), **options)
    HFCLIPConfig().save_pretrained(tmp_path)
    processor.tokenizer.save_pretrained(tmp_path)
    processor.image_processor.save_pretrained(tmp_path)
    apart = HFCLIPProcessor(AutoImageProcessor.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path))
    processor.save_pretrained(tmp_path / "whole")
    texts = ["A Red-Cat.", "a dog"]
    expected = processor(text=texts, return_tensors="pt")
    assert ("attention_mask" in expected) == options["returns_text_mask"]
    for again in (apart, AutoProcessor.from_pretrained(tmp_path), HFCLIPProcessor.from_pretrained(tmp_path / "whole")):
        assert {name: getattr(again, name) for name in options} == options
        found = again(text=texts, return_tensors="pt")
        assert set(found) == set(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("is_sigmoid", [True, False])
@pytest.mark.parametrize("length", [12, 77])
@pytest.mark.parametrize(
    ("pooling", "is_causal", "padding"),
    [("last", False, "max_length"), ("eos", False, "max_length"), ("eos", True, "longest")],
)
def test_the_stock_pipeline_gives_the_processors_scores(is_sigmoid, length, pooling, is_causal, padding, tmp_path):
    """It has the tokenizer alone, pads to 64 for a sigmoid and to the longest else, and passes on what it is given."""
    tokenizer = clip_tokenizer(length)
    model = dual_encoder(tokenizer, is_sigmoid, pooling=pooling, is_causal=is_causal)
    processor = HFCLIPProcessor(IMAGES, tokenizer, text_padding=padding, text_cleaning="canonicalize")
    tokenizer.save_pretrained(tmp_path)
    labels, image = ["A Red-Cat.", "a blue dog"], Image.new("RGB", (20, 16), "red")
    saved = HFCLIPTokenizer.from_pretrained(tmp_path)
    stock = pipeline("zero-shot-image-classification", model=model, tokenizer=saved, image_processor=IMAGES)
    results = stock(image, candidate_labels=labels, hypothesis_template="{}")
    with torch.no_grad():
        logits = model(**processor(text=labels, images=image, return_tensors="pt")).logits_per_image[0]
    expected = logits.sigmoid() if is_sigmoid else logits.softmax(dim=-1)
    scores = {result["label"]: result["score"] for result in results}
    assert [scores[label] for label in labels] == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_model_that_sees_padding_gets_all_of_it_whoever_calls_the_tokenizer():
    tokenizer = clip_tokenizer(12, text_padding="max_length")
    for ids in (tokenizer("a"), tokenizer("a", padding=True), tokenizer("a", padding="max_length", max_length=5)):
        assert len(ids["input_ids"]) == 12
    padded = tokenizer.pad([{"input_ids": [1, 2]}, {"input_ids": [1, 3, 2]}], padding=True)
    assert [len(ids) for ids in padded["input_ids"]] == [12, 12]
    assert len(tokenizer("a red cat", add_special_tokens=False)["input_ids"]) == 3


def test_a_mask_comes_on_request_alone():
    for tokenizer in (clip_tokenizer(), HFCLIPProcessor(IMAGES, foreign_tokenizer()).tokenizer):
        assert set(tokenizer(["a", "a cat"], padding=True)) - {"token_type_ids"} == {"input_ids"}
        assert "attention_mask" in tokenizer("a", return_attention_mask=True)


def test_what_is_unknown_is_refused():
    for options, message in (({"text_padding": "no"}, "`text_padding=no`"), ({"text_cleaning": "x"}, "cleaning=x`")):
        with pytest.raises(ValueError, match=message):
            clip_tokenizer(**options)
        with pytest.raises(ValueError, match=message):
            HFCLIPProcessor(IMAGES, clip_tokenizer(), **options)
    processor = HFCLIPProcessor(IMAGES, clip_tokenizer())
    for call in (processor.tokenizer, lambda text, **typo: processor(text=text, **typo)):
        with pytest.raises(TypeError, match="has no argument `truncaton`. The nearest is `truncation`"):
            call("a", truncaton=True)
    with pytest.raises(TypeError, match="`do_rezise`"):
        processor(images=Image.new("RGB", (20, 16)), do_rezise=False)
    with pytest.raises(TypeError, match="text_kwargs has no argument `max_lenght`.*`max_length`"):
        processor(text="a", text_kwargs={"max_lenght": 5})


ADDED = ["<MyCat>", "<mycat>", "badhandV4", "skscat", "New York"]


@pytest.mark.slow
@pytest.mark.parametrize("text_cleaning", [None, "canonicalize"])
@pytest.mark.parametrize("token", ADDED)
@pytest.mark.parametrize(
    "add",
    [
        lambda tokenizer, token: tokenizer.add_tokens([token]),
        lambda tokenizer, token: tokenizer.add_tokens([AddedToken(token, normalized=False, single_word=True)]),
        lambda tokenizer, token: tokenizer.add_special_tokens({"additional_special_tokens": [token]}),
        lambda tokenizer, token: tokenizer.add_special_tokens({"mask_token": token}),
    ],
    ids=["plain", "single_word", "special", "mask"],
)
def test_an_added_token_is_found(token, add, text_cleaning, tmp_path):
    tokenizer = clip_tokenizer(text_cleaning=text_cleaning)
    plain = tokenizer("a red cat")["input_ids"]
    new = len(tokenizer)
    assert add(tokenizer, token) == 1
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, HFCLIPTokenizer.from_pretrained(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        # What is around it is cleaned as ever, and the model's own special tokens stay text.
        assert one(f" A  red {token} CAT")["input_ids"] == [*plain[:3], new, *plain[3:]]
        literal = one(f"<|endoftext|> {token}")["input_ids"]
        assert literal.count(one.eos_token_id) == 1 and new in literal
        assert one("a red cat")["input_ids"] == plain


def test_special_tokens_that_were_added_are_skipped_where_special_ones_are():
    tokenizer = clip_tokenizer()
    tokenizer.add_tokens(["<plain>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<special>"]})
    ids = tokenizer("a <plain> cat <special>")["input_ids"]
    shown = tokenizer.decode(ids, skip_special_tokens=True)
    assert "<plain>" in shown and "<special>" not in shown and "cat" in shown
    assert "<special>" in tokenizer.decode(ids)


def test_a_tokenizer_of_transformers_keeps_added_tokens_through_the_processors_cleaning():
    processor = HFCLIPProcessor(IMAGES, foreign_tokenizer(), text_cleaning="canonicalize", returns_text_mask=True)
    processor.tokenizer.add_tokens(["<MyCat>"])
    assert processor(text="A Red <MyCat>!")["input_ids"][:3] == [3, 4, len(processor.tokenizer) - 1]


def test_copies_decode_as_the_original(tmp_path):
    tokenizer = clip_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    ids = tokenizer("a red cat")["input_ids"]
    processor = pickle.loads(pickle.dumps(HFCLIPProcessor(IMAGES, tokenizer)))
    for one in (
        tokenizer,
        pickle.loads(pickle.dumps(tokenizer)),
        copy.deepcopy(tokenizer),
        HFCLIPTokenizer.from_pretrained(tmp_path),
        copy.copy(HFCLIPTokenizer.from_pretrained(tmp_path)),
        processor,
        processor.tokenizer,
    ):
        assert one.decode(ids, skip_special_tokens=True) == "a red cat"
        assert one.batch_decode([ids, ids], skip_special_tokens=True) == ["a red cat"] * 2
        assert one.decode(torch.tensor(ids), skip_special_tokens=True) == "a red cat"


@pytest.mark.parametrize("make", [clip_tokenizer, foreign_tokenizer])
def test_threads_that_share_a_processor_get_their_own_padding(make):
    processor = HFCLIPProcessor(IMAGES, make(), returns_text_mask=True)
    texts = [" ".join(["a", *["red cat"] * words]) for words in (0, 1, 3)]
    wishes = [
        {"padding": True},
        {"padding": "max_length"},
        {"padding": "max_length", "max_length": 5, "truncation": True},
        {"padding": True, "max_length": 4, "truncation": True},
    ]

    def call(wish: dict) -> torch.Tensor:
        return processor(text=texts, return_tensors="pt", **wish)["input_ids"]

    expected = [call(wish) for wish in wishes]
    assert len({tuple(ids.shape) for ids in expected}) == len(wishes)
    rounds = soak_count(30, 1000)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(call, wishes * rounds))
    wrong = [index for index, ids in enumerate(found) if not torch.equal(ids, expected[index % len(wishes)])]
    assert not wrong
