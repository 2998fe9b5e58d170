"""What a recipe leaves to the device and the launcher, decided once, before anything else is made."""

import os
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, is_deepspeed_available
from torch.distributed.fsdp import MixedPrecisionPolicy

from .config import TrainConfig
from .deepspeed import configure_deepspeed, runs_deepspeed
from .device import choose_precision, fastest_device
from .recipe_error import RecipeError
from .stages import stages_of
from .stream.coordination import Coordinator
from .stream.images import jpeg_decoder


@dataclass(frozen=True)
class Decisions:
    """How a recipe runs on this device and these processes.

    Attributes:
        accelerator: Accelerate's, for the device and the launcher's processes.
        precision: "no" (float32), "bf16" or "fp16", of forward and backward.
        pairs_per_process: this process's part of a batch.
        micro_batch_size: pairs whose activations a process holds at once.
        coordinator: what the processes tell each other, and how they wait for each other, beside the sums of a step:
            over gloo, which notices a process that has ended, and takes no time of a GPU.
    """

    accelerator: Accelerator
    precision: str
    pairs_per_process: int
    micro_batch_size: int
    coordinator: Coordinator = field(default_factory=lambda: Coordinator(1))

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and the log."""
        return self.accelerator.is_main_process

    @property
    def processes(self) -> int:
        return self.accelerator.num_processes

    @property
    def reads_ahead(self) -> bool:
        # On a CPU the next batch would only compete with the step for the cores.
        return self.device.type != "cpu"

    def on_any_process(self, *flags: bool) -> list[bool]:
        """Whether each flag is set on any process. Collective."""
        return [count > 0 for count in self.coordinator.sum([int(flag) for flag in flags])]

    def note_on_launcher(self) -> str | None:
        """A warning about restarts of `torchrun` that would not come up again."""
        if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") == "0" or self.processes == 1:
            return None
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            return None
        return (
            "torchrun may start the processes again (--max-restarts), and they would look for those before them: set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment."
        )

    def circumstances(self) -> dict[str, Any]:
        """What the bits of the weights depend on, besides recipe and data."""
        return {
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type,
            "processes": self.processes,
            "threads": torch.get_num_threads(),
            "mixed_precision": self.precision,
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
            "jpeg_decoder": jpeg_decoder(),
        }


def decide(config: TrainConfig) -> Decisions:
    """Takes the fastest device and the launcher's processes, sharded as Accelerate's config has it.

    Raises:
        RecipeError: the recipe wants what this device or this way of launching cannot do.
    """
    device = fastest_device()
    _require_possible(config, device)
    precision = choose_precision(config.mixed_precision, device)
    timeout = timedelta(minutes=config.timeout_minutes)
    accelerator = _make_accelerator(device, precision, timeout)
    pairs_per_process = config.batch_size // accelerator.num_processes
    decisions = Decisions(
        accelerator=accelerator,
        precision=precision,
        pairs_per_process=pairs_per_process,
        micro_batch_size=min(config.micro_batch_size or pairs_per_process, pairs_per_process),
        coordinator=Coordinator(accelerator.num_processes, timeout),
    )
    _require_even_parts(config, decisions)
    if accelerator.is_fsdp2:
        plugin = accelerator.state.fsdp_plugin
        assert plugin is not None
        plugin.mixed_precision_policy = sharded_precision(precision)
    if runs_deepspeed(accelerator):
        configure_deepspeed(accelerator, pairs_per_process)
    return decisions


def _make_accelerator(device: torch.device, precision: str, timeout: timedelta) -> Accelerator:
    # Accelerate keeps the precision of a process's first run, and a second one in the same notebook may have another.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        # With DeepSpeed, whose way is to cast the weights too, the objective casts.
        mixed_precision="no" if _is_set("ACCELERATE_USE_DEEPSPEED") else precision,
        # Without it, Accelerate takes a launcher's processes on a machine with a GPU for separate runs.
        cpu=device.type == "cpu",
        # Position ids never change, and of batch norms' statistics the first process's are kept.
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False),
            InitProcessGroupKwargs(timeout=timeout),
        ],
    )
    for asked_for, is_done in (("FSDP", accelerator.is_fsdp2), ("DEEPSPEED", runs_deepspeed(accelerator))):
        if _is_set(f"ACCELERATE_USE_{asked_for}") and not is_done:
            raise RecipeError(
                f"Accelerate's config asks for {asked_for}, for which it needs several processes and a GPU for each "
                f"({accelerator.num_processes} on {device.type} here): launch with torchrun, which copies the weights "
                "(DDP)."
            )
    return accelerator


def _require_possible(config: TrainConfig, device: torch.device) -> None:
    if config.mixed_precision == "fp16" and device.type != "cuda":
        raise RecipeError(f"mixed_precision=fp16 needs a CUDA GPU, and the device is {device.type}: use bf16 or no.")
    if _is_set("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION", "1") != "2":
        raise RecipeError("Accelerate is set to FSDP's first version: set fsdp_version: 2 in its config.")
    if not _is_set("ACCELERATE_USE_DEEPSPEED"):
        return
    if config.micro_batch_size is not None:
        raise RecipeError(
            f"micro_batch_size={config.micro_batch_size} does not go with DeepSpeed, which cannot run the two passes "
            "of cached gradients: remove micro_batch_size, or launch with DDP or FSDP2."
        )
    if config.mixed_precision == "fp16":
        raise RecipeError("mixed_precision=fp16 does not go with DeepSpeed here: use bf16 or no, or launch with DDP.")
    if not is_deepspeed_available():
        raise RecipeError("Accelerate's config asks for DeepSpeed, which is not installed: pip install deepspeed.")


def _require_even_parts(config: TrainConfig, decisions: Decisions) -> None:
    """Raises RecipeError where images are mixed two by two, and one would have no partner."""
    parts = [(decisions.pairs_per_process, decisions.micro_batch_size)]
    if config.stages:
        sizes = [(stage.batch_size, stage.micro_batch_size) for stage in stages_of(config)]
        of_process = [(batch // decisions.processes, micro) for batch, micro in sizes]
        parts = [(pairs, min(micro or pairs, pairs)) for pairs, micro in of_process]
    pairs, micro = next((part for part in parts if part[0] % 2 or part[1] % 2), parts[0])
    if config.augmentation.mixup and (pairs % 2 or micro % 2):
        raise RecipeError(
            f"augmentation.mixup mixes images two by two, and a process has {pairs} of a batch, in pieces of "
            f"{micro}: make batch_size, a process's part of it and micro_batch_size even, or "
            "set augmentation.mixup=0."
        )


def sharded_precision(precision: str) -> MixedPrecisionPolicy:
    """Layers in half precision, sums of their gradients over micro-batches and processes in float32.

    Accelerate's own policy adds up in half precision too.
    """
    if precision == "no":
        return MixedPrecisionPolicy()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes")
