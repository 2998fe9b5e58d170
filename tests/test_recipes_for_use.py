"""What docs/recipes_for_use.md says runs: the programs of each section, with a small model."""

import io
import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CLIPTextModel, Trainer, TrainingArguments

import hf_clip
from hf_clip_cli.running import make_parser
from tests.helpers.counts import soak_count
from tests.helpers.toys import tiny_clip
from tests.tools.test_diffusers import stable_diffusion

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/recipes_for_use.md").read_text(encoding="utf-8")
NAME = "openai/clip-vit-base-patch32"
CAPTIONS = ["a red apple", "a snowman", "a photo of a dog, a cat and a bird."] * 2

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with a small model."""
    folder = tmp_path_factory.mktemp("recipes") / "small"
    model, processor = tiny_clip(CAPTIONS)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)


def run(title: str, small: Path, also: dict[str, str] | None = None) -> dict:
    """The names that the programs of a section leave; `also` are further texts to replace in them."""
    [section] = [part for part in PAGE.split("\n## ") if part.startswith(title)]
    names: dict = {"__name__": "recipe"}
    for code in re.findall(r"^```python\n(.*?)^```", section, re.M | re.S):
        for text, instead in {NAME: str(small), **(also or {})}.items():
            code = code.replace(text, instead)
        exec(compile(code, "recipes_for_use.md", "exec"), names)  # noqa: S102
    return names


def test_every_section_is_run_here():
    tested = Path(__file__).read_text(encoding="utf-8")
    titles = re.findall(r"^## (.*)$", PAGE, re.M)
    assert titles and all(f'"{title}"' in tested for title in titles)


def test_the_service_answers(place, small):
    from fastapi.testclient import TestClient

    app = run("A web service, by FastAPI", small)["app"]
    client = TestClient(app)
    photo = io.BytesIO()
    Image.new("RGB", (40, 32), "red").save(photo, "PNG")
    answer = client.post("/classify", content=photo.getvalue())
    assert answer.status_code == 200 and len(answer.json()) == 2 and set(answer.json()[0]) == {"label", "score"}
    broken = client.post("/classify", content=b"no image")
    assert broken.status_code == 400 and "no image" not in broken.json()["detail"]


def test_the_page_answers(place, small):
    demo = run("A page to try it, by Gradio", small)["demo"]
    scores = demo.fn(Image.new("RGB", (40, 32), "red"), "a dog, a cat")
    assert set(scores) == {"a dog", "a cat"} and sum(scores.values()) == pytest.approx(1)


def test_lora_trains_and_comes_back(place, small):
    names = run("Fine-tuning by LoRA, with peft and transformers' Trainer", small)
    before, _ = hf_clip.load(small)
    after = names["merged"]
    changed = [key for key, tensor in after.state_dict().items() if not torch.equal(tensor, before.state_dict()[key])]
    assert len(changed) == 8 and all(key.endswith(("q_proj.weight", "v_proj.weight")) for key in changed)


def test_label_smoothing_is_the_recipes_and_not_the_trainers(place, small):
    model, processor = hf_clip.load(small)
    images = [Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
    batch = processor(text=["a dog", "a cat"], images=images, return_tensors="pt")
    inputs = {**batch, "return_loss": True}
    arguments = TrainingArguments("out", label_smoothing_factor=0.4, use_cpu=True, report_to=[])
    assert torch.equal(Trainer(model, arguments).compute_loss(model, dict(inputs)), model(**inputs).loss)
    names = run("Fine-tuning by LoRA, with peft and transformers' Trainer", small)
    outputs = names["model"](**inputs)
    assert names["smoothed_loss"](outputs, None) != outputs.loss


def test_langchain_finds_texts_by_an_image(place, small):
    names = run("LangChain", small)
    assert names["found"][0].page_content in ("a red apple", "a snowman")


def test_a_pipeline_of_diffusers_draws(place, small):
    """With a small Stable Diffusion under the name of one on the Hub."""
    own = Path("own").absolute()
    hf_clip.convert(small, to="diffusers", output_dir=own / "parts")
    text_encoder = CLIPTextModel.from_pretrained(own / "parts/text_encoder")
    stable_diffusion(own, text_encoder).save_pretrained(own / "pipeline")
    names = run("Image generation, by diffusers", small, {"owner/stable-diffusion": str(own / "pipeline")})
    assert isinstance(names["pipe"].text_encoder, hf_clip.HFCLIPTextModel) and names["image"].size == (8, 8)


@pytest.mark.parametrize("_", range(soak_count(0, 1)))
def test_onnx(_, place, small):
    names = run("ONNX", small)
    own = hf_clip.embed_images(*hf_clip.load(small), ["examples/emoji/apple.png"])
    assert (names["image_embeds"] - own).abs().max() < 1e-4


def test_int8(place, small):
    names = run("int8", small)
    assert any("quantized" in type(module).__module__ for module in names["quantized"].modules())
    assert set(names["found"][0][0]) == {"label", "score"}
    for command in re.findall(r"^    hf-clip (.*)$", PAGE, re.M):
        make_parser().parse_args(shlex.split(command))
