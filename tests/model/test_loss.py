"""The contrastive losses against their papers' formulas, written out, on one rank and on several."""

import math
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

import hf_clip.model.loss_hf_clip
from hf_clip import HFCLIPConfig, HFCLIPModel, contrastive_loss, sigmoid_loss
from tests.helpers.ranks import run_on_ranks

EXACT = {"rtol": 1e-10, "atol": 1e-12}
PAIRS = 8
# Two groups of three and of two that mean the same, and three pairs that mean something else each.
IDS = torch.tensor([7, 3, 7, 5, 0, 3, 7, 9])
SCALE = torch.tensor(14.0, dtype=torch.float64)
BIAS = torch.tensor([-3.0], dtype=torch.float64)
# Each loss, with the learned numbers that it takes.
LOSSES = {"softmax": (contrastive_loss, SCALE), "sigmoid": (sigmoid_loss, SCALE, BIAS)}
each_loss = pytest.mark.parametrize("name", LOSSES)
with_and_without_ids = pytest.mark.parametrize("ids", [(), (IDS,)], ids=["own pair", "ids"])


@pytest.fixture(params=[(3, 5), (4, 2), (1, 1), (512, 1024)], ids=str)
def tile(request, monkeypatch):
    """Tiles that the batch is and is not a multiple of."""
    monkeypatch.setattr(hf_clip.model.loss_hf_clip, "_CPU_TILE", request.param)


def pairs(count: int = PAIRS, dimensions: int = 5, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    image, text = torch.randn(2, count, dimensions, dtype=torch.float64)
    return F.normalize(image, dim=-1).to(dtype), F.normalize(text, dim=-1).to(dtype)


def softmax_written_out(image, text, scale, ids=None) -> torch.Tensor:
    """Row by row: the mean negative log probability of a row's positives, over rows and both directions."""
    total = 0.0
    for queries, keys in ((image, text), (text, image)):
        for row, query in enumerate(queries):
            scores = torch.stack([scale * (query * key).sum() for key in keys])
            log_probabilities = scores - scores.logsumexp(0)
            positives = [row] if ids is None else [j for j in range(len(ids)) if ids[j] == ids[row]]
            total = total - sum(log_probabilities[j] for j in positives) / len(positives)
    return total / (2 * len(image))


def sigmoid_written_out(image, text, scale, bias, ids=None) -> torch.Tensor:
    """Algorithm 1 of Zhai et al. 2023, pair by pair."""
    total = 0.0
    for i in range(len(image)):
        for j in range(len(text)):
            sign = 1 if (i == j if ids is None else ids[i] == ids[j]) else -1
            total = total + torch.log1p(torch.exp(-sign * (scale * (image[i] * text[j]).sum() + bias[0])))
    return total / len(image)


WRITTEN_OUT = {"softmax": softmax_written_out, "sigmoid": sigmoid_written_out}


def cross_entropy(image, text, scale) -> torch.Tensor:
    """Figure 3 of Radford et al. 2021."""
    logits, labels = scale * image @ text.T, torch.arange(len(image))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def loss_and_gradients(loss_function, image, text, *numbers, ids=()) -> list[torch.Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in (image, text, *numbers)]
    loss = loss_function(*leaves, *ids)
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


@each_loss
@with_and_without_ids
@pytest.mark.usefixtures("tile")
def test_equals_the_loss_written_out_pair_by_pair(name, ids):
    loss, *numbers = LOSSES[name]
    ours = loss_and_gradients(loss, *pairs(), *numbers, ids=ids)
    theirs = loss_and_gradients(WRITTEN_OUT[name], *pairs(), *numbers, ids=ids)
    assert [part.shape for part in ours] == [(), (PAIRS, 5), (PAIRS, 5), *(number.shape for number in numbers)]
    torch.testing.assert_close(ours[0], theirs[0].reshape(()), **EXACT)
    torch.testing.assert_close(ours[1:], theirs[1:], **EXACT)


def test_without_ids_it_is_the_papers_and_transformers_loss():
    image, text = pairs()
    loss = contrastive_loss(image, text, SCALE)
    torch.testing.assert_close(loss, cross_entropy(image, text, SCALE), **EXACT)
    torch.testing.assert_close(loss, image_text_contrastive_loss(SCALE * text @ image.T), **EXACT)


@with_and_without_ids
def test_label_smoothing_equals_cross_entropy_with_spread_targets(ids):
    """On embeddings that are no unit embeddings, too: nothing in it asks for them."""
    image, text = pairs()
    same = torch.eye(PAIRS, dtype=torch.float64) if not ids else (IDS[:, None] == IDS[None]).double()
    target = same / same.sum(1, keepdim=True)

    def written_out(image, text, scale):
        logits = scale * image @ text.T
        one, other = (F.cross_entropy(rows, target, label_smoothing=0.2) for rows in (logits, logits.T))
        return (one + other) / 2

    ours = loss_and_gradients(partial(contrastive_loss, label_smoothing=0.2), 2 * image, text, SCALE, ids=ids)
    torch.testing.assert_close(ours, loss_and_gradients(written_out, 2 * image, text, SCALE), **EXACT)


def test_a_batch_of_many_tiles_equals_plain_cross_entropy():
    """Sizes of neither tiles nor embedding registers, in the float32 that training has, against float64."""
    image, text = pairs(count=1100, dimensions=37)
    text = F.normalize(text + image, dim=-1)
    exact = loss_and_gradients(cross_entropy, image, text, SCALE * 2)
    torch.testing.assert_close(loss_and_gradients(contrastive_loss, image, text, SCALE * 2), exact, **EXACT)
    single = loss_and_gradients(contrastive_loss, image.float(), text.float(), SCALE.float() * 2)
    for ours, theirs in zip(single, exact, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


@each_loss
def test_ids_that_all_differ_change_nothing(name):
    loss, *numbers = LOSSES[name]
    unique = loss_and_gradients(loss, *pairs(), *numbers, ids=(torch.arange(PAIRS) * 10**12,))
    torch.testing.assert_close(unique, loss_and_gradients(loss, *pairs(), *numbers), **EXACT)


@pytest.mark.usefixtures("tile")
def test_one_group_of_positives_leaves_nothing_to_tell_apart():
    one_embedding, same_id = pairs()[0][:1].expand(PAIRS, -1), torch.zeros(PAIRS, dtype=torch.long)
    loss, *gradients = loss_and_gradients(contrastive_loss, one_embedding, one_embedding, SCALE, ids=(same_id,))
    assert loss.item() == pytest.approx(math.log(PAIRS))
    assert all(gradient.abs().max() < 1e-12 for gradient in gradients)


@each_loss
@with_and_without_ids
def test_gradients_are_the_functions_own(name, ids, monkeypatch):
    monkeypatch.setattr(hf_clip.model.loss_hf_clip, "_CPU_TILE", (2, 3))
    loss, *numbers = LOSSES[name]
    leaves = [tensor.clone().requires_grad_() for tensor in (*pairs(count=5), *numbers)]
    assert torch.autograd.gradcheck(lambda *inputs: 3 * loss(*inputs, *(part[:5] for part in ids)), leaves)


@each_loss
@pytest.mark.parametrize("wanted", [{0}, {1}, {2}, {0, 2}, {1, 2}])
def test_a_locked_side_gets_no_gradient_and_changes_no_others(name, wanted):
    loss, *numbers = LOSSES[name]
    _, *all_gradients = loss_and_gradients(loss, *pairs(), *numbers)
    leaves = [tensor.clone().requires_grad_(i in wanted) for i, tensor in enumerate((*pairs(), *numbers))]
    loss(*leaves).backward()
    for i, leaf in enumerate(leaves):
        torch.testing.assert_close(leaf.grad, all_gradients[i] if i in wanted else None, **EXACT)


@each_loss
def test_gradients_of_gradients_raise_instead_of_being_wrong(name):
    loss, *numbers = LOSSES[name]
    image, text = (embeddings.requires_grad_() for embeddings in pairs())
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(loss(image, text, *numbers), image, create_graph=True)


@pytest.mark.slow
@with_and_without_ids
@pytest.mark.parametrize("cosine", ["near 0", "near 1", "near -1"])
@pytest.mark.usefixtures("tile")
def test_the_largest_scale_neither_underflows_nor_overflows(cosine, ids):
    image = torch.eye(PAIRS, 2 * PAIRS)
    text = {"near 0": image.roll(PAIRS, dims=1), "near 1": image + 1e-4, "near -1": -image}[cosine]
    # Images that all look alike, with texts that match or oppose them: logits of +-100 in every place.
    for one in (image, image[:1].expand(PAIRS, -1)):
        embeddings = one, F.normalize(text, dim=-1), torch.tensor(100.0)
        ours = loss_and_gradients(contrastive_loss, *embeddings, ids=ids)
        theirs = loss_and_gradients(softmax_written_out, *(part.double() for part in embeddings), ids=ids)
        for single, exact in zip(ours, theirs, strict=True):
            torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-6)


@each_loss
@pytest.mark.usefixtures("tile")
def test_logits_of_any_size_stay_finite_in_value_and_gradient(name):
    """Logits rise and fall by thousands from tile to tile: a maximum must be kept for each row and column."""
    loss, *numbers = (part.float() if isinstance(part, torch.Tensor) else part for part in LOSSES[name])
    image, text = (50 * embeddings.float() * torch.linspace(-1, 1, PAIRS)[:, None] for embeddings in pairs())
    for part in loss_and_gradients(loss, image, text, *numbers):
        assert part.isfinite().all()


@pytest.mark.parametrize("scale", [97.0, 98.0, 99.0, 100.0])
def test_a_small_loss_is_not_lost_in_rounding(scale):
    """A model that tells nearly all apart: float32 rounds logits of 100 and 88 by 4e-6, probabilities by 6e-8."""
    embeddings = F.normalize(torch.eye(16) + 2.5 * F.normalize(torch.ones(16), dim=0), dim=-1)
    ours = loss_and_gradients(contrastive_loss, embeddings, embeddings, torch.tensor(scale))
    theirs = loss_and_gradients(cross_entropy, embeddings.double(), embeddings.double(), torch.tensor(scale).double())
    assert theirs[0] < 3e-4
    assert abs(ours[0] - theirs[0]) < 3e-7
    for single, exact in zip(ours, theirs, strict=True):
        assert (single - exact).norm() <= 0.02 * exact.norm()


@each_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_embeddings_are_scored_and_differentiated_in_float32(name, dtype):
    loss, *numbers = LOSSES[name]
    image, text = pairs(count=40, dtype=dtype)
    numbers[0] = torch.tensor(100.0)
    exact = loss_and_gradients(loss, image.double(), text.double(), *(number.double() for number in numbers))
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            ours = loss_and_gradients(loss, image, text, *numbers)
        assert ours[0].dtype == torch.float32 and ours[1].dtype == ours[2].dtype == dtype
        # In bfloat16 logits of 100 come in steps of 0.5. Embeddings' gradients are rounded to it at the very end.
        assert ours[0].item() == pytest.approx(exact[0].item(), rel=1e-5)
        for gradient, exact_gradient in zip(ours[1:], exact[1:], strict=True):
            rounding = 1e-4 if gradient.dtype != dtype else torch.finfo(dtype).eps
            assert (gradient.double() - exact_gradient).norm() <= rounding * exact_gradient.norm()


@each_loss
def test_products_of_halves_are_sums_in_float32(name):
    """The rounding of embeddings and slopes alone: scores of 100 rounded to bf16 would be off by up to 0.25."""
    loss, *numbers = LOSSES[name]
    numbers = [torch.tensor(50.0), *(number.float() for number in numbers[1:])]
    embeddings = pairs(count=40, dimensions=64, dtype=torch.float32)
    exact = loss_and_gradients(loss, *embeddings, *numbers)
    ours = loss_and_gradients(partial(loss, products="bfloat16"), *embeddings, *numbers)
    assert not torch.equal(ours[1], exact[1])
    for rounded, single in zip(ours, exact, strict=True):
        assert rounded.dtype == torch.float32
        assert (rounded - single).norm() <= 0.02 * single.norm()
    # What torch 2.8 does not have.
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    assert matmul is None or matmul.fp32_precision != "bf16"
    with pytest.raises(ValueError, match="`products=int8` is unknown: use one of float32, bfloat16"):
        loss(*embeddings, *numbers, products="int8")


@pytest.mark.parametrize("has_onednn", [False, True])
def test_autocast_does_not_reach_the_products_of_float32_embeddings(has_onednn, monkeypatch):
    if not has_onednn:
        monkeypatch.setattr(hf_clip.model.loss_hf_clip, "_ONEDNN_LINEAR", None)
    embeddings = (*pairs(count=40, dtype=torch.float32), torch.tensor(100.0))
    plain = loss_and_gradients(contrastive_loss, *embeddings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss_and_gradients(contrastive_loss, *embeddings), plain, rtol=0, atol=0)


def peak_bytes(work) -> int:
    """The most that torch's allocator held at one time while `work` ran, over what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.slow
@each_loss
@pytest.mark.parametrize("ids", [False, True])
def test_memory_grows_with_the_batch_not_with_its_square(name, ids, monkeypatch):
    monkeypatch.setattr(hf_clip.model.loss_hf_clip, "_CPU_TILE", (64, 128))
    loss, *numbers = LOSSES[name]

    def peak(count: int) -> int:
        embeddings, all_alike = pairs(count, 4), (torch.zeros(count, dtype=torch.long),) if ids else ()
        return peak_bytes(lambda: loss_and_gradients(loss, *embeddings, *numbers, ids=all_alike))

    small, large = peak(256), peak(1024)
    assert small > 256 * 4 * 8
    assert large < 5 * small
    assert large < 1024 * 1024 * 8 / 10


@pytest.mark.slow
@each_loss
def test_a_compiled_step_gives_the_same_loss_and_gradients(name):
    loss, *numbers = LOSSES[name]

    def step(image, text, *numbers):
        return loss(F.normalize(image, dim=-1), F.normalize(text * 2, dim=-1), *numbers) * 3

    torch._dynamo.reset()
    compiled = loss_and_gradients(torch.compile(step, backend="aot_eager"), *pairs(), *numbers)
    torch.testing.assert_close(compiled, loss_and_gradients(step, *pairs(), *numbers), **EXACT)


@each_loss
@pytest.mark.parametrize(
    ("image_shape", "text_shape", "ids_shape", "message"),
    [
        ((4, 3), (5, 3), None, r"\(4, 3\).*\(5, 3\)"),
        ((4, 3), (4, 2), None, r"\(4, 3\).*\(4, 2\)"),
        ((3,), (3,), None, "two batches"),
        ((0, 3), (0, 3), None, "at least one pair"),
        ((4, 3), (4, 3), (3,), r"`concept_ids` has shape \(3,\).*\(4,\)"),
        ((4, 3), (4, 3), (4, 1), "one id for each pair"),
    ],
)
def test_shapes_that_do_not_agree_raise(name, image_shape, text_shape, ids_shape, message):
    loss, *numbers = LOSSES[name]
    ids = None if ids_shape is None else torch.zeros(ids_shape, dtype=torch.long)
    with pytest.raises(ValueError, match=message):
        loss(torch.ones(image_shape), torch.ones(text_shape), *numbers, ids)


def test_a_scale_of_several_numbers_raises():
    with pytest.raises(ValueError, match=r"`logit_scale` has shape \(2,\)"):
        contrastive_loss(*pairs(), torch.ones(2))


def share(rows: torch.Tensor) -> torch.Tensor:
    """This rank's rows of the global batch."""
    return rows.chunk(dist.get_world_size())[dist.get_rank()]


def cases(dtype: torch.dtype) -> list[tuple]:
    """(loss, embeddings, its numbers, ids) of each loss, with and without ids: 24 pairs, for 1, 2 or 4 ranks."""
    embeddings = pairs(count=24, dtype=dtype)
    smoothed = (partial(contrastive_loss, label_smoothing=0.1), SCALE)
    return [
        (loss, embeddings, [number.to(dtype) for number in numbers], ids)
        for loss, *numbers in [*LOSSES.values(), smoothed]
        for ids in ((), (IDS.repeat(3),))
    ]


def averaged_on_rank(dtype: torch.dtype) -> list[list[torch.Tensor]]:
    """For each case this rank's loss, its rows' gradients and the numbers', as averaging over the ranks makes them."""
    hf_clip.model.loss_hf_clip._CPU_TILE = (5, 7)
    results = []
    for loss, embeddings, numbers, ids in cases(dtype):
        parts = loss_and_gradients(loss, *map(share, embeddings), *numbers, ids=tuple(map(share, ids)))
        for gradient in parts[3:]:
            dist.all_reduce(gradient)
        # What averages parameters' gradients divides by the number of ranks; an embedding's flows on into parameters.
        results.append([parts[0], *(gradient / dist.get_world_size() for gradient in parts[1:])])
    return results


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_equal_one_process_with_the_whole_batch(world_size, dtype):
    ranks = run_on_ranks(averaged_on_rank, world_size, dtype)
    for number, (loss, embeddings, numbers, ids) in enumerate(cases(torch.float64)):
        whole = loss_and_gradients(loss, *embeddings, *numbers, ids=ids)
        losses, image, text, *of_numbers = zip(*(results[number] for results in ranks), strict=True)
        found = [torch.cat(image), torch.cat(text), *(part[-1] for part in of_numbers)]
        assert len(set(map(float, losses))) == 1, "all ranks must agree whether the loss is finite"
        limit = 1e-10 if dtype == torch.float64 else 1e-4
        for ours, theirs in zip([losses[0], *found], whole, strict=True):
            assert (ours - theirs).norm() <= limit * theirs.norm()


def extreme_on_rank() -> list[torch.Tensor]:
    """A column's largest logit lies on another rank, thousands above its own rows'."""
    image, text = (share(embeddings) for embeddings in pairs(dtype=torch.float32))
    return loss_and_gradients(contrastive_loss, image * 10.0 ** (2 * dist.get_rank()), text, SCALE.float())


@pytest.mark.slow
def test_sums_over_ranks_keep_a_maximum_for_each_column():
    for parts in run_on_ranks(extreme_on_rank, 2):
        assert all(part.isfinite().all() for part in parts)


def peak_on_rank(name: str) -> int:
    hf_clip.model.loss_hf_clip._CPU_TILE = (64, 64)
    loss, *numbers = LOSSES[name]
    image, text = (share(embeddings).clone() for embeddings in pairs(1024, 4))
    return peak_bytes(lambda: loss_and_gradients(loss, image, text, *numbers))


@pytest.mark.slow
@each_loss
def test_no_rank_holds_its_rows_with_all_columns(name):
    for peak in run_on_ranks(peak_on_rank, 2, name):
        assert 512 * 4 * 8 < peak < 512 * 1024 * 8 / 8


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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[3, 2], [2, 0]])
def test_unequal_batches_raise_on_every_rank_instead_of_hanging(sizes):
    for error in run_on_ranks(error_of_rank, 2, *pairs(), sizes, [], timeout_seconds=20):
        assert f"between {min(sizes)} and {max(sizes)} pairs" in error


@pytest.mark.slow
def test_ids_on_some_ranks_only_raise_on_every_rank_instead_of_hanging():
    for error in run_on_ranks(error_of_rank, 2, *pairs(), [2, 2], [1], timeout_seconds=20):
        assert "ids" in error and "every rank" in error
