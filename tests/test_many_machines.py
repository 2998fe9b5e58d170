"""Job scripts and configs of examples/many_machines are ones that Slurm's shell, Kubernetes and Accelerate read."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser, prepare_multi_gpu_env
from accelerate.utils import DistributedType
from torch.distributed.run import get_args_parser

from hf_clip_cli.running import make_parser

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples/many_machines"
CONFIGS = {
    "ddp": (DistributedType.MULTI_GPU, {"WORLD_SIZE": None}),
    "fsdp2": (DistributedType.FSDP, {"FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}),
    "hsdp": (
        DistributedType.FSDP,
        {"PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "4", "PARALLELISM_CONFIG_DP_SHARD_SIZE": "8"},
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_accelerate_reads_the_config_and_tells_the_processes(name):
    kind, told = CONFIGS[name]
    file = EXAMPLES / f"{name}.yaml"
    assert load_config_from_file(str(file)).distributed_type == kind
    arguments = launch_command_parser().parse_args(["--config_file", str(file), "-m", "hf_clip", "train"])
    arguments = _validate_launch_command(arguments)[0]
    content = yaml.safe_load(file.read_text())
    assert arguments.num_processes == content["num_processes"] and arguments.use_fsdp == (name != "ddp")
    environment = prepare_multi_gpu_env(arguments)
    assert {key: environment.get(key) for key in told} == told
    if name == "hsdp":
        assert arguments.use_parallelism_config and 4 * 8 == content["num_processes"]


def commands(text: str) -> list[list[str]]:
    """What follows `hf-clip` or `-m hf_clip` in each command, its lines put together."""
    joined = re.sub(r"\\\n\s*", "", text)
    lines = [line for line in joined.splitlines() if not line.lstrip().startswith("#")]
    found = [re.search(r"(?:^|\s)(?:hf-clip|-m hf_clip) (.*)", line) for line in lines]
    return [shlex.split(each[1].rstrip("'"), comments=True) for each in found if each]


@pytest.mark.parametrize("name", ["slurm", "slurm_elastic"])
def test_the_job_script_is_a_shells_and_its_command_ours(name):
    file = EXAMPLES / f"{name}.sbatch"
    subprocess.run(["bash", "-n", file], check=True)
    text = file.read_text()
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", line) for line in re.findall("^#SBATCH.*", text, re.M))
    [command] = commands(text)
    options = make_parser().parse_args(command)
    assert (options.resume, options.recipe) == ("auto", "$RECIPE")


def test_the_pods_start_a_run_that_goes_on():
    service, job = yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    launcher = get_args_parser().parse_args(container["args"])
    assert int(launcher.nnodes) == job["spec"]["parallelism"] == job["spec"]["completions"]
    assert int(launcher.nproc_per_node) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert launcher.shutdown_timeout < pod["terminationGracePeriodSeconds"]
    # Pods of the job have names below the service's.
    assert service["metadata"]["name"] == pod["subdomain"] == service["spec"]["selector"]["job-name"]
    assert launcher.rdzv_endpoint == f"{job['metadata']['name']}-0.{pod['subdomain']}:29500"
    assert (launcher.module, launcher.training_script) == (True, "hf_clip")
    options = make_parser().parse_args(launcher.training_script_args)
    assert options.resume == "auto"


def test_commands_of_the_page_can_be_parsed():
    page = (ROOT / "docs/many_machines.md").read_text()
    found = commands("\n".join(re.findall("^    (.*)", page, re.M)))
    assert {command[0] for command in found} == {"train", "doctor", "plan"}
    for command in found:
        make_parser().parse_args(command)
    for file in EXAMPLES.iterdir():
        assert file.name in page, file.name
