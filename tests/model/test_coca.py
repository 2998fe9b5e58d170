"""CoCa writes: what transformers' `generate` makes of it is what OpenCLIP's logits say, with a cache and without."""

import copy

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoModelForZeroShotImageClassification, pipeline
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from hf_clip import HFCLIPCoCaConfig, HFCLIPCoCaModel
from hf_clip.model.caption_loss_hf_clip import IGNORED, caption_loss, plain_caption_loss
from hf_clip.model.modeling_text_hf_clip import CACHE
from tests.helpers.checkpoints import IMAGES
from tests.helpers.coca import load_coca

LIMIT = 24


@pytest.fixture(scope="module")
def coca(tmp_path_factory):
    """Our model in float64, its processor, OpenCLIP's model in float64, and pixels; ours is saved in `folder`."""
    root = tmp_path_factory.mktemp("coca")
    model, processor, peer = load_coca(root / "theirs")
    model.save_pretrained(root / "ours")
    processor.save_pretrained(root / "ours")
    pixels = processor(images=IMAGES, return_tensors="pt")["pixel_values"].double()
    return model.double(), processor, peer.double(), pixels, root / "ours"


def greedy(peer, pixel_values, start: int, end: int) -> torch.Tensor:
    """The loop that OpenCLIP's `generate` would be, by its logits."""
    ids = torch.full((len(pixel_values), 1), start)
    ended = torch.zeros(len(ids), dtype=torch.bool)
    while ids.shape[1] < LIMIT and not ended.all():
        with torch.no_grad():
            logits = peer(pixel_values, ids, output_labels=False)["logits"][:, -1]
        following = logits.argmax(dim=-1).masked_fill(ended, 0)
        ids, ended = torch.cat([ids, following[:, None]], dim=1), ended | (following == end)
    return ids


@pytest.mark.slow
def test_greedy_captions_are_a_loop_over_open_clips_logits(coca):
    model, processor, peer, pixels, _ = coca
    expected = greedy(peer, pixels, processor.tokenizer.bos_token_id, processor.tokenizer.eos_token_id)
    assert torch.equal(model.generate(pixels), expected)
    assert torch.equal(model.generate(pixels, use_cache=False), expected)
    assert expected.shape[1] > 5 and len({tuple(row) for row in expected.tolist()}) > 1


def test_the_cache_changes_no_score_and_images_are_encoded_once(coca, monkeypatch):
    """Beams too, which exchange their tokens; an id of padding within a caption is no exception."""
    model, _, _, pixels, _ = coca
    calls = []
    monkeypatch.setattr(
        model.vision_model,
        "forward",
        lambda *args, _own=model.vision_model.forward, **kw: (calls.append(1), _own(*args, **kw))[1],
    )
    asked = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 12, "length_penalty": 0.0}
    asked |= {"return_dict_in_generate": True, "output_scores": True}
    one, other = (model.generate(pixels, use_cache=use_cache, **asked) for use_cache in (True, False))
    assert torch.equal(one.sequences, other.sequences) and len(calls) == 2
    assert (one.sequences_scores - other.sequences_scores).abs().max() < 1e-10
    begun = torch.tensor([[1, 0, 5, 7]] * 3)
    begun[:, 0] = model.config.text_config.bos_token_id
    one, other = (
        model.generate(
            pixels, begun, use_cache=each, output_logits=True, return_dict_in_generate=True, max_new_tokens=4
        )
        for each in (True, False)
    )
    assert all((a - b).abs().max() < 1e-10 for a, b in zip(one.logits, other.logits, strict=True))
    # Of the name that this transformers looks for.
    assert getattr(one, CACHE).get_seq_length() == one.sequences.shape[1] - 1 and getattr(other, CACHE) is None
    # Whoever calls the model may use either name.
    texts, seen = begun.clamp(min=1), model.encode_image_tokens(pixels)
    expected = model(texts, image_tokens=seen).logits[:, -1]
    for name in ("cache", "past_key_values"):
        given = {"image_tokens": seen, name: EncoderDecoderCache(DynamicCache(), DynamicCache())}
        model(texts[:, :3], **given)
        assert (model(texts[:, 3:], **given).logits[:, -1] - expected).abs().max() < 1e-10


def test_sampling_is_transformers_own(coca):
    model, _, _, pixels, _ = coca
    torch.manual_seed(0)
    first = model.generate(pixels, do_sample=True, top_k=20, temperature=2.0, num_return_sequences=4)
    torch.manual_seed(0)
    again = model.generate(pixels, do_sample=True, top_k=20, temperature=2.0, num_return_sequences=4)
    assert torch.equal(first, again) and len({tuple(row) for row in first.tolist()}) > 3


def test_what_cannot_be_generated_is_said(coca):
    model, processor, _, pixels, _ = coca
    with pytest.raises(ValueError, match="`pixel_values` is missing"):
        model.generate()
    texts = processor(text=["a red", "two snowmen in the"], return_tensors="pt")["input_ids"]
    with pytest.raises(ValueError, match="several lengths"):
        model.generate(pixels[:2], texts)
    with pytest.raises(ValueError, match="2 texts for 3 images"):
        model.generate(pixels, texts)
    with pytest.raises(ValueError, match="cache_implementation='static'"):
        model.generate(pixels, cache_implementation="static")


def test_auto_classes_and_stock_pipelines_take_it(coca):
    model, processor, _, pixels, folder = coca
    loaded = AutoModelForImageTextToText.from_pretrained(folder)
    assert isinstance(loaded, HFCLIPCoCaModel)
    assert isinstance(AutoModelForZeroShotImageClassification.from_pretrained(folder), HFCLIPCoCaModel)
    ids = model.generate(pixels[:1], max_length=10)
    text = processor.batch_decode(ids, skip_special_tokens=True)[0]
    writes = pipeline("image-text-to-text", model=str(folder))
    written = writes(images=IMAGES[0], text="", max_new_tokens=9)
    assert written[0]["generated_text"] == text
    begun = writes(images=IMAGES[0], text="a red", max_new_tokens=3)[0]["generated_text"]
    assert begun.startswith("a red")
    ranks = pipeline("zero-shot-image-classification", model=str(folder))
    assert len(ranks(Image.new("RGB", (40, 40)), candidate_labels=["a", "b"])) == 2


def small_config(**fields) -> HFCLIPCoCaConfig:
    """With a convnet, whose grid of another width are its tokens."""
    text = {"tower": "class_token", "pooling": "class", "vocab_size": 99, "hidden_size": 32, "intermediate_size": 64}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 12, "pad_token_id": 0}
    text |= {"bos_token_id": 97, "eos_token_id": 98}
    vision = {"tower": "convnet", "stem_width": 16, "stage_widths": [16, 48], "stage_depths": [1, 1]}
    vision |= {"hidden_size": 48, "image_size": 32, "hidden_act": "relu"}
    config = {"projection_dim": 24, "num_decoder_layers": 2, "num_decoder_heads": 4, "decoder_intermediate_size": 64}
    return HFCLIPCoCaConfig(**{"text_config": text, "vision_config": vision} | config | fields)


def test_a_convnets_grid_is_read_too_and_the_loss_is_of_both():
    torch.manual_seed(0)
    model = HFCLIPCoCaModel(small_config()).double()
    ids = torch.randint(1, 97, (3, 8))
    ids[:, 0], ids[:, -1], ids[1, 4:] = 97, 98, 0
    pixels = torch.randn(3, 3, 32, 32).double()
    assert model.encode_image_tokens(pixels).shape == (3, 16, 32)
    output = model(ids, pixels, return_loss=True, return_logits=True)
    labels = ids[:, 1:].masked_fill(ids[:, 1:] == 0, IGNORED)
    expected = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels.flatten())
    assert (output.caption_loss - expected).abs() < 1e-10
    contrastive = model(ids, pixels).logits_per_image
    labels = torch.arange(3)
    both = (torch.nn.functional.cross_entropy(one, labels) for one in (contrastive, contrastive.T))
    assert (output.loss - sum(both) / 2 - 2 * expected).abs() < 1e-10
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    "field",
    [
        {"num_decoder_heads": 5},
        {"text_config": {}},
        {
            "vision_config": {
                "tower": "resnet",
                "stage_depths": [1, 1, 1, 1],
                "stem_width": 8,
                "hidden_size": 256,
                "num_attention_heads": 4,
            }
        },
    ],
)
def test_shapes_that_no_decoder_reads_are_refused(field):
    with pytest.raises(ValueError, match="num_decoder_heads|text_config.tower|vision_config.tower"):
        small_config(**field)


def test_the_caption_loss_in_tiles_is_cross_entropys():
    torch.manual_seed(0)
    states, weight = torch.randn(3, 7, 16, dtype=torch.float64), torch.randn(50, 16, dtype=torch.float64)
    labels = torch.randint(0, 50, (3, 7))
    labels[0, 3:] = IGNORED
    results = []
    for loss_of in (plain_caption_loss, lambda *args: caption_loss(*args, tile_tokens=4)):
        leaves = [each.clone().requires_grad_() for each in (states, weight)]
        loss = loss_of(*leaves, labels)
        (loss * 0.3).backward()
        results.append([loss.detach(), *(leaf.grad for leaf in leaves)])
    assert all((a - b).abs().max() < 1e-10 for a, b in zip(*results, strict=True))
    # Of a frozen matrix.
    frozen = states.clone().requires_grad_()
    caption_loss(frozen, weight, labels, tile_tokens=4).mul(0.3).backward()
    assert torch.equal(frozen.grad, results[1][1])


def test_attention_implementations_agree(coca):
    model, _, _, pixels, folder = coca
    ids = torch.tensor([[model.config.text_config.bos_token_id, 5, 6, 7]] * 3)
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        one, other = (each(ids, pixels, return_logits=True) for each in (model, eager))
    assert (one.logits - other.logits).abs().max() < 1e-10
    assert (one.logits_per_image - other.logits_per_image).abs().max() < 1e-10
