"""Our towers in pipelines of diffusers, beside stock towers of the same weights; and the folders that hold a CLIP."""

import subprocess

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers import CLIPVisionModelWithProjection as StockVision
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from hf_clip import (
    ConversionError,
    HFCLIPTextModel,
    HFCLIPTextModelWithProjection,
    HFCLIPVisionModelWithProjection,
    convert,
    load,
)
from hf_clip.model.modeling_hf_clip import with_other_loss
from hf_clip_cli import main as cli
from tests.helpers.checkpoints import randomize
from tests.helpers.toys import tiny_clip
from tests.helpers.warm_python import warm_python

PROMPTS = ["a red square", "something blue, very long " * 20]
PARTS = {"text_encoder", "text_encoder_2", "image_encoder", "tokenizer", "feature_extractor"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of ours, and what `hf-clip convert --to diffusers` writes of it."""
    place = tmp_path_factory.mktemp("diffusers")
    model, processor = tiny_clip(PROMPTS)
    randomize(model).save_pretrained(place / "ours")
    processor.save_pretrained(place / "ours")
    arguments = ["convert", str(place / "ours"), "--to", "diffusers", "--output-dir", str(place / "parts"), "--verify"]
    assert cli.main(arguments) == 0
    return place


def small_unet(**options) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(32, 64), layers_per_block=1,
        cross_attention_dim=32, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), norm_num_groups=8, **options,
    )  # fmt: skip


def small_vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(block_out_channels=(32,), norm_num_groups=8, sample_size=8)


def stable_diffusion(place, text_encoder, **parts) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline(
        vae=small_vae(), text_encoder=text_encoder, tokenizer=CLIPTokenizer.from_pretrained(place / "parts/tokenizer"),
        unet=small_unet(), scheduler=DDIMScheduler(clip_sample=False), safety_checker=None,
        feature_extractor=CLIPImageProcessorPil.from_pretrained(place / "parts/feature_extractor"),
        requires_safety_checker=False, **parts,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_folders_are_those_of_a_pipeline_and_of_any_source(place):
    assert {path.name for path in (place / "parts").iterdir()} == PARTS
    model, processor = load(place / "ours")
    text = CLIPTextModelWithProjection.from_pretrained(place / "parts/text_encoder_2")
    vision = StockVision.from_pretrained(place / "parts/image_encoder")
    ids = CLIPTokenizer.from_pretrained(place / "parts/tokenizer")(PROMPTS, padding=True, truncation=True)["input_ids"]
    assert ids == processor(text=PROMPTS)["input_ids"]
    pixels = processor(images=[Image.new("RGB", (40, 32), "red")], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model.encode_text(torch.tensor(ids), normalize=False), model.encode_image(pixels, normalize=False)
        torch.testing.assert_close(text(torch.tensor(ids)).text_embeds, expected[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(vision(pixels).image_embeds, expected[1], atol=1e-6, rtol=0)


@torch.no_grad()
def test_stable_diffusion_and_ip_adapter(place):
    pipes = [
        stable_diffusion(place, text.from_pretrained(place / one), image_encoder=image.from_pretrained(place / two))
        for text, one, image, two in (
            (HFCLIPTextModel, "ours", HFCLIPVisionModelWithProjection, "ours"),
            (CLIPTextModel, "parts/text_encoder", StockVision, "parts/image_encoder"),
        )
    ]
    found, expected = (pipe.encode_prompt(PROMPTS, "cpu", 1, True, ["", "blurry"]) for pipe in pipes)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
    # IP-Adapter asks for the projected embeddings, its other kinds for the last layer but one.
    image = Image.new("RGB", (40, 32), "red")
    for states in (None, True):
        found, expected = (pipe.encode_image(image, "cpu", 1, states) for pipe in pipes)
        torch.testing.assert_close(found, expected, atol=5e-6, rtol=0)
    images = [
        pipe("a red square", num_inference_steps=1, height=8, width=8, output_type="np",
             generator=torch.Generator().manual_seed(0)).images for pipe in pipes
    ]  # fmt: skip
    torch.testing.assert_close(*map(torch.from_numpy, images), atol=1e-5, rtol=0)


@torch.no_grad()
def test_stable_diffusion_xl(place):
    tokenizer = CLIPTokenizer.from_pretrained(place / "parts/tokenizer")
    own = [kind.from_pretrained(place / "ours") for kind in (HFCLIPTextModel, HFCLIPTextModelWithProjection)]
    stock = [
        kind.from_pretrained(place / "parts" / name)
        for kind, name in ((CLIPTextModel, "text_encoder"), (CLIPTextModelWithProjection, "text_encoder_2"))
    ]
    found, expected = (
        StableDiffusionXLPipeline(
            vae=small_vae(), text_encoder=one, text_encoder_2=two, tokenizer=tokenizer, tokenizer_2=tokenizer,
            unet=small_unet(), scheduler=DDIMScheduler(), add_watermarker=False,
        ).encode_prompt(PROMPTS, device="cpu", negative_prompt=["", "blurry"])
        for one, two in (own, stock)
    )  # fmt: skip
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


@pytest.mark.slow
def test_a_saved_pipeline_loads_without_this_package(place, tmp_path):
    text = CLIPTextModel.from_pretrained(place / "parts/text_encoder")
    stable_diffusion(place, text).save_pretrained(tmp_path / "pipe")
    script = f"""
import sys
sys.modules["hf_clip"] = None
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained({str(tmp_path / "pipe")!r}, safety_checker=None)
image = pipe("a red square", num_inference_steps=1, height=8, width=8).images[0]
print(type(pipe.text_encoder).__module__, image.size)
"""
    command = [*warm_python("libraries"), "-c", script]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.strip() == "transformers.models.clip.modeling_clip (8, 8)", run.stderr[-2000:]


def test_what_no_pipeline_holds_is_refused(tmp_path):
    model, processor = tiny_clip(PROMPTS)
    with_other_loss(model, -10.0).save_pretrained(tmp_path / "ours")
    processor.save_pretrained(tmp_path / "ours")
    with pytest.raises(ConversionError, match="SiglipModel"):
        convert(tmp_path / "ours", to="diffusers", output_dir=tmp_path / "parts")
