"""What is saved or pushed loads where this package is missing, by its own code, and where it is, without trust."""

import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, CLIPTokenizer

from hf_clip import (
    HFCLIPBackbone,
    HFCLIPCoCaConfig,
    HFCLIPCoCaModel,
    HFCLIPConfig,
    HFCLIPImageProcessor,
    HFCLIPModel,
    HFCLIPProcessor,
    HFCLIPSiglipConfig,
    HFCLIPSiglipModel,
    HFCLIPTextModel,
    HFCLIPTokenizer,
    HFCLIPVisionModel,
)
from hf_clip.model import remote_code_hf_clip
from hf_clip.model.modeling_hf_clip import HFCLIPSiglipForImageClassification
from tests.helpers.counts import soak_count
from tests.helpers.mock_hub import running_hub
from tests.helpers.toys import tiny_clip, tiny_coca
from tests.helpers.warm_python import warm_python

LABELS = ["a red square", "something blue"]
ODD = ["Caf&eacute; “X”", "<|endoftext|>", "word " * 99]
CODE = {file.name for file in Path(remote_code_hf_clip.__file__).parent.glob("*_hf_clip.py")}
TOWERS = {
    "vit": {},
    "resnet": {"tower": "resnet", "stem_width": 8, "stage_depths": [1, 1, 1, 1], "num_attention_heads": 4},
    "convnet": {
        "tower": "convnet",
        "stem_width": 8,
        "stage_widths": [16, 32],
        "stage_depths": [1, 1],
        "norm_group_size": 8,
        "hidden_size": 32,
    },
    "naflex": {"tower": "naflex", "num_patches": 16, "projection_type": "linear"},
}

# Loads, scores, saves again, and scores what it saved.
PROGRAM = """
import json
import sys

sys.modules["hf_clip"] = None  # to import it raises ImportError
import torch
import transformers
from PIL import Image
from transformers import (
    AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoModelForZeroShotImageClassification,
    AutoProcessor, AutoTokenizer, pipeline,
)

def scores(source):
    trust = {"trust_remote_code": True}
    model = AutoModelForZeroShotImageClassification.from_pretrained(source, **trust).eval()
    processor = AutoProcessor.from_pretrained(source, **trust)
    inputs = processor(images=Image.new("RGB", (40, 32), "red"), text=LABELS, return_tensors="pt")
    tokenizer = AutoTokenizer.from_pretrained(source, **trust)
    assert torch.equal(tokenizer(LABELS, padding=True, return_tensors="pt")["input_ids"], inputs["input_ids"])
    ids = [tokenizer(ODD)["input_ids"], processor.tokenizer(ODD)["input_ids"]]
    apart = AutoImageProcessor.from_pretrained(source, **trust)(Image.new("RGB", (40, 32), "red"), return_tensors="pt")
    assert torch.equal(apart["pixel_values"], inputs["pixel_values"])
    same = AutoModel.from_pretrained(source, **trust)
    for thing in (model, same, processor, AutoConfig.from_pretrained(source, **trust)):
        assert type(thing).__module__.startswith("transformers_modules"), thing
    assert type(same).__name__ == type(model).__name__
    # The config names the pipeline's task.
    classify = pipeline(model=source, **trust)
    found = classify(Image.new("RGB", (40, 32), "red"), candidate_labels=LABELS, templates=["{}"])
    assert type(classify).__name__ == "HFCLIPZeroShotPipeline"
    with torch.no_grad():
        logits = model(**inputs).logits_per_image
    assert type(found[0]) is dict and {row["label"] for row in found} == set(LABELS)
    if "coca" in source:
        writes = AutoModelForImageTextToText.from_pretrained(source, **trust)
        logits = torch.cat([logits[0], writes.generate(inputs["pixel_values"], max_new_tokens=4)[0]])
    return model, processor, logits, ids

def first_tensor(output):
    return output if isinstance(output, torch.Tensor) else first_tensor(output[0])

found, odd_ids = {}, {}
ODD = json.loads(open("odd_texts.json").read())
LABELS, outputs, saved_again = sys.argv[1:3], sys.argv[3], json.loads(sys.argv[4])
for source in sys.argv[5:]:
    model, processor, found[source], odd_ids[source] = scores(source)
    if source not in saved_again:
        continue
    again = f"again/{source.strip('/').replace('/', '-')}"
    model.save_pretrained(again)
    processor.save_pretrained(again)
    found[f"{source} again"] = scores(again)[2]
for kind, (source, given) in torch.load("parts.pt").items():
    part = getattr(transformers, kind).from_pretrained(source, trust_remote_code=True).eval()
    assert type(part).__module__.startswith("transformers_modules"), part
    with torch.no_grad():
        found[kind] = first_tensor(part(given))
torch.save(found, outputs)
json.dump(odd_ids, open("odd_ids.json", "w"))
"""


def tiny(tower: str, config_class=HFCLIPConfig) -> tuple[HFCLIPModel, HFCLIPProcessor]:
    if config_class is HFCLIPCoCaConfig:
        return tiny_coca(LABELS)
    model, processor = tiny_clip(LABELS)
    vision = model.config.vision_config.to_dict()
    if tower == "resnet":
        vision["hidden_size"] = 256
    config = config_class(
        text_config=model.config.text_config.to_dict(),
        vision_config={**vision, **TOWERS[tower]},
        projection_dim=16,
    )
    if tower == "naflex":
        processor.image_processor = HFCLIPImageProcessor(max_num_patches=20, patch_size=8)
    torch.manual_seed(1)
    return (HFCLIPSiglipModel if config_class is HFCLIPSiglipConfig else HFCLIPModel)(config).eval(), processor


def expected_scores(model, processor) -> torch.Tensor:
    inputs = processor(images=Image.new("RGB", (40, 32), "red"), text=LABELS, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits_per_image
    if isinstance(model, HFCLIPCoCaModel):
        logits = torch.cat([logits[0], model.generate(inputs["pixel_values"], max_new_tokens=4)[0]])
    return logits


def without_the_package(
    folder: Path,
    sources: list[str],
    environment: dict[str, str],
    saved_again: Sequence[str] = (),
    parts: dict[str, tuple[str, torch.Tensor]] | None = None,
) -> dict:
    """The scores by each source, and by what was saved again from some; of parts, by Auto class, their output."""
    import os

    torch.save(parts or {}, folder / "parts.pt")
    (folder / "program.py").write_text(PROGRAM)
    (folder / "odd_texts.json").write_text(json.dumps(ODD))
    command = [*warm_python("libraries"), "program.py", *LABELS, "outputs.pt", json.dumps(saved_again), *sources]
    completed = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
    )
    assert completed.returncode == 0, completed.stderr
    return torch.load(folder / "outputs.pt", weights_only=True)


def saved_parts(repositories: Path) -> tuple[dict[str, tuple[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """Where each part lies that an Auto class makes, and what it is given, by that class; and what it makes of it."""
    model, processor = tiny("vit")
    ids, pixels = processor(text=LABELS, return_tensors="pt")["input_ids"], torch.rand(2, 3, 32, 32)
    model.save_pretrained(repositories / "whole")
    image_tower = HFCLIPVisionModel.from_pretrained(repositories / "whole").eval()
    classifier = HFCLIPSiglipForImageClassification(tiny("vit", HFCLIPSiglipConfig)[0].config).eval()
    for name, part in (("text", model.text_model), ("image", image_tower), ("classifier", classifier)):
        part.save_pretrained(repositories / name)
    with torch.no_grad():
        tokens = image_tower(pixels).last_hidden_state
        expected = {
            "AutoModelForTextEncoding": model.text_model(ids).last_hidden_state,
            "AutoModel": tokens,
            "AutoBackbone": HFCLIPBackbone.from_pretrained(repositories / "whole").eval()(pixels).feature_maps[0],
            "AutoModelForImageClassification": classifier(pixels).logits,
        }
    names = ("text", "image", "image", "classifier")
    given = [ids, pixels, pixels, pixels]
    return {kind: (f"owner/{name}", one) for kind, name, one in zip(expected, names, given, strict=True)}, expected


def test_every_kind_of_model_loads_by_its_code_and_can_be_saved_again(tmp_path):
    expected = {}
    full = [("convnet", HFCLIPConfig), ("vit", HFCLIPConfig), ("naflex", HFCLIPConfig), ("vit", HFCLIPSiglipConfig)]
    for name, kind in [("resnet", HFCLIPConfig), ("convnet", HFCLIPCoCaConfig), *soak_count([], full)]:
        model, processor = tiny(name, kind)
        folder = tmp_path / f"{name}-{kind.model_type}"
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        expected[folder.name] = expected_scores(model, processor)
    model, processor = tiny("naflex", HFCLIPSiglipConfig)
    model.save_pretrained(tmp_path / "repository")
    processor.save_pretrained(tmp_path / "repository")
    expected["owner/model"] = expected_scores(model, processor)
    parts, made = saved_parts(tmp_path / "parts")
    repositories = {source: tmp_path / "parts" / source.partition("/")[2] for source, _ in parts.values()}
    with running_hub({"owner/model": tmp_path / "repository", **repositories}) as hub:
        saved_again = [name for name in expected if not name.startswith("resnet")]
        found = without_the_package(tmp_path, list(expected), hub.environment(tmp_path / "home"), saved_again, parts)
    expected |= {f"{name} again": expected[name] for name in saved_again} | made
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    ids = processor.tokenizer(ODD)["input_ids"]
    assert all(found == [ids, ids] for found in json.loads((tmp_path / "odd_ids.json").read_text()).values())
    for again in (tmp_path / "again").iterdir():
        assert CODE <= {file.name for file in again.iterdir()}
    # What was saved again stands on its own: it does not refer to the repository that it came from.
    again = tmp_path / "again" / "owner-model"
    assert "owner" not in (again / "config.json").read_text() + (again / "tokenizer_config.json").read_text()


def test_every_file_of_code_is_listed_as_one_that_goes_along():
    listed = re.findall(r"^    from \.(\w+) import (\w+)$", remote_code_hf_clip.__doc__, re.M)
    assert {f"{module}.py" for module, _ in listed} == CODE - {"remote_code_hf_clip.py"}
    for module, name in listed:
        assert hasattr(__import__(f"hf_clip.model.{module}", fromlist=[name]), name)


def test_the_parts_saved_alone_bring_their_code(tmp_path):
    model, processor = tiny_clip(LABELS)
    for name, part in {"tokenizer": processor.tokenizer, "processor": processor, "config": model.config}.items():
        part.save_pretrained(tmp_path / name)
        assert CODE <= {file.name for file in (tmp_path / name).iterdir()}
    model.text_model.save_pretrained(tmp_path / "text")
    auto_map = json.loads((tmp_path / "text" / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModel"] == f"modeling_text_hf_clip.{HFCLIPTextModel.__name__}"


def test_where_the_package_is_a_config_is_the_same_saved_or_not(tmp_path):
    model, _ = tiny_clip(LABELS)
    before = model.config.to_dict()
    model.config.save_pretrained(tmp_path)
    assert model.config.to_dict() == before
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["auto_map"] and saved["custom_pipelines"]
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert not hasattr(loaded, "auto_map") and not hasattr(loaded, "custom_pipelines")


def test_a_users_subclass_does_not_name_itself_with_code_that_is_not_there(tmp_path):
    class Mine(HFCLIPTokenizer):
        pass

    Mine().save_pretrained(tmp_path)
    assert "auto_map" not in json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert not list(tmp_path.glob("*.py"))


def test_transformers_own_classes_read_the_folder_as_before(tmp_path):
    _, processor = tiny_clip(LABELS)
    processor.save_pretrained(tmp_path)
    ids = processor.tokenizer("a red square")["input_ids"]
    assert CLIPTokenizer.from_pretrained(tmp_path)("a red square")["input_ids"] == ids


@pytest.mark.parametrize("name", sorted(CODE))
def test_no_file_of_code_needs_the_package_by_name(name):
    text = (Path(remote_code_hf_clip.__file__).parent / name).read_text(encoding="utf-8")
    # As transformers does, which lets a file try to import what may be missing.
    required = re.sub(r"\s*try\s*:.*?except.*?:", "", text, flags=re.DOTALL)
    assert not re.search(r"^\s*(from|import) hf_clip\b", required, re.M)
