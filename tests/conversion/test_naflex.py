"""SigLIP 2's folders of transformers: NaFlex in and out, and the case of texts of both kinds."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, Siglip2Config, Siglip2Model, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from hf_clip import (
    ConversionError,
    HFCLIPConfig,
    HFCLIPImageProcessor,
    HFCLIPProcessor,
    HFCLIPSiglipModel,
    HFCLIPTokenizer,
    convert,
    embed_images,
    load,
)
from hf_clip.conversion.hub_files import HubOptions
from hf_clip.conversion.preprocessing import open_clip_tokenizer
from hf_clip.model.tokenization_hf_clip import clean_text
from hf_clip_cli import main as cli
from tests.helpers.naflex import (
    CONTEXT,
    MAX_NUM_PATCHES,
    SHAPES,
    TOKENS,
    TOWER,
    images_of,
    siglip2_images,
    siglip2_tokenizer,
    write_naflex_folder,
)

pytestmark = pytest.mark.slow

# Siglip2Tokenizer lowers texts, and does nothing else to them.
TEXTS = ["A CAT", "two  Dogs,\ton the beach ", "caf\u00c3\u00a9 &amp; \u201cÉcole\u201d", "don't_stop!", "a " * 80]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs")
    return folder, write_naflex_folder(folder)


def ids_of(processor, texts=TEXTS) -> torch.Tensor:
    fixed = {"padding": "max_length", "max_length": CONTEXT, "truncation": True}
    return processor(text=texts, return_tensors="pt", **fixed)["input_ids"]


def edit(file, **fields) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_a_folder_of_naflex_is_loaded_and_embeds_as_there(theirs):
    folder, peer = theirs
    model, processor = load(folder)
    assert type(model) is HFCLIPSiglipModel and model.source_format == "transformers"
    assert model.config.vision_config.tower == "naflex" and processor.image_processor.max_num_patches == 20
    images = images_of(SHAPES)
    with torch.no_grad():
        image_embeds = peer.get_image_features(**siglip2_images()(images, return_tensors="pt")).pooler_output
        text_embeds = peer.get_text_features(ids_of(AutoProcessor.from_pretrained(folder))).pooler_output
        found = model.encode_text(processor(text=TEXTS, return_tensors="pt")["input_ids"])
    assert (embed_images(model, processor, images) - F.normalize(image_embeds, dim=-1)).abs().max() < 1e-5
    assert (found - F.normalize(text_embeds, dim=-1)).abs().max() < 1e-5


def test_naflex_in_out_and_in_again_bit_for_bit(theirs, tmp_path):
    folder, _ = theirs
    inwards = convert(folder, to="hf_clip", output_dir=tmp_path / "ours", verify=True)
    outwards = convert(tmp_path / "ours", to="transformers", output_dir=tmp_path / "back", verify=True)
    assert (inwards.source_code, outwards.result_code) == ("transformers", "transformers")
    assert max(inwards.images, inwards.texts, outwards.images, outwards.texts) < 1e-6
    before, after = (load_file(each / "model.safetensors") for each in (folder, tmp_path / "back"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert type(Siglip2Model.from_pretrained(tmp_path / "back")) is Siglip2Model
    theirs_config, ours_config = (
        json.loads((each / "config.json").read_text()) for each in (folder, tmp_path / "back")
    )
    for tower in ("text_config", "vision_config"):
        assert theirs_config[tower].items() <= ours_config[tower].items()
    images = images_of(SHAPES[:4])
    transform = AutoImageProcessor.from_pretrained(tmp_path / "back", backend="pil")
    for name, expected in siglip2_images()(images, return_tensors="pt").items():
        assert torch.equal(transform(images, return_tensors="pt")[name], expected)
    returned, original = (AutoProcessor.from_pretrained(each) for each in (tmp_path / "back", folder))
    assert torch.equal(ids_of(returned), ids_of(original))


SIZES = {"base-patch16": (768, 12, 12, 3072), "so400m-patch16": (1152, 27, 16, 4304)}


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes_have_the_tensors_of_transformers_model(name, tmp_path):
    """From what their config.json says, which leaves out what is transformers' default."""
    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    tower = dict(zip(keys, SIZES[name], strict=True))
    text = tower | {"model_type": "siglip2_text_model", "vocab_size": 256_000, "projection_size": tower["hidden_size"]}
    config = {
        "model_type": "siglip2",
        "text_config": text,
        "vision_config": {"model_type": "siglip2_vision_model", **tower},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        ours = HFCLIPSiglipModel(HFCLIPConfig.from_pretrained(tmp_path)).state_dict()
        theirs = Siglip2Model(Siglip2Config.from_pretrained(tmp_path)).state_dict()
    assert {key: tensor.shape for key, tensor in ours.items()} == {key: tensor.shape for key, tensor in theirs.items()}
    assert HFCLIPConfig.from_pretrained(tmp_path).vision_config.image_size == 256


def test_other_formats_say_that_they_have_no_naflex(theirs, tmp_path):
    for target in ("open_clip", "openai"):
        with pytest.raises(ConversionError, match="vision_config.tower='naflex'.*an image transform that keeps the"):
            convert(theirs[0], to=target, output_dir=tmp_path / "result")
    assert not (tmp_path / "result").exists()
    # transformers reads every folder of this kind with its own tokenizer.
    with pytest.raises(ConversionError, match="a tokenizer other than SigLIP 2's"):
        tokenizer = HFCLIPTokenizer.train(TEXTS, vocab_size=530, model_max_length=CONTEXT)
        model, processor = load(theirs[0])
        model.resize_token_embeddings(len(tokenizer))
        model.save_pretrained(tmp_path / "clip")
        HFCLIPProcessor(processor.image_processor, tokenizer, text_padding="max_length").save_pretrained(
            tmp_path / "clip"
        )
        edit_ids(tmp_path / "clip/config.json", tokenizer)
        convert(tmp_path / "clip", to="transformers", output_dir=tmp_path / "result")


def edit_ids(file, tokenizer) -> None:
    config = json.loads(file.read_text())
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    config["text_config"] |= {name: getattr(tokenizer, name) for name in names}
    file.write_text(json.dumps(config))


def test_another_size_is_another_number_of_patches(theirs, tmp_path):
    model, processor = load(theirs[0], image_size=32)
    assert processor.image_processor.max_num_patches == 64 and model.config.vision_config.image_size == 32
    # A square of 11 pixels a side has two whole patches of 4.
    assert load(theirs[0], image_size=11)[1].image_processor.max_num_patches == 4
    image = images_of([(33, 80)])
    assert processor(images=image, return_tensors="pt")["pixel_values"].shape[1] > MAX_NUM_PATCHES
    with torch.no_grad():
        inputs = siglip2_images(max_num_patches=64)(image, return_tensors="pt")
        expected = F.normalize(theirs[1].get_image_features(**inputs).pooler_output, dim=-1)
    assert (embed_images(model, processor, image) - expected).abs().max() < 1e-5
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, loaded = load(tmp_path)
    assert loaded.image_processor.max_num_patches == 64 and again.config.vision_config.image_size == 32
    with pytest.raises(ValueError, match="`image_size=3` is below 4"):
        load(theirs[0], image_size=3)
    # Other colors are other colors of patches.
    _, processor = load(theirs[0], preprocessing={"mean": [0.1] * 3, "std": [0.2] * 3})
    assert processor.image_processor.max_num_patches == 16 and processor.image_processor.image_mean == (0.1,) * 3


DAMAGED = [
    ({"patch_size": 8}, "max_num_patches=20 and patch_size=8, where the image tower is of the kind naflex"),
    ({"max_num_patches": 10**9}, "max_num_patches=1000000000 .at most 802816 are made"),
    ({"max_num_patches": 0}, "`max_num_patches=0` with `patch_size=4`: both must be 1 or more"),
    ({"image_processor_type": "SiglipImageProcessor", "max_num_patches": None}, "max_num_patches=None"),
    ({"image_std": [0, 1, 1]}, "image_std"),
]


@pytest.mark.parametrize("fields, problem", DAMAGED)
def test_settings_of_another_model_are_named(fields, problem, theirs, tmp_path):
    shutil.copytree(theirs[0], tmp_path, dirs_exist_ok=True)
    file = tmp_path / "processor_config.json"
    settings = json.loads(file.read_text())
    edit(file, image_processor=settings["image_processor"] | fields)
    with pytest.raises(ConversionError, match=problem) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tokenizer_class", ["Siglip2Tokenizer", "GemmaTokenizer"])
def test_texts_of_naflex_are_those_of_siglip2s_tokenizer(tokenizer_class, theirs, tmp_path):
    """Whatever class the folder names: transformers takes its own for every `siglip2`."""
    shutil.copytree(theirs[0], tmp_path, dirs_exist_ok=True)
    edit(tmp_path / "tokenizer_config.json", tokenizer_class=tokenizer_class)
    _, processor = load(tmp_path)
    assert (processor.text_cleaning, processor.text_padding) == ("lower", "max_length")
    assert torch.equal(processor(text=TEXTS, return_tensors="pt")["input_ids"], ids_of(siglip2_tokenizer()))


def fixed_folder(folder, tokenizer_class: str) -> None:
    """SigLIP 2 of fixed resolution, as its repositories are: SigLIP's type, and Gemma's tokenizer or the later one."""
    from transformers import SiglipConfig

    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    text = TOWER | ids | {"vocab_size": len(TOKENS), "max_position_embeddings": CONTEXT, "projection_size": 32}
    vision = TOWER | {"image_size": 16, "patch_size": 8}
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    siglip2_tokenizer().save_pretrained(folder)
    edit(folder / "tokenizer_config.json", tokenizer_class=tokenizer_class)


@pytest.mark.parametrize("tokenizer_class", ["GemmaTokenizer", "Siglip2Tokenizer"])
def test_texts_of_fixed_resolution_are_in_lower_case_and_no_more(tokenizer_class, tmp_path):
    fixed_folder(tmp_path / "theirs", tokenizer_class)
    model, processor = load(tmp_path / "theirs")
    assert processor.text_cleaning == "lower"
    expected = ids_of(siglip2_tokenizer())
    assert torch.equal(processor(text=TEXTS, return_tensors="pt")["input_ids"], expected)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "again")
    _, again = load(tmp_path / "again")
    assert again.text_cleaning == "lower"
    assert torch.equal(again(text=TEXTS, return_tensors="pt")["input_ids"], expected)
    # Out again, the tokenizer lowers for transformers too.
    convert(tmp_path / "again", to="transformers", output_dir=tmp_path / "back", verify=True)
    assert torch.equal(ids_of(AutoProcessor.from_pretrained(tmp_path / "back")), expected)


def test_the_cleaning_can_be_said(tmp_path):
    fixed_folder(tmp_path, "GemmaTokenizer")

    def words(text_cleaning):
        _, processor = load(tmp_path, text_cleaning=text_cleaning)
        assert processor.text_cleaning == (None if text_cleaning == "none" else text_cleaning)
        return processor.tokenizer.convert_ids_to_tokens(processor(text=["A  Cat, &amp; \tB_b!"])["input_ids"][0])

    seen = {
        name: "".join(words(name)).partition("<eos>")[0] for name in ("none", "whitespace", "lower", "canonicalize")
    }
    assert seen["canonicalize"] == "a▁cat▁b▁b" and seen["whitespace"] == "A▁Cat,▁&▁B_b!"
    assert seen["lower"].startswith("a▁▁cat,▁&amp;▁") and seen["none"].startswith("A▁▁Cat,▁&amp;▁")
    with pytest.raises(
        ValueError, match="`text_cleaning=upper` is not known: use whitespace, lower, canonicalize, none"
    ):
        load(tmp_path, text_cleaning="upper")


def test_a_cleaning_that_was_saved_or_told_stays_beside_other_options(tmp_path):
    """Whatever else of the processor the caller replaces; a tokenizer is read alike as an object and by its folder."""
    fixed_folder(tmp_path / "theirs", "GemmaTokenizer")
    text = ["A  Cat, b_b!"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "theirs", model_max_length=CONTEXT)
    _, processor = load(tmp_path / "theirs")
    lowered = processor(text=text)["input_ids"]
    for given in (tokenizer, tmp_path / "theirs"):
        assert load(tmp_path / "theirs", tokenizer=given)[1](text=text)["input_ids"] == lowered
    for text_cleaning in ("canonicalize", "none"):
        model, processor = load(tmp_path / "theirs", text_cleaning=text_cleaning)
        folder = tmp_path / text_cleaning
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        expected = processor(text=text)["input_ids"]
        assert expected != lowered
        for options in ({"preprocessing": {"mean": 0.4}}, {"tokenizer": folder}, {"tokenizer": processor.tokenizer}):
            assert load(folder, **options)[1](text=text)["input_ids"] == expected
    ours, cleaning = open_clip_tokenizer(tokenizer, {"clean": "canonicalize"}, model.config.text_config, HubOptions())
    assert (ours, cleaning) == (tokenizer, "canonicalize")


def test_the_command_can_say_the_cleaning(tmp_path, capsys):
    fixed_folder(tmp_path / "theirs", "GemmaTokenizer")
    command = ["convert", str(tmp_path / "theirs"), "--to", "hf_clip", "--output-dir", str(tmp_path / "ours")]
    assert cli.main([*command, "--text-cleaning", "canonicalize", "--verify"]) == 0
    assert load(tmp_path / "ours")[1].text_cleaning == "canonicalize"
    assert "result in hf_clip" in capsys.readouterr().out


def test_open_clips_lower_repairs_texts_too(tmp_path):
    """There it is done before the tokenizer, whatever that does; a tokenizer that is asked alone lowers as well."""
    fixed_folder(tmp_path, "GemmaTokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    config = HFCLIPConfig.from_pretrained(tmp_path)
    ours, cleaning = open_clip_tokenizer(tmp_path, {"clean": "lower"}, config.text_config, HubOptions())
    processor = HFCLIPProcessor(HFCLIPImageProcessor(), ours, text_padding="max_length", text_cleaning=cleaning)
    expected = ids_of(tokenizer, [clean_text(text) for text in TEXTS])
    assert torch.equal(processor(text=TEXTS, return_tensors="pt")["input_ids"], expected)
    assert ours("A CAT")["input_ids"] == tokenizer("a cat")["input_ids"]
