"""`load` makes processor and config agree, or says which of the two files is of another model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, SiglipConfig, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from hf_clip import HFCLIPConfig, HFCLIPModel, HFCLIPProcessor, load
from hf_clip.conversion import ConversionError, convert
from hf_clip.model.configuration_hf_clip import POOL_AT_HIGHEST_ID
from tests.helpers.checkpoints import IMAGES, TEXTS
from tests.helpers.toys import tiny_clip

pytestmark = pytest.mark.slow


def edit(file: Path, **fields) -> None:
    """Sets fields of a JSON file; `a__b` is b within a."""
    content = json.loads(file.read_text())
    for name, value in fields.items():
        target, *inner = content, *name.split("__")
        for key in inner[:-1]:
            target = target[key]
        target[inner[-1]] = value
    file.write_text(json.dumps(content))


def write_ours(folder: Path, **text) -> tuple[HFCLIPModel, HFCLIPProcessor]:
    """A small model whose text tower has these fields, and the processor that fits it."""
    model, processor = tiny_clip(TEXTS)
    config = model.config.to_dict()
    config["text_config"] |= text
    torch.manual_seed(0)
    model = HFCLIPModel(HFCLIPConfig.from_dict(config)).eval()
    if not text.get("is_causal", True):
        processor.text_padding = "max_length"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """A folder of ours, its model and its processor: tests change copies of the folder."""
    folder = tmp_path_factory.mktemp("ours")
    return folder, *write_ours(folder)


def texts_of(model, processor) -> torch.Tensor:
    inputs = processor(text=TEXTS, return_tensors="pt")
    return model.encode_text(inputs["input_ids"], inputs.get("attention_mask"))


@pytest.mark.parametrize(
    "fields", [{"text_padding": "longest"}, {"returns_text_mask": True}, {"model_max_length": 10**30}], ids=str
)
@pytest.mark.parametrize("is_causal", [True, False])
def test_padding_mask_and_length_are_those_of_the_config(fields, is_causal, tmp_path):
    """A tower that is not causal sees its padding: without it the embeddings are others."""
    expected = texts_of(*write_ours(tmp_path, is_causal=is_causal))
    for file in ("tokenizer_config.json", "processor_config.json"):
        edit(tmp_path / file, **fields)
    model, processor = load(tmp_path)
    assert processor.tokenizer.model_max_length == 77
    assert torch.equal(texts_of(model, processor), expected) or is_causal
    torch.testing.assert_close(texts_of(model, processor), expected)


@pytest.mark.parametrize("form", ["hf_clip", "transformers", "open_clip"])
def test_parts_saved_apart_are_loaded_as_one(form, tmp_path):
    """Without a processor's file; one config object a tower, and the ids of the tokenizer in it."""
    model, processor = tiny_clip(TEXTS)
    if form == "hf_clip":
        for part in (model, processor.tokenizer, processor.image_processor):
            part.save_pretrained(tmp_path / form)
    else:
        for part in (model, processor):
            part.save_pretrained(tmp_path / "ours")
        convert(tmp_path / "ours", to=form, output_dir=tmp_path / form)
    again, loaded = load(tmp_path / form)
    assert again.config.text_config is again.text_model.config
    assert again.config.vision_config is again.vision_model.config
    assert again.config.text_config.pad_token_id == processor.tokenizer.pad_token_id
    torch.testing.assert_close(texts_of(again, loaded), texts_of(model, processor))


def test_the_tokenizers_end_id_is_written_so_that_added_tokens_are_not_taken_for_ends(ours, tmp_path):
    """2 means "at the highest id", where the end token is only until tokens are added."""
    folder, model, processor = ours
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    edit(tmp_path / "config.json", text_config__eos_token_id=POOL_AT_HIGHEST_ID)
    again, loaded = load(tmp_path)
    end = processor.tokenizer.eos_token_id
    assert again.config.text_config.eos_token_id == end
    assert torch.equal(texts_of(again, loaded), texts_of(model, processor))
    loaded.tokenizer.add_tokens(["<mine>"])
    again.text_model.resize_token_embeddings(len(loaded.tokenizer), mean_resizing=False)
    ids = loaded(text=["a <mine> in the snow", "a <mine> on a table"], return_tensors="pt")["input_ids"]
    assert int(ids.max()) > end
    one, other = again.encode_text(ids)
    assert not torch.allclose(one, other, atol=1e-4)


OTHERS = [
    ("config.json", {"text_config__eos_token_id": 7}, "eos_token_id=7, at which .* not in the texts of the tokenizer"),
    ("tokenizer_config.json", {"eos_token": "a"}, "not in the texts of the tokenizer, which end with"),
    ("tokenizer_config.json", {"bos_token": "a"}, "bos_token_id=.* in the config, and .* in the tokenizer"),
    ("tokenizer_config.json", {"eos_token": "of another vocabulary"}, "tokens, the model knows"),
    (
        "processor_config.json",
        {"image_processor__crop_size": {"height": 64, "width": 64}},
        "64 x 64 pixels, the model",
    ),
    ("processor_config.json", {"image_processor__size": {"shortest_edge": 10**9}}, "shortest_edge=1000000000"),
    ("processor_config.json", {"image_processor__size": True}, "True"),
    ("processor_config.json", {"image_processor__image_std": [1e-30] * 3}, "make pixel values that are not finite"),
    ("processor_config.json", {"image_processor__rescale_factor": float("nan")}, "rescale_factor=nan` must be finite"),
]


@pytest.mark.parametrize("file, fields, problem", OTHERS)
def test_files_of_another_model_are_named(file, fields, problem, ours, tmp_path):
    shutil.copytree(ours[0], tmp_path, dirs_exist_ok=True)
    edit(tmp_path / file, **fields)
    with pytest.raises(ConversionError, match=problem) as error:
        load(tmp_path)
    assert str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["GemmaTokenizer", "GemmaTokenizerFast"])
def test_siglip_2_from_transformers_sees_lower_case(name, tmp_path):
    """It was trained so, and its repositories name Gemma's tokenizer, which keeps the case."""
    letters = ["<pad>", "<eos>", "<bos>", "<unk>", "▁", *map(chr, range(33, 127))]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(letters)}, merges=[], unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "▁")
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **special).save_pretrained(tmp_path)
    edit(tmp_path / "tokenizer_config.json", tokenizer_class=name)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    text = tower | ids | {"vocab_size": len(letters) + 4, "max_position_embeddings": 64, "projection_size": 32}
    vision = tower | {"image_size": 32, "patch_size": 8}
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(tmp_path)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    model, processor = load(tmp_path)
    assert processor.text_padding == "max_length"
    upper, lower = (processor(text=[words], return_tensors="pt")["input_ids"] for words in ("A CAT!", "a cat!"))
    assert torch.equal(upper, lower) and upper.shape == (1, 64)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "again")
    _, again = load(tmp_path / "again")
    assert torch.equal(again(text=["A CAT!"], return_tensors="pt")["input_ids"], lower)
    # transformers' pipelines ask the tokenizer alone.
    alone = AutoTokenizer.from_pretrained(tmp_path / "again")
    fixed = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    assert torch.equal(alone(["A CAT!"], **fixed)["input_ids"], lower)
    again.tokenizer.add_tokens(["<MyCat>"])
    assert (
        again.tokenizer.convert_tokens_to_ids("<MyCat>")
        in again(text=["A <MyCat>!"], return_tensors="pt")["input_ids"]
    )
    assert processor(images=IMAGES[0])["pixel_values"][0].shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("file", "change", "problem"),
    [
        (
            "tokenizer_config.json",
            lambda content: content.update(pad_token=None),
            # It can be read, so it is not called damaged.
            rf"makes no batch of two texts .* lack a part, .* another transformers than {transformers.__version__}",
        ),
        (
            "processor_config.json",
            lambda content: content["image_processor"].update(do_center_crop=False),
            "makes images of 40 x 32 pixels, and the model takes 32",
        ),
    ],
)
def test_a_processor_that_fails_at_its_first_use_fails_at_loading(file, change, problem, tmp_path):
    for part in tiny_clip(["a photo of 2 cats"]):
        part.save_pretrained(tmp_path)
    content = json.loads((tmp_path / file).read_text())
    change(content)
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(ConversionError, match=problem):
        load(tmp_path)
