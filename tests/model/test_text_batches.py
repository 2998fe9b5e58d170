"""Texts share batches with texts of like length, and compute what they begin with once: the numbers stay."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hf_clip import ZeroShotClassifier, embed_texts
from hf_clip.evaluation import encode_texts
from hf_clip.model.text_batches_hf_clip import text_batches
from tests.helpers.toys import tiny_clip
from tests.model.test_modeling import END, START, ours, texts

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
# Short in characters and long in tokens, and the other way round.
CAPTIONS = ["a red square", "q7 w3 z9 x1 k5", "squares squares squares", "red", "", "a blue square on a red square"]


def prompts(count: int = 20) -> torch.Tensor:
    """Ids of texts that begin with the same four tokens, and end at unlike places."""
    torch.manual_seed(4)
    input_ids = torch.zeros(count, 10, dtype=torch.long)
    input_ids[:, :4] = torch.tensor([START, 5, 6, 7])
    for row in range(count):
        length = 5 + row % 6
        input_ids[row, 4 : length - 1] = torch.randint(8, START, (length - 5,))
        input_ids[row, length - 1] = END
    return input_ids


def lengths_of_batches(processor, captions, batch_size) -> list[int]:
    return [batch.input_ids.shape[1] for batch in text_batches(processor, captions, batch_size)]


def test_batches_are_as_long_as_their_longest_text_and_hold_each_text_once():
    _, processor = tiny_clip(CAPTIONS)
    own = [processor(text=[text], return_tensors="pt")["input_ids"] for text in CAPTIONS]
    lengths = sorted(ids.shape[1] for ids in own)
    assert lengths_of_batches(processor, CAPTIONS, 2) == lengths[1::2]
    found = {}
    for batch in text_batches(processor, CAPTIONS, 2):
        for position, ids in zip(batch.positions, batch.input_ids, strict=True):
            found[position] = ids
    assert sorted(found) == list(range(len(CAPTIONS)))
    for position, ids in enumerate(own):
        length = ids.shape[1]
        assert torch.equal(found[position][:length], ids[0])
        assert set(found[position][length:].tolist()) <= {processor.tokenizer.pad_token_id}


def test_texts_that_a_model_wants_in_full_length_keep_it():
    _, processor = tiny_clip(CAPTIONS)
    processor.text_padding = "max_length"
    assert set(lengths_of_batches(processor, CAPTIONS, 2)) == {processor.tokenizer.model_max_length}


def test_masks_are_cut_with_their_texts():
    _, processor = tiny_clip(CAPTIONS)
    processor.returns_text_mask = True
    for batch in text_batches(processor, CAPTIONS, 2):
        assert batch.attention_mask.shape == batch.input_ids.shape
        assert batch.attention_mask.sum(1).max() == batch.input_ids.shape[1]


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_embeddings_are_those_of_each_text_by_itself(batch_size):
    model, processor = tiny_clip(CAPTIONS)
    # Enough of one beginning that it is shared.
    captions = CAPTIONS + [f"a red square and {word} {word}" for word in "abcdefghijklmnopqrstuvwx"]
    with torch.no_grad():
        expected = torch.cat(
            [model.encode_text(processor(text=[one], return_tensors="pt")["input_ids"]) for one in captions]
        )
    torch.testing.assert_close(
        embed_texts(model, processor, captions, batch_size=batch_size), expected, rtol=0, atol=2e-6
    )
    torch.testing.assert_close(
        encode_texts(model, processor, captions, batch_size=batch_size), expected, rtol=0, atol=2e-6
    )


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_beginning_that_is_computed_once_changes_no_number(count, implementation):
    model = ours().double()
    model.set_attn_implementation(implementation)
    expected = model.encode_text(prompts())
    torch.testing.assert_close(model.encode_text(prompts(), shared_prefix=count), expected, **CLOSE)
    (shared,) = torch.autograd.grad(
        model.encode_text(prompts(), shared_prefix=count).sin().sum(),
        model.text_model.embeddings.token_embedding.weight,
    )
    (plain,) = torch.autograd.grad(expected.sin().sum(), model.text_model.embeddings.token_embedding.weight)
    torch.testing.assert_close(shared, plain, **CLOSE)


def tokens_of_the_first_layer(model, **options) -> list[tuple[int, ...]]:
    seen = []
    attention = model.text_model.encoder.layers[0].self_attn
    compute = attention.q_proj.forward

    class Counting(torch.nn.Linear):
        def forward(self, tokens_BTW):
            seen.append(tuple(tokens_BTW.shape[:2]))
            return compute(tokens_BTW)

    attention.q_proj.__class__ = Counting
    model.encode_text(prompts(), **options)
    attention.q_proj.__class__ = torch.nn.Linear
    return seen


def test_what_is_shared_is_computed_once_and_in_full_for_who_looks_or_is_not_causal():
    model, mask = ours(), (prompts() != 0).long()
    assert tokens_of_the_first_layer(model) == [(20, 10)]
    assert tokens_of_the_first_layer(model, shared_prefix=4) == [(1, 4), (20, 6)]
    assert tokens_of_the_first_layer(model, shared_prefix=4, attention_mask=mask) == [(20, 10)]
    for other in ({"is_causal": False}, {"pooling": "mean"}):
        assert tokens_of_the_first_layer(ours(text=other), shared_prefix=4) == [(20, 10)]
    model.text_model.encoder.layers[1].mlp.register_forward_hook(lambda *_: None)
    assert tokens_of_the_first_layer(model, shared_prefix=4) == [(20, 10)]


def test_adapters_count_in_what_is_shared():
    model = ours().double()
    torch.manual_seed(0)
    config = LoraConfig(target_modules=["k_proj", "v_proj", "fc2"], init_lora_weights=False)
    wrapped = get_peft_model(model, config).double().eval()
    torch.testing.assert_close(
        wrapped.encode_text(prompts(), shared_prefix=4), wrapped.encode_text(prompts()), **CLOSE
    )


@pytest.mark.parametrize(("input_ids", "count"), [(texts(), 2), (prompts(), 5)])
def test_a_beginning_that_texts_do_not_share_is_refused(input_ids, count):
    with pytest.raises(ValueError, match=f"`shared_prefix={count}`: the texts do not all begin"):
        ours().encode_text(input_ids, shared_prefix=count)


def test_labels_share_the_beginning_of_their_template():
    labels = [[f"{first}{second} square", f"{second}"] for first in "abcdef" for second in "uvwxyz"]
    templates = ["a red picture of a {}.", "{} on a blue square", "the red {}"]
    model, processor = tiny_clip([*CAPTIONS, *templates])
    shared = [
        batch.shared_prefix
        for batch in text_batches(
            processor,
            [template.replace("{}", name) for template in templates for names in labels for name in names],
            72,
            [group for group in range(3) for _ in range(72)],
        )
    ]
    assert shared[0] > shared[2] >= 2 and shared[1] == 0
    classifier = ZeroShotClassifier(model, processor, labels, templates, batch_size=72)
    expected = []
    for names in labels:
        texts = [template.replace("{}", name) for name in names for template in templates]
        with torch.no_grad():
            embeddings = [
                model.encode_text(processor(text=[text], return_tensors="pt")["input_ids"])[0] for text in texts
            ]
        expected.append(torch.nn.functional.normalize(torch.stack(embeddings).mean(0), dim=-1))
    torch.testing.assert_close(classifier.class_embeddings, torch.stack(expected), rtol=0, atol=2e-6)
