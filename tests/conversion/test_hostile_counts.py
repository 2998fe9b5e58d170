"""What a config, a processor or a tokenizer says is acted on only as far as the weights confirm it.

A number costs its author nothing: `num_labels: 300000000` once took 20 GB. Every `load` of such a folder ends within
5 seconds and 300 MB over the size of its files, measured in a process of its own.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_clip import HFCLIPConfig, HFCLIPForImageClassification, HFCLIPModel, load
from hf_clip.conversion import ConversionError
from hf_clip.conversion.confirm import refuse_absurd_counts, refuse_unconfirmed_counts
from hf_clip.conversion.converting import convert
from hf_clip.conversion.safe_torch.weights import read_weights
from tests.helpers.checkpoints import TEXTS
from tests.helpers.toys import tiny_clip
from tests.helpers.warm_python import warm_python

ROOT = Path(__file__).parents[2]
MAX_SECONDS, MAX_MEGABYTES = 5, 300

HUGE = 10**9
FIXED = {"strategy": {"Fixed": HUGE}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0}
TOKEN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
# Format, file, place in it, value.
CASES = [
    *(
        (form, "config.json", place, value)
        for form in ("hf_clip", "transformers")
        for place, value in [
            ("num_labels", 300_000_000),
            ("text_config.num_labels", 300_000_000),
            ("text_config.num_hidden_layers", 1_000_000),
            ("vision_config.num_hidden_layers", 50_000),
            ("text_config.vocab_size", HUGE),
            ("text_config.vocab_size", 1_000_000),
            ("text_config.hidden_size", 10**12),
            ("vision_config.intermediate_size", 1_000_000),
            ("vision_config.image_size", HUGE),
            ("vision_config.image_size", 800_000),
            ("text_config.max_position_embeddings", HUGE),
            ("projection_dim", 10**10),
            ("id2label", {str(index): "x" for index in range(250_000)}),
            ("id2label", {str(index): "x" for index in range(20_000)}),
            ("vision_config.tower", "resnet"),
            ("vision_config.stage_depths", [HUGE] * 4),
        ]
    ),
    *(
        ("open_clip", "open_clip_config.json", f"model_cfg.{place}", value)
        for place, value in [
            ("vision_cfg.layers", HUGE),
            ("vision_cfg.layers", [HUGE, 1, 1, 1]),
            ("text_cfg.layers", 50_000),
            ("text_cfg.vocab_size", HUGE),
            ("text_cfg.context_length", HUGE),
            ("vision_cfg.image_size", HUGE),
            ("embed_dim", 10**12),
            ("vision_cfg.mlp_ratio", 1e12),
        ]
    ),
    *(
        ("hf_clip", "processor_config.json", place, value)
        for place, value in [
            ("image_processor.size", {"shortest_edge": HUGE}),
            ("image_processor.crop_size", {"height": HUGE, "width": HUGE}),
            ("image_processor.do_resize", False),
        ]
    ),
    ("transformers", "processor_config.json", "image_processor.crop_size", {"height": HUGE, "width": HUGE}),
    *(
        ("hf_clip", "tokenizer.json", place, value)
        for place, value in [
            ("padding", FIXED | {"pad_token": "a"}),
            ("model.vocab", {"a": 4 * HUGE}),
            ("model.vocab", {str(index): index for index in range(300_000)}),
            ("added_tokens", [TOKEN | {"id": HUGE, "content": "zz"}]),
        ]
    ),
    ("hf_clip", "tokenizer_config.json", "model_max_length", 10**30),
]

PROGRAM = """
import json, re, resource, sys, time
from pathlib import Path
from hf_clip import HFCLIPConfig, HFCLIPForImageClassification, HFCLIPModel, load

def kilobytes(kind):
    return int(re.search(kind + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

root, cases = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
for folder in root.iterdir():
    load(folder)
# What goes further ends with a MemoryError, not with the machine.
limit = 1024 * kilobytes("VmSize") + 2**30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for form, name, place, value in cases:
    folder = root / form
    file = folder / name
    before = file.read_text()
    content = target = json.loads(before)
    *outer, last = place.split(".")
    for key in outer:
        target = target[key]
    target[last] = value
    file.write_text(json.dumps(content))
    size = sum(part.stat().st_size for part in folder.iterdir())
    peak, start = kilobytes("VmHWM"), time.monotonic()
    try:
        model, processor = load(folder)
        answer = "loaded"
        model.encode_text(processor(text=["a photo of a cat"], return_tensors="pt")["input_ids"])
    except ValueError as error:
        answer = f"{type(error).__name__}: {error}"
    seconds, megabytes = time.monotonic() - start, (kilobytes("VmHWM") - peak - size / 1024) / 1024
    print(json.dumps([form, name, place, answer, seconds, megabytes]), flush=True)
    file.write_text(before)
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A small model and its processor: tests change copies of the folder."""
    folder = tmp_path_factory.mktemp("saved")
    for part in tiny_clip(TEXTS):
        part.save_pretrained(folder)
    return folder


def write_folders(saved: Path, root: Path) -> None:
    """The same small model in three formats."""
    shutil.copytree(saved, root / "hf_clip")
    for form in ("transformers", "open_clip"):
        convert(root / "hf_clip", to=form, output_dir=root / form)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak of a process is read from /proc")
def test_what_the_weights_do_not_confirm_is_refused_within_time_and_memory(saved, tmp_path):
    write_folders(saved, tmp_path / "folders")
    (tmp_path / "cases.json").write_text(json.dumps(CASES))
    done = subprocess.run(
        [*warm_python(), "-c", PROGRAM, tmp_path / "folders", tmp_path / "cases.json"],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(CASES)
    harmless = ("id2label", "image_processor.do_resize", "padding", "model_max_length")
    for form, name, place, answer, seconds, megabytes in results:
        assert seconds <= MAX_SECONDS and megabytes <= MAX_MEGABYTES, (form, place, answer, seconds, megabytes)
        if answer == "loaded":
            assert place in harmless, (form, name, place)
        else:
            assert answer.startswith("ConversionError: ") and "\n" not in answer
            assert str(tmp_path / "folders" / form) in answer, answer


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_the_names_and_shapes_of_weights_bound_what_a_config_may_ask(suffix, tmp_path):
    """Read from the header or the archive's records: no tensor is."""
    file = tmp_path / f"weights.{suffix}"
    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros(5, dtype=torch.float16)}
    (save_file if suffix == "safetensors" else torch.save)(tensors, file)
    outline = read_weights(file, on_meta=True)
    assert {name: (tensor.shape, tensor.dtype, tensor.device.type) for name, tensor in outline.tensors.items()} == {
        name: (tensor.shape, tensor.dtype, "meta") for name, tensor in tensors.items()
    }
    refuse_unconfirmed_counts(
        {"num_hidden_layers": 2, "towers": [{"depths": [1, 1]}], "eos_token_id": 10**9}, outline, file
    )
    for settings in ({"num_hidden_layers": 3}, {"towers": [{"depths": [2, 1]}]}, {"text": {"vocab_size": 2**20 + 1}}):
        with pytest.raises(ConversionError, match="is more than the weights hold, which are 2 tensors of 11 numbers"):
            refuse_unconfirmed_counts(settings, outline, file)
    with pytest.raises(ConversionError, match="tower_config.num_labels=60000"):
        refuse_absurd_counts({"tower_config": {"id2label": dict.fromkeys(map(str, range(60_000)))}}, file)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_labels": 300_000_000},
        {"text_config": {"num_labels": 300_000_000}},
        {"text_config": {"num_hidden_layers": 1_000_000}},
        {"vision_config": {"num_hidden_layers": 1_000_000}},
    ],
    ids=str,
)
def test_from_pretrained_makes_no_lists_of_what_no_model_has(fields, saved, tmp_path):
    """It does not see the weights first."""
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    for key, value in fields.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    file.write_text(json.dumps(config))
    for load_class in (HFCLIPConfig, HFCLIPModel, HFCLIPForImageClassification):
        with pytest.raises(ValueError, match="any model"):
            load_class.from_pretrained(tmp_path)


def test_a_config_of_many_layers_does_not_make_them(saved, tmp_path):
    """The making of the model ends at a number of parameters that is near the file's."""
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    # As many layers as tensors are believed at first.
    config["vision_config"]["num_hidden_layers"] = len(load_file(tmp_path / "model.safetensors"))
    file.write_text(json.dumps(config))
    with pytest.raises(ConversionError, match="more than .* parameters, the weights are .* tensors"):
        load(tmp_path)
