"""The contrastive loss against the paper's pseudocode, written out, on one rank and on several."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from hf_clip import HFCLIPConfig, HFCLIPModel, contrastive_loss
from tests.ranks import run_on_ranks

EXACT = {"rtol": 1e-10, "atol": 1e-12}
PAIRS = 8
# Two groups of three and of two that mean the same, and three pairs that mean something else each.
IDS = torch.tensor([7, 3, 7, 5, 0, 3, 7, 9])


def pairs(count: int = PAIRS, dimensions: int = 5, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    image, text = torch.randn(2, count, dimensions, dtype=torch.float64)
    return F.normalize(image, dim=-1).to(dtype), F.normalize(text, dim=-1).to(dtype)


def written_out(image, text, scale, ids=None) -> torch.Tensor:
    """Row by row: the mean negative log probability of a row's positives, over rows and both directions."""
    total = 0.0
    for queries, keys in ((image, text), (text, image)):
        for row, query in enumerate(queries):
            scores = torch.stack([scale * (query * key).sum() for key in keys])
            log_probabilities = scores - scores.logsumexp(0)
            positives = [row] if ids is None else [j for j in range(len(ids)) if ids[j] == ids[row]]
            total = total - sum(log_probabilities[j] for j in positives) / len(positives)
    return total / (2 * len(image))


def loss_and_gradients(loss_function, image, text, scale, *ids) -> list[torch.Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in (image, text, scale)]
    loss = loss_function(*leaves, *ids)
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


SCALE = torch.tensor(14.0, dtype=torch.float64)


@pytest.mark.parametrize("ids", [(), (IDS,)], ids=["own pair", "ids"])
def test_equals_the_loss_written_out_row_by_row(ids):
    ours = loss_and_gradients(contrastive_loss, *pairs(), SCALE, *ids)
    theirs = loss_and_gradients(written_out, *pairs(), SCALE, *ids)
    torch.testing.assert_close(ours, theirs, **EXACT)


def test_without_ids_it_is_the_papers_and_transformers_loss():
    image, text = pairs()
    loss = contrastive_loss(image, text, SCALE)
    logits_per_text = SCALE * text @ image.T
    labels = torch.arange(PAIRS)
    figure_3 = (F.cross_entropy(logits_per_text, labels) + F.cross_entropy(logits_per_text.T, labels)) / 2
    torch.testing.assert_close(loss, figure_3, **EXACT)
    torch.testing.assert_close(loss, image_text_contrastive_loss(logits_per_text), **EXACT)


def test_ids_that_all_differ_change_nothing_and_equal_ids_leave_nothing_to_tell_apart():
    image, text = pairs()
    unique = contrastive_loss(image, text, SCALE, torch.arange(PAIRS) * 10**12)
    torch.testing.assert_close(unique, contrastive_loss(image, text, SCALE), **EXACT)
    one_vector = image[:1].expand(PAIRS, -1)
    same = contrastive_loss(one_vector, one_vector, SCALE, torch.zeros(PAIRS, dtype=torch.long))
    assert same.item() == pytest.approx(math.log(PAIRS))


def test_gradients_are_the_functions_own():
    image, text = pairs(count=5)
    leaves = [tensor.requires_grad_() for tensor in (image, text, SCALE.clone())]
    assert torch.autograd.gradcheck(lambda *inputs: contrastive_loss(*inputs), leaves)
    assert torch.autograd.gradcheck(lambda *inputs: contrastive_loss(*inputs, IDS[:5]), leaves)


@pytest.mark.parametrize("ids", [(), (torch.tensor([0, 0, 1, 2]),)], ids=["own pair", "ids"])
@pytest.mark.parametrize("cosine", ["near 0", "near 1", "near -1"])
def test_stays_finite_at_the_largest_scale(cosine, ids):
    image = torch.eye(4, 8)
    text = {"near 0": torch.eye(4, 8).roll(4, dims=1), "near 1": image + 1e-4, "near -1": -image}[cosine]
    # Pictures that all look alike, with texts that match or oppose them: logits of +-100 in every place.
    for picture in (image, image[:1].expand(4, -1)):
        parts = loss_and_gradients(contrastive_loss, picture, F.normalize(text, dim=-1), torch.tensor(100.0), *ids)
        assert all(part.isfinite().all() for part in parts)
    if cosine == "near 0":
        assert parts[0].item() == pytest.approx(math.log(4), abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_vectors_are_scored_in_float32(dtype):
    image, text = pairs(dtype=dtype)
    scale = torch.tensor(100.0)
    exact = contrastive_loss(image.double(), text.double(), scale.double())
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = contrastive_loss(image, text, scale)
        assert loss.dtype == torch.float32
        # In bfloat16 logits of 100 come in steps of 0.5.
        assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    leaf = image.clone().requires_grad_()
    contrastive_loss(leaf, text, scale).backward()
    assert leaf.grad.dtype == dtype


@pytest.mark.parametrize(
    ("image_shape", "text_shape", "ids_shape", "message"),
    [
        ((4, 3), (5, 3), None, r"\(4, 3\).*\(5, 3\)"),
        ((4, 3), (4, 2), None, r"\(4, 3\).*\(4, 2\)"),
        ((3,), (3,), None, "two batches"),
        ((0, 3), (0, 3), None, "at least one pair"),
        ((4, 3), (4, 3), (3,), r"ids has shape \(3,\).*\(4,\)"),
        ((4, 3), (4, 3), (4, 1), "one id a pair"),
    ],
)
def test_shapes_that_do_not_agree_raise(image_shape, text_shape, ids_shape, message):
    ids = None if ids_shape is None else torch.zeros(ids_shape, dtype=torch.long)
    with pytest.raises(ValueError, match=message):
        contrastive_loss(torch.ones(image_shape), torch.ones(text_shape), torch.tensor(1.0), ids)


def share(rows: torch.Tensor) -> torch.Tensor:
    """This rank's rows of the global batch."""
    return rows.chunk(dist.get_world_size())[dist.get_rank()]


def averaged_on_rank(image, text, scale, *ids) -> list[torch.Tensor]:
    """This rank's loss, its rows' gradients and the scale's, as averaging over the ranks makes them."""
    parts = loss_and_gradients(contrastive_loss, share(image), share(text), scale, *map(share, ids))
    dist.all_reduce(parts[3])
    # What averages parameters' gradients divides by the number of ranks; a vector's flows on into parameters.
    return [parts[0], *(gradient / dist.get_world_size() for gradient in parts[1:])]


@pytest.mark.parametrize("ids", [(), (IDS,)], ids=["own pair", "ids"])
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_equal_one_process_with_the_whole_batch(world_size, ids):
    whole = loss_and_gradients(contrastive_loss, *pairs(), SCALE, *ids)
    losses, image, text, scale = zip(*run_on_ranks(averaged_on_rank, world_size, *pairs(), SCALE, *ids), strict=True)
    for rank in range(world_size):
        torch.testing.assert_close(losses[rank], whole[0], **EXACT)
        torch.testing.assert_close(scale[rank], whole[3], **EXACT)
    torch.testing.assert_close(torch.cat(image), whole[1], **EXACT)
    torch.testing.assert_close(torch.cat(text), whole[2], **EXACT)


SPECIAL_IDS = {"bos_token_id": 48, "eos_token_id": 49, "pad_token_id": 49}


def small_model() -> HFCLIPModel:
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = HFCLIPConfig(
        text_config={**tower, "vocab_size": 50, "max_position_embeddings": 8, **SPECIAL_IDS},
        vision_config={**tower, "image_size": 8, "patch_size": 4},
        projection_dim=6,
    )
    torch.manual_seed(2)
    return HFCLIPModel(config).double()


def small_batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    input_ids = torch.randint(48, (PAIRS, 8))
    input_ids[:, -1] = 49
    return {"input_ids": input_ids, "pixel_values": torch.randn(PAIRS, 3, 8, 8).double(), "concept_ids": IDS}


def step_under_ddp(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model = DistributedDataParallel(small_model())
    loss = model(**{key: share(rows) for key, rows in batch.items()}, return_loss=True).loss
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.module.named_parameters()}


@pytest.mark.parametrize("with_ids", [False, True])
def test_a_model_under_ddp_gets_the_gradients_of_one_process(with_ids):
    batch = small_batch()
    if not with_ids:
        del batch["concept_ids"]
    model = small_model()
    loss = model(**batch, return_loss=True).loss
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for rank_loss, rank_gradients in run_on_ranks(step_under_ddp, 2, batch):
        torch.testing.assert_close(rank_loss, loss.detach(), **EXACT)
        torch.testing.assert_close(rank_gradients, gradients, **EXACT)


def error_of_rank(image, text, sizes: list[int], ranks_with_ids: list[int]) -> str:
    size, rank = sizes[dist.get_rank()], dist.get_rank()
    ids = (IDS[:size],) if rank in ranks_with_ids else ()
    try:
        contrastive_loss(image[:size], text[:size], SCALE, *ids)
    except ValueError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize("sizes", [[3, 2], [2, 0]])
def test_unequal_batches_raise_on_every_rank_instead_of_hanging(sizes):
    for error in run_on_ranks(error_of_rank, 2, *pairs(), sizes, [], timeout_seconds=20):
        assert f"between {min(sizes)} and {max(sizes)} pairs" in error


def test_ids_on_some_ranks_only_raise_on_every_rank_instead_of_hanging():
    for error in run_on_ranks(error_of_rank, 2, *pairs(), [2, 2], [1], timeout_seconds=20):
        assert "ids" in error and "every rank" in error
