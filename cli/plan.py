"""`hf-clip plan`: what a run will take, before it is started."""

import argparse

from .arguments import add_verb, amount, positive
from .train import add_recipe, check_recipe, missing_recipe
from .usage import start_library


def add(verbs) -> None:
    parser = add_verb(
        verbs,
        "plan",
        run,
        "what a run will take: parameters, memory of a process, arithmetic of a step",
        "hf-clip plan --recipe emoji --processes 8 --device-memory 80 --set micro_batch_size=8",
        prints_results=True,
    )
    add_recipe(parser)
    processes = "number of processes, one a device (default 1)"
    parser.add_argument("--processes", type=positive, default=1, metavar="N", help=processes)
    devices = "cuda: a GPU that is fast at bf16 (default); cpu: this one"
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help=devices)
    memory = "memory of a device: show which micro_batch_size fits into it"
    parser.add_argument("--device-memory", type=amount, metavar="GB", help=memory)
    speed = "speed of a device in training: show how long a step takes"
    parser.add_argument("--tflops", type=amount, metavar="NUMBER", help=speed)
    network = "10^9 bytes a second that a process sends: show where communication becomes the limit"
    parser.add_argument("--network", type=amount, metavar="GB", help=network)
    parser.add_argument("--explain", action="store_true", help="print the formula of each line")


def run(options: argparse.Namespace) -> int:
    if options.recipe is None and not options.explain:
        raise missing_recipe()
    if options.recipe is not None:
        check_recipe(options.recipe, options.overrides)
    start_library()
    from hf_clip.training import load_recipe
    from hf_clip.training.plan import EXPLANATION, describe_plan
    from hf_clip.training.plan_network import NETWORK_EXPLANATION

    if options.explain:
        print(f"{EXPLANATION}\n\n{NETWORK_EXPLANATION}")
    if options.recipe is not None:
        config = load_recipe(options.recipe, options.overrides)
        speeds = options.device_memory, options.tflops, options.network
        print(describe_plan(config, options.processes, options.device, *speeds))
    return 0
