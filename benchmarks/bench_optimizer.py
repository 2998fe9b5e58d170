"""A step of Muon in float32 and in bf16, and of AdamW, over the matrices of a model.

    python benchmarks/bench_optimizer.py [--quick]

bf16 is what Muon is published with. Where a processor has no instructions for it, it is emulated, and so it is on any
CPU with `--no-onednn`, which turns oneDNN off: Muon chooses float32 there, in the row "as it is chosen". Each side is
a process of its own, one round after the other, medians.
"""

import argparse
import sys

from sides import alternated, print_table, serve

# Rows and columns of a layer's matrices: q, k, v, what follows attention, and both of the MLP.
WIDTHS = {"ViT-B/32, one text layer": 512, "ViT-B/32, one image layer": 768}
SIDES = ("as it is chosen", "Muon, float32", "Muon, bf16", "AdamW")


def work(side: str, width: int, has_onednn: bool):
    """A function that updates a layer's matrices once."""
    import torch

    import hf_clip.training.optimizer as optimizer
    from hf_clip.training.config import OptimizerConfig

    torch.backends.mkldnn.set_flags(has_onednn)
    torch.manual_seed(0)
    shapes = [(width, width)] * 4 + [(4 * width, width), (width, 4 * width)]
    matrices = [torch.nn.Parameter(torch.randn(shape) / width**0.5) for shape in shapes]
    for matrix in matrices:
        matrix.grad = torch.randn_like(matrix)
    if side.startswith("Muon"):
        optimizer.is_fast_at_bf16 = lambda device: side.endswith("bf16")
    told = OptimizerConfig()
    if side == "AdamW":
        return torch.optim.AdamW(matrices, lr=told.learning_rate, fused=True).step
    group = {"params": matrices, "is_muon": True, "lr": told.matrix_learning_rate, "momentum": told.matrix_momentum}
    return optimizer.Muon([{**group, "weight_decay": told.matrix_weight_decay}]).step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--no-onednn", action="store_true", help="as on a processor that emulates bf16")
    parser.add_argument("--quick", action="store_true", help="a layer of width 32, one round")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--width", type=int, help="of a layer, instead of ViT-B/32's: emulated bf16 takes minutes")
    options = parser.parse_args()
    if options.side:
        step = work(options.side, options.width, not options.no_onednn)
        step()
        return serve(step)
    width = 32 if options.quick else options.width
    widths = {f"a layer of width {width}": width} if width else WIDTHS
    for name, width in widths.items():
        shared = ["--width", str(width), *(["--no-onednn"] if options.no_onednn else [])]
        sides = {side: [__file__, "--side", side, *shared] for side in SIDES[: 3 if options.quick else 4]}
        print_table(name, alternated(sides, 1 if options.quick else options.runs))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
