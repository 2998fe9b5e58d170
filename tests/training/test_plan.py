"""Plans: counts by hand for a tiny model, the bytes that a real forward keeps, and what each switch changes."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch.autograd.graph import saved_tensors_hooks

from hf_clip.model.configuration_hf_clip import read_architectures
from hf_clip.training import RecipeError, load_recipe
from hf_clip.training.build import build_model, build_processor
from hf_clip.training.device import arrange_for_speed
from hf_clip.training.objective import ContrastiveObjective
from hf_clip.training.plan import describe_plan, flops_of_step, footprint, largest_micro_batch, plan_memory
from hf_clip.training.plan_network import plan_network
from hf_clip_cli import main as cli
from hf_clip_cli.running import make_parser
from tests.helpers.counts import soak_count
from tests.helpers.squares import recipe, write_recipe
from tests.helpers.toys import tiny_clip

WIDTH, TOKENS, PATCHES, DIMENSIONS, WORDS = 8, 5, 4, 6, 600
TOWER = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2}
SHAPE = {
    "projection_dim": DIMENSIONS,
    "vision_config": {**TOWER, "image_size": 4, "patch_size": 2},
    "text_config": {**TOWER, "max_position_embeddings": TOKENS},
}
# Four projections of attention with biases, two layers of the MLP, two norms.
LAYER = 4 * (WIDTH * WIDTH + WIDTH) + (2 * 2 * WIDTH * WIDTH + 3 * WIDTH) + 2 * 2 * WIDTH
IMAGE = 3 * 2 * 2 * WIDTH + WIDTH + (PATCHES + 1) * WIDTH + 2 * 2 * WIDTH + LAYER + WIDTH * DIMENSIONS
TEXT = WORDS * WIDTH + TOKENS * WIDTH + LAYER + 2 * WIDTH + WIDTH * DIMENSIONS


@pytest.fixture
def file(tmp_path):
    content = recipe("gone.parquet", model={"vocabulary_size": WORDS, "config": SHAPE})
    return write_recipe(tmp_path / "tiny.yaml", content)


def planned(config, processes=1, is_sharded=False, device="cuda"):
    model = footprint(config, device)
    size = config.micro_batch_size
    return plan_memory(config, model, processes, is_sharded=is_sharded, micro_batch_size=size, device=device)


def test_numbers_of_a_tiny_model_by_hand(file):
    config = load_recipe(file, ["ema_decay=0.9"])
    model, lines = footprint(config), planned(config).lines
    assert (model.image_parameters, model.text_parameters) == (IMAGE, TEXT)
    # And the logit scale.
    parameters = IMAGE + TEXT + 1
    assert model.parameters == model.learned == parameters
    for name, numbers in (("weights", 1), ("gradients", 1), ("optimizer", 2), ("moving average", 1)):
        assert lines[name] == 4 * numbers * parameters
    assert lines["DDP's buckets"] == 0 and lines["weights at work"] < 100
    assert lines["images"] == 4 * 16 * 3 * 4 * 4
    assert lines["embeddings"] == 2 * 4 * 2 * 16 * DIMENSIONS
    assert lines["loss"] == 4 * DIMENSIONS * (2 * 16 + 16) + 5 * 4 * 16 * 16
    # Of products of matrices, two operations to a multiply-add: keys and values of all tokens; of the pooled one,
    # query, attention's two, its output and the MLP's two.
    layer = [2 * (2 * size * WIDTH**2 + 2 * size * WIDTH + 6 * WIDTH**2) for size in (PATCHES + 1, TOKENS)]
    assert model.image_flops == layer[0] + 2 * PATCHES * 3 * 2 * 2 * WIDTH + 2 * WIDTH * DIMENSIONS
    assert model.text_flops == layer[1] + 2 * WIDTH * DIMENSIONS
    forward = 16 * (model.image_flops + model.text_flops)
    assert flops_of_step(config, model, 1) == 3 * forward + 8 * 16 * 16 * DIMENSIONS
    # The first of four micro-batches is embedded once.
    assert flops_of_step(replace(config, micro_batch_size=4), model, 1) == 3.75 * forward + 8 * 16 * 16 * DIMENSIONS


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("tower", ["vit", "convnet"])
def test_activations_are_those_that_real_tensors_keep(file, tmp_path, precision, device, tower):
    if tower == "convnet":
        file = write_recipe(tmp_path / "convnet.yaml", recipe("gone.parquet"))
    config = load_recipe(file, [f"mixed_precision={precision}"])
    counted = footprint(config, device)

    words = ["a red square", "a blue one"]
    processor = build_processor(config.model, words)
    model = build_model(config.model, processor, 0).train()
    arrange_for_speed(model, torch.device(device), precision)
    weights, kept = {each.data_ptr() for each in model.parameters()}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    text = model.config.text_config
    ids = torch.full((6, text.max_position_embeddings), text.eos_token_id)
    side = model.config.vision_config.image_size
    images = torch.zeros(6, 3, side, side).contiguous(memory_format=torch.channels_last)
    with (
        saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"),
    ):
        ContrastiveObjective(model, 0.0)(images, [{"input_ids": ids}])
    real = sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in weights)
    assert counted.copy_bytes + 6 * counted.pair_bytes == pytest.approx(real, rel=0.01)
    # Copies of what enters products of matrices.
    matrices = sum(
        each.numel() for name, each in model.named_parameters() if each.ndim > 1 and "embedding" not in name
    )
    assert counted.copy_bytes == pytest.approx(2 * matrices * (precision == "bf16"), rel=0.1, abs=500)


def test_activations_grow_with_the_micro_batch_alone(file):
    config = load_recipe(file, ["batch_size=64", "data.lanes=1"])
    four, eight = (planned(replace(config, micro_batch_size=size)) for size in (4, 8))
    for name, held in four.lines.items():
        factor = 2 if name in ("activations", "images") else 1
        assert eight.lines[name] == factor * held
    larger = planned(replace(config, micro_batch_size=8, batch_size=128))
    assert larger.lines["activations"] == eight.lines["activations"]
    assert larger.lines["embeddings"] == 2 * eight.lines["embeddings"]
    assert larger.total == sum(larger.lines.values())


def test_sharding_divides_what_is_kept_and_not_what_is_at_work(file):
    config = load_recipe(file, ["batch_size=64", "ema_decay=0.9"])
    model = footprint(config)
    alone, together = planned(config).lines, planned(config, 4).lines
    sharded = planned(config, 4, is_sharded=True).lines
    for name in ("weights", "gradients", "optimizer", "moving average"):
        assert together[name] == alone[name] and sharded[name] == alone[name] // 4
    assert together["DDP's buckets"] == alone["gradients"] and sharded["DDP's buckets"] == 0
    # The token table is the largest that is put together; beside it another one, and what no layer holds.
    assert model.unit_parameters == WORDS * WIDTH + TOKENS * WIDTH
    assert sharded["weights at work"] == 4 * (2 * model.unit_parameters + model.rest_parameters)
    cached = planned(replace(config, micro_batch_size=4), 4, is_sharded=True).lines
    assert cached["gradients"] == sharded["gradients"] + 4 * model.learned


def test_each_switch_takes_away_or_adds_its_part(file):
    config = load_recipe(file, ["model.config.vision_config.num_hidden_layers=4"])
    plain, lines = footprint(config), planned(config).lines
    locked = load_recipe(file, ["optimizer.vision_tower.trainable_groups=0"])
    counted = footprint(locked)
    assert counted.learned == TEXT + 1 and counted.image_parameters == IMAGE
    unlocked = footprint(load_recipe(file))
    assert counted.pair_bytes < unlocked.pair_bytes and not counted.image_learns
    assert flops_of_step(locked, counted, 1) < flops_of_step(locked, unlocked, 1)

    muon = replace(config, optimizer=replace(config.optimizer, algorithm="muon"))
    matrices = 5 * (4 * WIDTH * WIDTH + 2 * 2 * WIDTH * WIDTH)
    assert footprint(muon).by_muon == matrices
    assert planned(muon).lines["optimizer"] == lines["optimizer"] - 4 * matrices

    recomputed = footprint(replace(config, gradient_checkpointing=True))
    assert 0 < recomputed.again_bytes < plain.pair_bytes / 4
    assert recomputed.pair_bytes + recomputed.again_bytes < plain.pair_bytes / 2

    keywords = replace(config, data=replace(config.data, keyword_columns=["words"], keyword_weight=0.5))
    assert plain.pair_bytes < footprint(keywords).pair_bytes < 2 * plain.pair_bytes
    assert planned(keywords).lines["embeddings"] == 1.5 * lines["embeddings"]
    # One contrast after the other in the same tiles.
    assert planned(keywords).lines["loss"] == 2 * lines["loss"] - 5 * 4 * 16 * 16


def test_the_micro_batch_that_fits_is_the_largest(file):
    config = load_recipe(file, ["batch_size=64"])
    model = footprint(config)

    def total(size):
        return plan_memory(config, model, 2, is_sharded=False, micro_batch_size=size).total

    for memory, size in ((total(8) / 0.9, 8), (total(32) / 0.9, 32), (total(1) / 0.9 - 100, None)):
        assert largest_micro_batch(config, model, 2, memory + 1, is_sharded=False) == size
    text = describe_plan(config, 2, device_memory=total(8) / 0.9e9 + 1e-9)
    assert f"{total(32) / 1e9:.3f}" in text and "micro_batch_size=8 fits" in text
    assert "not even micro_batch_size=1 fits" in describe_plan(config, 2, device_memory=1e-6)
    assert "all of a process's part fits" in describe_plan(config, 2, device_memory=1e3)


def test_operations_of_a_published_model():
    config = load_recipe("emoji", ["model={architecture: ViT-B/32}", "micro_batch_size=null"])
    known = next(each for each in read_architectures().values() if each["name"] == "ViT-B/32")
    model = footprint(config)
    assert model.image_parameters == known["parameters"]["image"]

    def spared(tokens: int, width: int) -> float:
        """In the last layer, of the tokens that are not pooled: query, attention's two, output and the MLP."""
        return 2 * (tokens - 1) * (10 * width**2 + 2 * tokens * width) / 1e9

    assert model.image_flops / 1e9 == pytest.approx(known["gflops"]["image"] - spared(50, 768), abs=0.01)
    assert model.text_flops / 1e9 == pytest.approx(known["gflops"]["text"] - spared(77, 512), abs=0.01)


def test_towers_that_look_into_tensors_are_planned_too(tmp_path):
    backbone = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    backbone |= {"intermediate_size": 64, "vocab_size": 540, "max_position_embeddings": 16}
    content = recipe("gone.parquet")
    text = {"tower": "transformers", "hidden_size": 32, "max_position_embeddings": 16, "pooling": "mean"}
    content["model"]["config"]["text_config"] = {**text, "tower_config": backbone}
    model = footprint(load_recipe(write_recipe(tmp_path / "bert.yaml", content)))
    assert model.text_flops > 16 * 2 * 2 * (4 * 32 * 32 + 2 * 32 * 64) and model.pair_bytes > 0


def test_a_model_that_starts_from_weights_has_their_shape(tmp_path):
    model, processor = tiny_clip(["a cat"], 16)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "start")
    file = write_recipe(tmp_path / "start.yaml", recipe("gone.parquet", model={"start_from": str(tmp_path / "start")}))
    assert footprint(load_recipe(file)).parameters == model.num_parameters()


def test_the_command_says_it_all_without_data(file, capsys):
    command = ["plan", "--recipe", str(file), "--processes", "4", "--device-memory", "1", "--tflops", "0.001"]
    assert cli.main([*command, "--set", "micro_batch_size=2", "--set", "batch_size=64"]) == 0
    out = capsys.readouterr().out
    assert "64 pairs on 4 processes: 16 each, in micro-batches of 2" in out
    assert "1 GB, FSDP2" in out and "s a step at 0.001 TFLOP/s" in out
    assert cli.main(["plan", "--explain"]) == 0
    assert "optimizer        8 (L - M) + 4 M" in capsys.readouterr().out
    assert cli.main(["plan", "--recipe", str(file), "--set", "batch_size=64", "--processes", "64"]) == 0
    assert "data.lanes=" in capsys.readouterr().out


def test_processes_must_divide_the_batch(file):
    with pytest.raises(RecipeError, match="batch_size=16 cannot be divided among 32 processes: set it to 32"):
        describe_plan(load_recipe(file), 32)


PAGE = (Path(__file__).parents[2] / "docs/training.md").read_text(encoding="utf-8")


def test_recipes_of_the_page_can_be_read_and_its_commands_parsed(tmp_path):
    tables = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S)]
    recipes = [table for table in tables if "distributed_type" not in table]
    assert len(recipes) == 12
    whole = {"model": {"architecture": "ViT-B/32"}, "data": {"train": ["a.parquet"]}, "steps": 20000}
    for table in recipes:
        content = {**whole, "batch_size": 64, **table}
        if {"epochs", "stages"} & set(table):
            del content["steps"]
        config = load_recipe(write_recipe(tmp_path / "page.yaml", content))
        assert config.epochs == 10 or config.total_steps in (9000, 20000)
    commands = re.findall(r"^    (?:hf-clip|(?:torchrun|accelerate) .*? -m hf_clip train) ([^#\n]+)", PAGE, re.M)
    assert len(commands) >= 8
    for command in commands:
        words = shlex.split(command)
        make_parser().parse_args(["train", *words] if words[0].startswith("--") else words)


ROWS = [row for row in PAGE.splitlines() if re.match(r"\| ViT-B/32 ", row)]


@pytest.mark.parametrize("row", ROWS[: soak_count(1, len(ROWS))])
def test_the_table_of_the_page_is_what_is_computed(row, tmp_path):
    model, processes, micro, *numbers = (cell.strip() for cell in row.strip("|").split("|"))
    content = {"model": {"architecture": model}, "data": {"train": ["a.parquet"]}, "steps": 200, "batch_size": 32768}
    file = write_recipe(tmp_path / "page.yaml", content)
    text = describe_plan(load_recipe(file, [f"micro_batch_size={micro}"]), int(processes), teraflops=100)
    whole = re.search(r"^total +(.*)$", text, re.M)[1].split()
    said = [float(number.replace(",", "")) for number in numbers if number]
    arithmetic, seconds = re.search(r"step, (.*) a process", text)[1], re.search(r"([\d.]+) s a step", text)[1]
    assert said == pytest.approx([float(each.replace(",", "")) for each in (*whole, arithmetic, seconds)], rel=0.005)


def test_bytes_of_the_network_by_hand(file):
    config = load_recipe(file, ["batch_size=64", "micro_batch_size=4"])
    model = footprint(config)
    weights, rows = IMAGE + TEXT + 1, 4 * 64 * DIMENSIONS
    # A ring of 8: seven eighths of what is gathered, and twice that for a sum that all get.
    ddp = plan_network(config, model, 8, "DDP")
    assert ddp.weights == round(2 * 7 / 8 * 4 * weights)
    # Texts there, their gradients back, and a maximum and a sum of two floats for each column and direction.
    assert ddp.loss == round(2 * 7 / 8 * rows + 2 * 7 / 8 * 16 * 64) and ddp.gathered_bytes == rows
    assert ddp.flops == flops_of_step(config, model, 8) // 8
    # Two micro-batches: three forwards and two backwards gather the weights, in float32 as the recipe has it.
    sharded = plan_network(config, model, 8, "FSDP2")
    assert sharded.weights == round(7 / 8 * (4 * weights * 5 + 4 * weights))
    # Four share a copy, and two copies add up a quarter each.
    both = plan_network(config, model, 8, "HSDP", group=4)
    assert both.weights == round(3 / 4 * (4 * weights * 5 + 4 * weights)) + round(2 * 1 / 2 * 4 * weights / 4)
    assert plan_network(config, model, 8, "HSDP", group=8).weights == sharded.weights
    assert ddp.seconds(1e-6, 1e-3) == {
        "arithmetic": ddp.flops / 1e6,
        "weights and gradients": ddp.weights / 1e6,
        "loss": ddp.loss / 1e6,
    }


def test_a_big_run_says_what_becomes_its_limit(tmp_path, capsys):
    """Of 2 billion pairs on 1,024 GPUs: sums of gradients stay what they are, and the loss grows with the batch."""
    content = recipe("gone.parquet", model={"architecture": "ViT-B/32"}, batch_size=131072, steps=15259)
    content["data"]["lanes"] = 1024
    file = write_recipe(tmp_path / "big.yaml", content)
    speeds = ["--tflops", "300", "--network", "25"]
    assert cli.main(["plan", "--recipe", str(file), "--processes", "1024", *speeds]) == 0
    said = capsys.readouterr().out
    assert "15,259 steps, 2,000,027,648 pairs" in said
    rows = {line.split()[0]: line.split() for line in said.splitlines() if re.match(r" +[\d,]+ +\d", line)}
    assert set(rows) == {"8", "64", "512", "1,024", "4,096"}
    # 128 pairs a process: arithmetic grows only by the loss's own, the all-reduce nears twice the gradients.
    assert float(rows["1,024"][2]) == pytest.approx(2 * 1023 / 1024 * 4 * 151.28e6 / 25e9, rel=1e-2)
    assert float(rows["4,096"][3]) == pytest.approx(8 * float(rows["512"][3]), rel=1e-2)
    assert rows["1,024"][4:6] == ["weights", "waits"] and rows["4,096"][4] == "loss"
    assert cli.main(["plan", "--explain"]) == 0
    assert "ring" in capsys.readouterr().out
