"""What a run takes before it is started: parameters, memory of each process, arithmetic of a step.

Nothing is downloaded for a model with random weights, no data is opened and no weight is drawn: the towers run on
tensors that have a shape and no content. What their backward pass would keep is counted, with 2 pairs and with 4: the
difference is what a pair takes, and what is left the copies of the weights in half precision. A run on real tensors
keeps the same.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from hf_clip.conversion.confirm import class_of
from hf_clip.model.caption_loss_hf_clip import TILE_NUMBERS
from hf_clip.model.configuration_hf_clip import HFCLIPConfig
from hf_clip.model.loss_hf_clip import _CPU_TILE, _GPU_TILE
from hf_clip.model.modeling_coca_hf_clip import HFCLIPCoCaModel
from hf_clip.model.modeling_hf_clip import HFCLIPModel
from hf_clip.model.modeling_layers_hf_clip import blind

from .build import build_start, model_config
from .captions import CaptionObjective, require_objective
from .config import TrainConfig
from .device import choose_precision, fastest_attention
from .layer_groups import freeze, recompute_activations
from .lora import put_on_adapters
from .native_aspect import in_patches
from .objective import ContrastiveObjective
from .optimizer import hidden_matrices
from .prepare import make_objective
from .recipe_error import RecipeError
from .stages import Stage, stage_recipe, stages_of
from .stream.order import choose_lanes

# Of a device's memory, for what is not counted: its driver, buffers of communication, gaps between tensors, and what
# single operations take on the way.
RESERVE = 0.1

FLOAT = 4
_OPENAI_TOKENS = 49408
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

EXPLANATION = """\
P parameters, L of them learned, M of those by Muon; N processes; B pairs of a batch, b = B / N of a process, m of a
micro-batch; T texts an image (2 with keywords), D dimensions of the shared space; c = 4 bytes a number, 2 in half
precision. GB are 10^9 bytes.

weights          4 P; FSDP2: 4 P / N
weights at work  DDP in half precision: copies that autocast makes, counted; FSDP2: c (2 U + R), where U is the
                 largest layer that is put together (another one is fetched meanwhile) and R what is in none
gradients        4 L; FSDP2: 4 L / N, and while micro-batches add up 4 L
DDP's buckets    4 L on several processes
optimizer        8 (L - M) + 4 M; FSDP2: / N
moving average   4 L with ema_decay; FSDP2: / N
activations      m times what a pair keeps for the backward pass, counted with texts of full length; with
                 gradient_checkpointing also what the largest layer keeps, as it is made again
images         12 m rows columns: a micro-batch in float32
embeddings          4 (1 + T) b D, three times with micro-batches (parts, whole, gradients), else twice
loss             T (twice with mixup) times 4 D (2 B + b), and 5 tiles of 4 min(b, r) min(B, r') bytes, where r and
                 r' are 4,096 on a GPU and 512 and 1,024 on a CPU; 3 tiles of 32 MiB for the caption loss
total            all lines: the first micro-batch's activations are there while the loss is computed
host             3 b rows columns bytes for each batch of images: 3 of them on a GPU, 1 on a CPU, where they are part
                 of the total. To that come data.decoded_cache_gb and 2 x data.shuffle_block undecoded pairs.
arithmetic       forward of each tower, once more with micro-batches (of all but the first) and with
                 gradient_checkpointing, and twice that for backward where any of the tower learns; the loss
                 8 T B^2 D; three times the forward of a decoder for each caption. Two operations to a multiply-add.
fits             at most 90% of the memory: the rest is left for what is not counted. On a CPU, glibc's malloc wastes
                 far more with micro-batches: docs/training.md says how to stop it."""


@dataclass(frozen=True)
class Footprint:
    """What a recipe's model takes, by itself: counts of parameters, bytes, and operations of one forward.

    `unit_parameters` is the largest layer that FSDP2 shards by itself, `rest_parameters` all that is in none.
    `pair_bytes` are activations of one pair, `again_bytes` those of one layer that gradient checkpointing makes again,
    `copy_bytes` the weights in half precision, whatever the batch.
    """

    image_parameters: int
    text_parameters: int
    decoder_parameters: int
    parameters: int
    learned: int
    by_muon: int
    unit_parameters: int
    rest_parameters: int
    pair_bytes: int
    again_bytes: int
    copy_bytes: int
    image_flops: int
    text_flops: int
    decoder_flops: int
    image_learns: bool
    text_learns: bool
    dimensions: int
    image_numbers: int

    @property
    def writes(self) -> bool:
        """Whether there is a decoder, and a caption loss."""
        return self.decoder_parameters > 0


@dataclass(frozen=True)
class MemoryPlan:
    """Of one process, for DDP or FSDP2: bytes by what holds them, their peak, further bytes on the host."""

    lines: dict[str, int]
    total: int
    host: int


def precision_of(config: TrainConfig, device: str) -> str:
    """What `mixed_precision` comes to on the device "cuda" (a GPU that is fast at bf16) or "cpu" (this one)."""
    if config.mixed_precision == "auto" and device == "cuda":
        return "bf16"
    if config.mixed_precision == "fp16" and device == "cpu":
        raise RecipeError("mixed_precision=fp16 needs a CUDA GPU: use bf16 or no, or plan for `device=cuda`.")
    return choose_precision(config.mixed_precision, torch.device(device))


def footprint(config: TrainConfig, device: str = "cuda", stage: Stage | None = None) -> Footprint:
    """Runs the recipe's model without content. Of models that start from weights, these are read for their shape.

    With `stage`, it is of the images, texts and patches of that stage.

    Raises:
        RecipeError: a model that cannot be built. What `build_start` raises.
    """
    kind, shape = _shape(config)
    if stage is not None:
        shape.vision_config.image_size = stage.image_size or shape.vision_config.image_size
        length = shape.text_config.max_position_embeddings
        shape.text_config.max_position_embeddings = stage.text_length or length
        if stage.patch_dropout is not None:
            shape.vision_config.patch_dropout = stage.patch_dropout
    try:
        # PEFT swaps tensors, which those without memory refuse.
        with nullcontext() if config.lora is not None else FakeTensorMode():
            return _footprint(kind, shape, config, device)
    except DataDependentOutputException:
        # Towers of others may look at what a tensor holds: those run on real ones.
        return _footprint(kind, shape, config, device)


def _shape(config: TrainConfig) -> tuple[type[HFCLIPModel], HFCLIPConfig]:
    if config.model.has_own_processor:
        model, _ = build_start(config.model, (), config.seed)
        kind, shape = type(model), model.config
    else:
        shape = model_config(config.model)
        kind = class_of(shape)
        shape.text_config.vocab_size = config.model.vocabulary_size or _OPENAI_TOKENS
        shape.text_config.eos_token_id = shape.text_config.vocab_size - 1
        if kind is HFCLIPCoCaModel:
            shape.text_config.pad_token_id = 0
    _pool_at_highest_id(shape)
    return kind, shape


def _pool_at_highest_id(shape: HFCLIPConfig) -> None:
    """No text is searched for its end, which tokens without content do not have."""
    if shape.text_config.tower == "clip":
        shape.text_config.eos_token_id = 2
        if shape.text_config.pooling == "first_eos":
            shape.text_config.pooling = "eos"


def count_tower_flops(kind: type[HFCLIPModel], shape: HFCLIPConfig) -> tuple[int, int, int]:
    """Operations of one image's and one text's forward in training, and the dimensions of the shared space.

    A decoder's are among the text's.
    """
    _pool_at_highest_id(shape)
    image, text, decoder, dimensions = _flops(kind(shape).train())
    return image, text + decoder, dimensions


def _footprint(kind: type[HFCLIPModel], shape: HFCLIPConfig, config: TrainConfig, device: str) -> Footprint:
    model = kind(shape)
    require_objective(model, config)
    # As `arrange_for_speed` has it, but for the layout in memory, which changes no count.
    precision = precision_of(config, device)
    model.set_attn_implementation(fastest_attention(device, precision))
    freeze(model, config.optimizer)
    if config.lora is not None:
        put_on_adapters(model, config.lora, config.seed)
    model.train()
    objective = make_objective(model, config)
    towers = [(model.vision_model, model.visual_projection), (model.text_model, model.text_projection)]
    image, text = ([each for part in tower for each in part.parameters()] for tower in towers)
    learned = [each for each in model.parameters() if each.requires_grad]
    by_muon = hidden_matrices(model) if config.optimizer.algorithm == "muon" else set()
    units = _units(objective)
    sizes = [_count(unit.parameters()) for unit in units]
    parameters = _count(model.parameters())

    two, layer_two = _kept_bytes(objective, units, 2, precision)
    four, layer_four = _kept_bytes(objective, units, 4, precision)
    pair, again = (four - two) // 2, 0
    copies = two - 2 * pair
    if config.gradient_checkpointing:
        again = max((larger - smaller) // 2 for smaller, larger in zip(layer_two, layer_four, strict=True))
        with warnings.catch_warnings():
            # Its name changes with transformers' next version.
            warnings.simplefilter("ignore", FutureWarning)
            recompute_activations(model, preserve_rng_state=False)
        pair = (_kept_bytes(objective, [], 4, precision)[0] - _kept_bytes(objective, [], 2, precision)[0]) // 2
    image_flops, text_flops, decoder_flops, dimensions = _flops(model)
    return Footprint(
        image_parameters=_count(image),
        text_parameters=_count(text),
        decoder_parameters=_count(_decoder(model)),
        parameters=parameters,
        learned=_count(learned),
        by_muon=_count(each for each in learned if each in by_muon),
        unit_parameters=max(sizes, default=0),
        rest_parameters=parameters - sum(sizes),
        pair_bytes=pair,
        again_bytes=again,
        copy_bytes=copies,
        image_flops=image_flops,
        text_flops=text_flops,
        decoder_flops=decoder_flops,
        image_learns=any(each.requires_grad for each in image),
        text_learns=any(each.requires_grad for each in text),
        dimensions=dimensions,
        image_numbers=3 * shape.vision_config.image_size**2,
    )


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(each.numel() for each in parameters)


def _decoder(model: HFCLIPModel) -> list[nn.Parameter]:
    """The parameters of what writes captions, where the model does."""
    if not isinstance(model, HFCLIPCoCaModel):
        return []
    return [each for part in (model.text_decoder, model.token_projection, model.lm_head) for each in part.parameters()]


def _units(objective: ContrastiveObjective) -> list[nn.Module]:
    """The layers that FSDP2 shards one by one, none within another."""
    names, inside, units = set(objective._no_split_modules), set(), []
    for module in objective.modules():
        if type(module).__name__ in names and module not in inside:
            units.append(module)
            inside.update(module.modules())
    return units


def _inputs(model: HFCLIPModel, size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Images, and texts of full length, as the processor makes them."""
    vision, text = model.config.vision_config, model.config.text_config
    side = vision.image_size
    images = torch.zeros(size, vision.num_channels, side, side).contiguous(memory_format=torch.channels_last)
    inputs: dict[str, Any] = {"pixel_values": images}
    if vision.tower == "naflex":
        side -= side % vision.patch_size
        inputs = in_patches([images[..., :side, :side]], [range(size)], vision.patch_size)
    texts: dict[str, Any] = {"input_ids": torch.full((size, text.max_position_embeddings), text.eos_token_id or 0)}
    if text.tower != "clip":
        texts["attention_mask"] = torch.ones_like(texts["input_ids"])
    return inputs, texts


def _kept_bytes(
    objective: ContrastiveObjective, units: list[nn.Module], size: int, precision: str
) -> tuple[int, list[int]]:
    """Bytes that the forward pass of `size` pairs keeps for backward besides the weights, and those of each unit."""
    weights = {each.untyped_storage()._cdata for each in objective.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            # Held on to: else the next one would take its address, and its number.
            kept[storage._cdata] = storage
        return tensor

    def total() -> int:
        return sum(storage.nbytes() for storage in kept.values())

    images, texts = _inputs(objective.model, size)
    chunks, own = [{name: torch.cat([each] * objective.texts_per_image) for name, each in texts.items()}], {}
    if isinstance(objective, CaptionObjective):
        chunks = [texts] * objective.texts_per_image
        own["image_rows"] = [torch.arange(size)] * objective.captions_per_image
        own["caption_factor"] = torch.ones(())
    half = _DTYPES.get(precision)
    with (
        _totals_of(units, total) as of_units,
        saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=half or torch.bfloat16, enabled=half is not None),
    ):
        # What it returns is held until all is counted.
        outcome = objective(images, chunks, **own)
    del outcome
    return total(), of_units


@contextmanager
def _totals_of(units: list[nn.Module], total: Callable[[], int]) -> Iterator[list[int]]:
    """By how much `total` grows in each unit's forward; filled when the block is left."""
    before, grown, handles = {}, [0] * len(units), []
    for index, unit in enumerate(units):

        def enter(*_, index=index):
            before[index] = total()

        def leave(*_, index=index):
            grown[index] = max(grown[index], total() - before[index])

        handles += [unit.register_forward_pre_hook(blind(enter)), unit.register_forward_hook(blind(leave))]
    try:
        yield grown
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _flops(model: HFCLIPModel) -> tuple[int, int, int, int]:
    """Operations of one image's, one text's and the decoder's forward, and the dimensions of the shared space."""
    # Written out, the counter sees attention's products.
    model.set_attn_implementation("eager")
    images, texts = _inputs(model, 2)
    counts: list[int] = []
    dimensions = 0
    learned = [each for each in model.parameters() if each.requires_grad]
    # Without a graph, a view of a parameter (SigLIP's probe) still says that it has one, and the counter looks for it.
    for each in learned:
        each.requires_grad_(False)
    # A decoder reads all tokens of the towers.
    writes = isinstance(model, HFCLIPCoCaModel)
    outputs = []
    for run, inputs in ((model.get_image_features, images), (model.get_text_features, texts)):
        with FlopCounterMode(display=False) as counter:
            outputs.append(run(**inputs, pooled_only=not writes))
        counts.append(counter.get_total_flops() // 2)
        dimensions = outputs[-1].pooler_output.shape[1]
    counts.append(0)
    if writes:
        image, text = (output.last_hidden_state for output in outputs)
        with FlopCounterMode(display=False) as counter:
            model.lm_head(model.caption_states(text, model.tokens_for_decoder(image))[:, :-1])
        counts[-1] = counter.get_total_flops() // 2
    for each in learned:
        each.requires_grad_(True)
    return counts[0], counts[1], counts[2], dimensions


def _pairs_per_process(config: TrainConfig, processes: int) -> int:
    pairs, left = divmod(config.batch_size, processes)
    if left or not pairs:
        raise RecipeError(
            f"batch_size={config.batch_size} cannot be divided among {processes} processes: set it to "
            f"{max(pairs, 1) * processes}."
        )
    return pairs


def plan_memory(
    config: TrainConfig,
    model: Footprint,
    processes: int,
    *,
    is_sharded: bool,
    micro_batch_size: int | None = None,
    device: str = "cuda",
) -> MemoryPlan:
    """The memory of each process, as EXPLANATION has it.

    Args:
        processes: of the run; `is_sharded` by FSDP2, else DDP.
        micro_batch_size: null takes the process's part of a batch at once. The recipe's is the caller's to pass.

    Raises:
        RecipeError: the batch cannot be divided among the processes.
    """
    pairs = _pairs_per_process(config, processes)
    micro = min(micro_batch_size or pairs, pairs)
    is_cached = micro < pairs
    parts = processes if is_sharded else 1
    compute = FLOAT if precision_of(config, device) == "no" else 2
    texts = config.data.texts_per_image
    gradients = FLOAT * model.learned // parts
    if is_sharded and is_cached:
        gradients += FLOAT * model.learned
    at_work = compute * (2 * model.unit_parameters + model.rest_parameters) if is_sharded else model.copy_bytes
    sides = _GPU_TILE if device == "cuda" else _CPU_TILE
    tile = FLOAT * min(pairs, sides[0]) * min(config.batch_size, sides[1])
    losses = texts * (2 if config.augmentation.mixup else 1)
    caption_tiles = 3 * FLOAT * TILE_NUMBERS if model.writes else 0
    lines = {
        "weights": FLOAT * model.parameters // parts,
        "weights at work": at_work,
        "gradients": gradients,
        "DDP's buckets": 0 if is_sharded or processes == 1 else FLOAT * model.learned,
        "optimizer": (2 * FLOAT * (model.learned - model.by_muon) + FLOAT * model.by_muon) // parts,
        "moving average": FLOAT * model.learned // parts if config.ema_decay else 0,
        "activations": micro * (model.pair_bytes + model.again_bytes),
        "images": FLOAT * micro * model.image_numbers,
        "embeddings": (3 if is_cached else 2) * FLOAT * (1 + texts) * pairs * model.dimensions,
        "loss": losses * FLOAT * model.dimensions * (2 * config.batch_size + pairs) + 5 * tile + caption_tiles,
    }
    host = pairs * model.image_numbers * (3 if device == "cuda" else 1)
    return MemoryPlan(lines, sum(lines.values()) + (host if device == "cpu" else 0), host)


def flops_of_step(config: TrainConfig, model: Footprint, processes: int) -> int:
    """Operations of one update by all processes together."""
    pairs = _pairs_per_process(config, processes)
    micro = min(config.micro_batch_size or pairs, pairs)
    # The first micro-batch keeps its graph, and a batch in one piece is its first.
    forwards = 2 - micro / pairs
    texts = config.data.texts_per_image
    towers = 0
    for flops, learns in ((model.image_flops, model.image_learns), (texts * model.text_flops, model.text_learns)):
        towers += flops * (forwards + (2 + config.gradient_checkpointing) * learns)
    losses = texts * (2 if config.augmentation.mixup else 1)
    # Without a graph nothing is written.
    written = (3 + config.gradient_checkpointing) * config.data.captions_per_image * model.decoder_flops
    return round(config.batch_size * (towers + written + 8 * losses * config.batch_size * model.dimensions))


def largest_micro_batch(
    config: TrainConfig, model: Footprint, processes: int, memory: float, *, is_sharded: bool, device: str = "cuda"
) -> int | None:
    """The largest divisor of a process's part that fits into 90% of `memory` bytes. None: not even one pair does."""
    pairs = _pairs_per_process(config, processes)
    for micro in sorted((each for each in range(1, pairs + 1) if pairs % each == 0), reverse=True):
        made = plan_memory(config, model, processes, is_sharded=is_sharded, micro_batch_size=micro, device=device)
        if made.total <= (1 - RESERVE) * memory:
            return micro
    return None


def describe_plan(
    config: TrainConfig,
    processes: int = 1,
    device: str = "cuda",
    device_memory: float | None = None,
    teraflops: float | None = None,
    gigabytes: float | None = None,
) -> str:
    """Lines for a terminal. `device_memory` in GB, `teraflops` (10^12 operations a second) that a device reaches.

    `gigabytes` (10^9 bytes a second) is what a process sends, and as much receives, over the network.

    Raises:
        RecipeError: what `footprint` and `plan_memory` raise.
    """
    pairs, micro = _pairs_per_process(config, processes), config.micro_batch_size
    model = footprint(config, device)
    ways = {"DDP": False, "FSDP2": True} if processes > 1 else {"alone": False}
    plans = {
        way: plan_memory(config, model, processes, is_sharded=is_sharded, micro_batch_size=micro, device=device)
        for way, is_sharded in ways.items()
    }
    size = min(micro or pairs, pairs)
    pieces = f"in micro-batches of {size:,}" if size < pairs else "at once"
    precision = precision_of(config, device).replace("no", "fp32")
    operations = flops_of_step(config, model, processes)
    decoder = f", {model.decoder_parameters / 1e6:,.1f}M of the decoder" if model.writes else ""
    lines = [
        f"{'parameters':17}{model.image_parameters / 1e6:,.1f}M of images, {model.text_parameters / 1e6:,.1f}M of "
        f"texts{decoder}; {model.learned / 1e6:,.1f}M learn",
        f"{'a step':17}{config.batch_size:,} pairs on {processes:,} process{'es' if processes > 1 else ''}: "
        f"{pairs:,} each, {pieces}",
        f"{'a pair':17}{model.pair_bytes / 1e6:,.1f} MB of activations in {precision}, for {device}",
        "",
        f"{'GB a process':16}" + "".join(f"{way:>10}" for way in ways),
    ]
    for name in next(iter(plans.values())).lines:
        if any(each.lines[name] for each in plans.values()):
            lines.append(f"{name:16}" + "".join(f"{each.lines[name] / 1e9:10.3f}" for each in plans.values()))
    lines += [
        f"{'total':16}" + "".join(f"{each.total / 1e9:10.3f}" for each in plans.values()),
        f"{'host: images':16}" + "".join(f"{each.host / 1e9:10.3f}" for each in plans.values()),
        "",
        f"{'arithmetic':17}{operations / 1e12:,.1f} TFLOP a step, {operations / processes / 1e12:,.1f} a process",
    ]
    if teraflops is not None:
        lines += _times(config, operations / processes / (teraflops * 1e12), teraflops)
    if device_memory is not None:
        for way, is_sharded in ways.items():
            fits = largest_micro_batch(
                config, model, processes, device_memory * 1e9, is_sharded=is_sharded, device=device
            )
            lines.append(f"{f'{device_memory:g} GB, {way}':17}{_verdict(fits, pairs)}")
    lines += _further_lines(config, model, processes, teraflops, gigabytes, device)
    return "\n".join(lines)


def _further_lines(
    config: TrainConfig,
    model: Footprint,
    processes: int,
    teraflops: float | None,
    gigabytes: float | None,
    device: str,
) -> list[str]:
    """What the data must be like, what the network has to do, and each stage."""
    lines = []
    lanes = config.data.lanes or choose_lanes(config.batch_size, None, None)
    if lanes % processes:
        lines.append(f"data.lanes={lanes} cannot be divided among {processes} processes: set a multiple of them.")
    if processes > 1:
        # It is made of what this module counts.
        from .plan_network import describe_network

        lines += ["", *describe_network(config, model, processes, teraflops, gigabytes, device)]
    if config.stages:
        lines += ["", *_stage_lines(config, processes, device)]
    return lines


def _times(config: TrainConfig, seconds: float, teraflops: float) -> list[str]:
    shown = f"{seconds:,.2f}" if seconds >= 0.1 else f"{seconds:.4f}"
    lines = [f"{'time':17}{shown} s a step at {teraflops:g} TFLOP/s, without communication and data"]
    if config.steps is not None and not config.stages:
        pairs = config.steps * config.batch_size
        lines.append(
            f"{'run':17}{config.steps:,} steps, {pairs:,} pairs: {config.steps * seconds / 3600:,.1f} hours of it"
        )
    return lines


def _stage_lines(config: TrainConfig, processes: int, device: str) -> list[str]:
    """The arithmetic of each stage, and of all beside that of as many pairs at the model's full size."""
    lines, spent, full = [], 0.0, 0.0
    whole = footprint(config, device)
    for stage in stages_of(config):
        recipe, steps = stage_recipe(config, stage), stage.last - stage.first
        own = flops_of_step(recipe, footprint(config, device, stage), processes) * steps
        spent, full = spent + own, full + flops_of_step(recipe, whole, processes) * steps
        lines.append(f"{'stage':17}{stage.describe()}: {own / 1e12:,.1f} TFLOP")
    lines.append(
        f"{'all stages':17}{spent / 1e12:,.1f} TFLOP; {full / 1e12:,.1f} if every step were of the model's full size: "
        f"{1 - spent / full:.0%} is saved"
    )
    return lines


def _verdict(micro: int | None, pairs: int) -> str:
    if micro is None:
        return "not even micro_batch_size=1 fits: more processes with FSDP2, or gradient_checkpointing=true"
    return f"micro_batch_size={micro} fits" if micro < pairs else "all of a process's part fits: micro_batch_size=null"
