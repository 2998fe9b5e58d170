"""A step's texts in chunks of like length: each once, with few tokens, and with the numbers that padding gives."""

import numpy as np
import pytest
import torch

from hf_clip.training import texts as module
from hf_clip.training.augmentation import mixed_fraction
from hf_clip.training.texts import TextTokens, texts_of_step
from tests.helpers.steps import assert_close, configure, gradients, make_batch, make_train_step

CPU = torch.device("cpu")


def tokens(lengths: list[int]) -> TextTokens:
    """Text i has the tokens i * 100, i * 100 + 1, ... and is padded with -1."""
    ids_NT = torch.full((len(lengths), max(lengths)), -1)
    for row, length in enumerate(lengths):
        ids_NT[row, :length] = 100 * row + torch.arange(length)
    return TextTokens(ids_NT, (ids_NT >= 0).long(), np.array(lengths))


@pytest.mark.parametrize("parts", [1, 2, 5, 40])
def test_every_text_is_in_one_micro_batch_with_its_tokens_and_can_be_found(parts, monkeypatch):
    monkeypatch.setitem(module.CHUNK_IN_TOKENS, "cpu", 3)
    lengths = np.random.default_rng(0).integers(2, 20, 40).tolist()
    given = tokens(lengths)
    found = texts_of_step(given, parts, CPU)
    assert len(found.parts) == len(found.rows) == parts
    first_tokens = [chunk["input_ids"][:, 0] for chunks in found.parts for chunk in chunks]
    assert torch.equal(torch.cat(first_tokens)[found.places], 100 * torch.arange(40))
    assert torch.equal(torch.cat(found.rows)[found.places], torch.arange(40))
    for chunks, rows in zip(found.parts, found.rows, strict=True):
        assert torch.equal(torch.cat([chunk["input_ids"][:, 0] for chunk in chunks]), 100 * rows)
        for chunk in chunks:
            # Nothing is cut off, and no column is padding alone.
            own = [lengths[row] for row in (chunk["input_ids"][:, 0] // 100).tolist()]
            assert chunk["input_ids"].shape[1] == max(own)
            assert (chunk["input_ids"] >= 0).sum(1).tolist() == own
            assert torch.equal(chunk["attention_mask"], (chunk["input_ids"] >= 0).long())


def test_a_chunk_is_cut_where_it_saves_more_than_it_costs(monkeypatch):
    given = tokens([5] * 10 + [6] * 10 + [30] * 2)
    for cost, expected in ((5, [(10, 5), (10, 6), (2, 30)]), (20, [(20, 6), (2, 30)]), (1000, [(22, 30)])):
        monkeypatch.setitem(module.CHUNK_IN_TOKENS, "cpu", cost)
        assert [chunk["input_ids"].shape for chunk in texts_of_step(given, 1, CPU).parts[0]] == expected
    # Processes that share weights compute as many chunks each.
    assert len(texts_of_step(given, 1, CPU, has_one_chunk=True).parts[0]) == 1


def test_micro_batches_have_as_many_tokens_each():
    lengths = np.random.default_rng(0).lognormal(2.8, 0.5, 256).clip(3, 77).astype(int).tolist()
    found = texts_of_step(tokens(lengths), 4, CPU)
    sums = [int(sum(chunk["attention_mask"].sum() for chunk in chunks)) for chunks in found.parts]
    assert max(sums) - min(sums) <= 77


@pytest.mark.parametrize("micro", [24, 7])
def test_chunks_change_no_gradient(tmp_path, monkeypatch, micro):
    """Loss and gradients are those of captions and keywords padded to the longest, each in a pass of its own."""
    config = configure(tmp_path, [f"micro_batch_size={micro}", "augmentation.mixup=0"])
    train_step, batch = make_train_step(config), make_batch()
    share = mixed_fraction(config.seed, 0, config.augmentation.mixup)
    model, objective = train_step.model, train_step.objective
    objective.train()
    texts_ND = [
        model.encode_text(**train_step.processor(text=texts, return_tensors="pt"))
        for texts in (batch.captions, batch.keywords)
    ]
    image_BD = model.encode_image(train_step._images(batch, slice(0, 24), share))
    padded = objective.loss(image_BD, torch.cat(texts_ND), [model.logit_scale.exp()], batch.concept_ids)
    padded.backward()
    expected = gradients(train_step)
    train_step.optimizer.zero_grad()
    monkeypatch.setitem(module.CHUNK_IN_TOKENS, "cpu", 1)
    shapes = {
        chunk["input_ids"].shape[1]
        for part in train_step._texts(batch, [slice(0, len(batch.captions))]).parts
        for chunk in part
    }
    assert len(shapes) > 2
    torch.testing.assert_close(train_step.backward(batch, 0), padded.detach(), rtol=1e-10, atol=0)
    assert_close(gradients(train_step), expected)
