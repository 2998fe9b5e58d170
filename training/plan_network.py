"""What processes send each other in a step, and what of a step is the limit as their number grows.

Bytes are those that each process sends, and as many receive, in rings: (N - 1) / N of what is gathered or scattered,
twice that for a sum that all get. What a network really does beside arithmetic is not known here: each part's time is
given by itself, and a step's as the longest and as the sum of them.
"""

from dataclasses import dataclass, replace

from .config import TrainConfig
from .plan import FLOAT, Footprint, flops_of_step, precision_of

NETWORK_EXPLANATION = """\
all-reduce       DDP: 2 (N - 1) / N of 4 L bytes, once a step
gather, scatter  FSDP2: (N - 1) / N of c P bytes to gather the weights, for each forward and each backward of each
                 micro-batch (3 each but the first, 2 for that), and of 4 L bytes to scatter the gradients, once a step
HSDP             of G processes that share one copy: FSDP2's with G for N, and DDP's of 4 L / G bytes among N / G
loss             T times (N - 1) / N of 4 B D bytes, to gather the texts and to scatter their gradients, and
                 2 (N - 1) / N of 16 B for the sums of columns (softmax). All processes get all texts: N b of them
ring             a loss that passes texts from neighbor to neighbor, each piece while the one before is multiplied:
                 12 b D bytes a piece (forward; backward with gradients) and 8 b^2 D operations. It "hides" where those
                 take longer. It is not built: the column says whether it would help
limit            the longest of arithmetic, weights and gradients, and loss"""


@dataclass(frozen=True)
class NetworkPlan:
    """Bytes that a process sends in a step, by what needs them; its part of the arithmetic; what all texts hold.

    `ring_piece_bytes` and `ring_piece_flops` are of one of the N - 1 pieces of a ring.
    """

    weights: int
    loss: int
    flops: int
    gathered_bytes: int
    ring_piece_bytes: int
    ring_piece_flops: int

    def seconds(self, teraflops: float, gigabytes: float) -> dict[str, float]:
        """By part, at a device's 10^12 operations and a process's 10^9 bytes a second."""
        return {
            "arithmetic": self.flops / (teraflops * 1e12),
            "weights and gradients": self.weights / (gigabytes * 1e9),
            "loss": self.loss / (gigabytes * 1e9),
        }

    def ring_hides(self, teraflops: float, gigabytes: float) -> bool:
        """Whether a ring's piece would come while the one before is worked on."""
        return self.ring_piece_bytes / (gigabytes * 1e9) <= self.ring_piece_flops / (teraflops * 1e12)


def plan_network(
    config: TrainConfig, model: Footprint, processes: int, way: str, *, group: int = 8, device: str = "cuda"
) -> NetworkPlan:
    """As NETWORK_EXPLANATION has it.

    Args:
        way: "DDP", "FSDP2", or "HSDP", in which `group` processes share one copy of the weights.

    Raises:
        RecipeError: the batch cannot be divided among the processes.
    """
    pairs = config.batch_size // processes
    micro = min(config.micro_batch_size or pairs, pairs)
    pieces = -(-pairs // micro)
    compute = FLOAT if precision_of(config, device) == "no" else 2
    passes = 3 * pieces - 1
    shards = {"DDP": 1, "FSDP2": processes, "HSDP": min(group, processes)}[way]
    copies = processes // shards
    sharded = round((shards - 1) / shards * (compute * model.parameters * passes + FLOAT * model.learned))
    summed = round(2 * (copies - 1) / copies * FLOAT * model.learned / shards)
    texts = config.data.texts_per_image * (2 if config.augmentation.mixup else 1)
    others = (processes - 1) / processes
    rows = FLOAT * config.batch_size * model.dimensions
    loss = texts * (2 * others * rows + 2 * others * 4 * FLOAT * config.batch_size)
    return NetworkPlan(
        weights=sharded + summed,
        loss=round(loss),
        flops=flops_of_step(config, model, processes) // processes,
        gathered_bytes=texts * rows,
        ring_piece_bytes=3 * FLOAT * pairs * model.dimensions,
        # Forward and backward score each tile, and two more products give its gradients.
        ring_piece_flops=8 * pairs * pairs * model.dimensions,
    )


def describe_network(
    config: TrainConfig,
    model: Footprint,
    processes: int,
    teraflops: float | None,
    gigabytes: float | None,
    device: str,
) -> list[str]:
    """Lines for a terminal; times and the limit where both speeds are given."""
    ways = ("DDP", "FSDP2") if processes <= 8 else ("DDP", "FSDP2", "HSDP")
    lines = [f"{'GB sent a step':24}" + "".join(f"{way:>10}" for way in ways)]
    plans = {way: plan_network(config, model, processes, way, device=device) for way in ways}
    for name in ("weights", "loss"):
        shown = {"weights": "weights and gradients", "loss": "loss"}[name]
        lines.append(f"{shown:24}" + "".join(f"{getattr(each, name) / 1e9:10.3f}" for each in plans.values()))
    lines.append(f"{'texts of all, held':24}{plans['DDP'].gathered_bytes / 1e9:10.3f} GB")
    if teraflops is None or gigabytes is None:
        return [*lines, "Give the speeds of a device and of its network for times and the limit."]
    lines += ["", f"{'s a step':24}" + "".join(f"{way:>10}" for way in ways)]
    times = {way: plan.seconds(teraflops, gigabytes) for way, plan in plans.items()}
    for name in next(iter(times.values())):
        lines.append(f"{name:24}" + "".join(f"{each[name]:10.4f}" for each in times.values()))
    lines.append(f"{'all, none hidden':24}" + "".join(f"{sum(each.values()):10.4f}" for each in times.values()))
    lines.append(f"{'limit':24}" + "".join(f"{limit_of(each):>10}" for each in times.values()))
    lines += ["", *_growth(config, model, processes, teraflops, gigabytes, device)]
    return lines


def limit_of(seconds: dict[str, float]) -> str:
    """The part that takes longest, in one word."""
    return {"arithmetic": "compute", "weights and gradients": "weights", "loss": "loss"}[
        max(seconds, key=lambda name: seconds[name])
    ]


def _growth(
    config: TrainConfig, model: Footprint, processes: int, teraflops: float, gigabytes: float, device: str
) -> list[str]:
    """The same recipe on other numbers of processes, by DDP: with its batch, and with a batch that grows with them."""
    pairs = config.batch_size // processes
    lines = [
        f"DDP, with {pairs:,} pairs a process (the batch grows)  and with {config.batch_size:,} pairs in all",
        f"{'processes':>10}{'compute s':>11}{'weights s':>11}{'loss s':>9}  {'limit':9}{'ring':6}"
        f"{'compute s':>11}{'weights s':>11}{'loss s':>9}  limit",
    ]
    counts = sorted({8, 64, 512, 1024, 4096, processes})
    for count in counts:
        grown = replace(config, batch_size=pairs * count)
        row = f"{count:10,}{_row(grown, model, count, teraflops, gigabytes, device, has_ring=True)}"
        if config.batch_size % count == 0:
            row += _row(config, model, count, teraflops, gigabytes, device)
        lines.append(row.rstrip())
    return lines


def _row(
    config: TrainConfig,
    model: Footprint,
    processes: int,
    teraflops: float,
    gigabytes: float,
    device: str,
    has_ring: bool = False,
) -> str:
    plan = plan_network(config, model, processes, "DDP", device=device)
    seconds = plan.seconds(teraflops, gigabytes)
    numbers = f"{seconds['arithmetic']:11.4f}{seconds['weights and gradients']:11.4f}{seconds['loss']:9.4f}"
    ring = ("hides" if plan.ring_hides(teraflops, gigabytes) else "waits") if has_ring else ""
    return f"{numbers}  {limit_of(seconds):9}{ring:6}"
