"""A checkpoint of any format to a folder of another: read into our model, written by the tables read backwards."""

import copy
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from transformers import (
    AutoTokenizer,
    ChineseCLIPModel,
    ChineseCLIPProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    MetaClip2Model,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Siglip2Model,
    Siglip2Processor,
    SiglipModel,
    SiglipProcessor,
)
from transformers.models.chinese_clip.image_processing_pil_chinese_clip import ChineseCLIPImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from hf_clip.model.modeling_hf_clip import HFCLIPModel
from hf_clip.model.processing_hf_clip import HFCLIPProcessor
from hf_clip.model.tokenization_hf_clip import HFCLIPTokenizer, build_vocabulary, read_openai_merges

from . import export_configs
from .check_processor import sees_padding
from .chinese_clip import CHINESE_CLIP_RULES
from .errors import ConversionError, one_line_errors
from .loading import load
from .locating import plain_name
from .open_clip import OPENAI_VOCABULARY_SIZE, open_clip_rules
from .openai import openai_rules
from .rules import export_tensors
from .sentence_files import write_sentence_files
from .verify import TEXTS, Verification, verify_conversion

# Tensors that OpenAI's `convert_weights` makes float16: of convolutions, of linear layers and attention, and the two
# projections. Embeddings and norms stay float32.
_HALF_IN_OPENAI = re.compile(
    r".*\.(conv\d|downsample\.0|c_fc|c_proj|q_proj|k_proj|v_proj|out_proj)\.(weight|bias)"
    r"|.*\.in_proj_(weight|bias)|visual\.proj|text_projection"
)


def convert(source, *, to: str, output_dir: str | Path, verify: bool = False, **options) -> Verification | None:
    """Writes the model of `source` to `output_dir` in another format.

    The folder appears when it is complete, or not at all.

    Args:
        source: whatever `load` takes.
        to: "hf_clip", a folder of this package's; "transformers", one of `CLIPModel`, `SiglipModel`, `Siglip2Model`,
            `MetaClip2Model` or `ChineseCLIPModel` with its processor; "open_clip", one for OpenCLIP's `local-dir:`;
            "openai", `model.pt` with a plain state dict in OpenAI's names, float16 where theirs is; "diffusers", the
            parts of a pipeline that are a CLIP, each in transformers' own class.
        output_dir: a folder that is empty or does not exist yet, outside of the source.
        verify: run source and result on the same images and texts before the result takes its place.
        options: arguments of `load` about what the source does not say.

    Returns:
        The measured differences, where `verify` asked for them.

    Raises:
        ValueError: for an unknown target, and for a folder that holds something.
        ConversionError: if the source cannot be read, or nobody could run it; if the target cannot express the model,
            with every feature that it lacks; if the embeddings or logits of the result differ from the source's.
    """
    if to not in WRITERS:
        raise ValueError(f"`to={to}` is not a format to write: use one of {', '.join(WRITERS)}.")
    output_dir = Path(output_dir).absolute()
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ValueError(
            f"`output_dir={output_dir}` holds something already: name a folder that is empty or does not exist yet."
        )
    if options.get("adapter", "merge") != "merge":
        raise ValueError(f"`adapter={options['adapter']}`: what is written is one model: drop it.")
    for read in (source, options.get("tokenizer"), options.get("base")):
        if isinstance(read, str | Path):
            _refuse_within(output_dir, read)
    model, processor = load(source, **options)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output_dir.name}-", dir=output_dir.parent) as temporary:
        result = Path(temporary) / output_dir.name
        result.mkdir()
        is_rounded = WRITERS[to](model, processor, result)
        with one_line_errors(source):
            _refuse_broken(model)
        verification = None
        if verify:
            verification = verify_conversion(source, (model, processor), result, to, options, is_rounded)
        result.replace(output_dir)
    return verification


def _refuse_within(output_dir: Path, source: str | Path) -> None:
    """Raises ValueError for a folder inside one that is read, links followed."""
    folder = Path(plain_name(source)).expanduser()
    if folder.is_dir() and output_dir.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"`output_dir={output_dir}` is inside {folder}, which is read: name a folder outside of it.")


def _refuse_broken(model: HFCLIPModel) -> None:
    """Raises ValueError for weights that are no numbers. What else nobody could run, `load` refuses."""
    broken = [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    if broken:
        raise ValueError(f"the weights hold NaN or infinity in {len(broken)} tensors: {', '.join(broken[:5])}")


def _refuse(target: str, missing: list[str]) -> None:
    if missing:
        raise ConversionError(f"{target} cannot express this model. It lacks: {'; '.join(missing)}.")


def write_hf_clip(model: HFCLIPModel, processor: HFCLIPProcessor, folder: Path) -> bool:
    """This package's own folder: nothing is lost. sentence-transformers reads it too."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    write_sentence_files(folder)
    return False


def write_transformers(model: HFCLIPModel, processor: HFCLIPProcessor, folder: Path) -> bool:
    """A folder that transformers alone loads, as one of TRANSFORMERS_CLASSES, with its own processor."""
    kind = export_configs.transformers_type(model.config)
    peer_class, processor_class = TRANSFORMERS_CLASSES[kind]
    settings, missing = export_configs.transformers_image_settings(processor.image_processor)
    missing += _missing_cleaning(processor)
    missing = export_configs.missing_in_transformers(model.config) + missing
    _refuse(f"transformers' {peer_class.__name__}", missing)
    with torch.device("meta"):
        peer = peer_class(export_configs.transformers_config(model.config))
    state = dict(model.state_dict())
    peer.load_state_dict(export_tensors(state, CHINESE_CLIP_RULES) if kind == "chinese_clip" else state, assign=True)
    peer.config.dtype = model.dtype
    peer.save_pretrained(folder)
    # The two differ in what they do without being told: the one crops.
    image_class = CLIPImageProcessorPil if settings.get("do_center_crop") else SiglipImageProcessorPil
    own_class = {"chinese_clip": ChineseCLIPImageProcessorPil, "siglip2": Siglip2ImageProcessorPil}
    image_processor = own_class.get(kind, image_class)(**settings)
    # SigLIP's texts see their padding, which a mask would hide.
    names = ["input_ids"] if export_configs.is_siglip(model.config) else ["input_ids", "attention_mask"]
    tokenizer = plain_tokenizer(processor.tokenizer, names)
    processor_class(image_processor, tokenizer).save_pretrained(folder)
    if kind == "siglip2":
        _require_same_tokenizer(tokenizer, folder)
    # Where transformers 4 looks for it.
    image_processor.save_pretrained(folder)
    return False


def _require_same_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Raises ConversionError unless transformers reads back what was written: of `siglip2`, always its own kind."""
    read = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    texts = [*TEXTS, "A Cat"]
    if tokenizer(texts)["input_ids"] != read(texts)["input_ids"]:
        _refuse("transformers' Siglip2Model", ["a tokenizer other than SigLIP 2's, Gemma's in lower case"])


def _missing_cleaning(processor: HFCLIPProcessor) -> list[str]:
    """A phrase for what is done to texts before the tokenizer, where formats without such a step lose by it."""
    cleaning = processor.text_cleaning
    # A tokenizer in lower case has that within itself.
    if cleaning in (None, "lower", "whitespace"):
        return []
    return [f"text_cleaning={cleaning!r} of texts before its tokenizer"]


def write_open_clip(model: HFCLIPModel, processor: HFCLIPProcessor, folder: Path) -> bool:
    """A folder that OpenCLIP loads as `local-dir:FOLDER`: its config, safetensors, and a tokenizer not OpenAI's."""
    preprocess_cfg, missing = export_configs.open_clip_preprocess_cfg(processor.image_processor, model.config)
    _refuse("OpenCLIP", export_configs.missing_in_open_clip(model.config) + missing)
    model_cfg = export_configs.open_clip_model_cfg(model.config)
    tokenizer = processor.tokenizer
    # OpenCLIP's own tokenizer has OpenAI's vocabulary and pads with zeros.
    pads_with_zeros = tokenizer.pad_token_id == 0 or not sees_padding(model.config.text_config)
    if not (has_openai_vocabulary(tokenizer) and pads_with_zeros and processor.text_cleaning is None):
        # It reads the files beside its config, whatever the name.
        model_cfg["text_cfg"]["hf_tokenizer_name"] = folder.name
        if processor.text_cleaning is not None:
            model_cfg["text_cfg"]["tokenizer_kwargs"] = {"clean": processor.text_cleaning}
        plain_tokenizer(tokenizer).save_pretrained(folder)
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = export_tensors(model.state_dict(), open_clip_rules(model.config))
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    return False


def write_openai(model: HFCLIPModel, processor: HFCLIPProcessor, folder: Path) -> bool:
    """`model.pt`, a state dict that OpenAI's `build_model` takes, float16 where its `convert_weights` makes it so."""
    missing = export_configs.missing_in_openai(model.config)
    preprocess_cfg, image_missing = export_configs.open_clip_preprocess_cfg(processor.image_processor, model.config)
    missing += image_missing or export_configs.missing_in_openai_transform(preprocess_cfg)
    if not has_openai_vocabulary(processor.tokenizer):
        missing.append("a vocabulary other than OpenAI's")
    missing += _missing_cleaning(processor)
    _refuse("OpenAI's format", missing)
    tensors = export_tensors(model.state_dict(), openai_rules(model.config))
    is_rounded = False
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            tensors[name] = tensor.to(torch.float16 if _HALF_IN_OPENAI.fullmatch(name) else torch.float32)
            is_rounded = is_rounded or not torch.equal(tensors[name].to(tensor.dtype), tensor)
            if (tensors[name].isinf() & tensor.isfinite()).any():
                _refuse("OpenAI's format", [f"numbers above {torch.finfo(torch.float16).max:g} ({name})"])
    text = model.config.text_config
    numbers = (model.config.vision_config.image_size, text.max_position_embeddings, text.vocab_size)
    # By these three `load` knows OpenAI's models, whose activation no shape tells. Their `build_model` drops them.
    tensors |= zip(("input_resolution", "context_length", "vocab_size"), map(torch.tensor, numbers), strict=True)
    torch.save(tensors, folder / "model.pt")
    return is_rounded


def write_diffusers(model: HFCLIPModel, processor: HFCLIPProcessor, folder: Path) -> bool:
    """The folders of a diffusion pipeline that hold a CLIP, as diffusers saves them: transformers' own classes.

    `text_encoder` is Stable Diffusion's, `text_encoder_2` with its projection is SDXL's second, `image_encoder` and
    `feature_extractor` are IP-Adapter's. `tokenizer` pads with what the text tower was trained with.
    """
    kind = export_configs.transformers_type(model.config)
    if kind != "clip":
        _refuse("A pipeline of diffusers", [f"a model of transformers' {TRANSFORMERS_CLASSES[kind][0].__name__}"])
    whole = folder / "whole"
    write_transformers(model, processor, whole)
    for name, part in DIFFUSERS_PARTS.items():
        loaded: Any = part.from_pretrained(whole, output_loading_info=True)
        tower, info = loaded
        assert not info["missing_keys"], f"{name}: {info['missing_keys']}"
        tower.save_pretrained(folder / name)
    CLIPImageProcessorPil.from_pretrained(whole).save_pretrained(folder / "feature_extractor")
    shutil.rmtree(whole)
    plain_tokenizer(processor.tokenizer).save_pretrained(folder / "tokenizer")
    return False


def plain_tokenizer(tokenizer, model_input_names: Sequence[str] = ("input_ids", "attention_mask")):
    """transformers' own `CLIPTokenizer` of the same vocabulary; a copy of a tokenizer that is not ours."""
    if not isinstance(tokenizer, HFCLIPTokenizer):
        tokenizer = copy.deepcopy(tokenizer)
        # This package asks for a mask by an option of its own.
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = list(model_input_names)
        return tokenizer
    backend = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    # Pairs, which transformers takes as `tokenizers` does, and does not declare.
    merges: Any = [tuple(merge) for merge in backend["merges"]]
    return CLIPTokenizer(
        vocab=backend["vocab"],
        merges=merges,
        pad_token=cast(str, tokenizer.pad_token),
        model_max_length=tokenizer.model_max_length,
        model_input_names=model_input_names,
    )


def has_openai_vocabulary(tokenizer) -> bool:
    """Whether a tokenizer gives the ids of OpenAI's `simple_tokenizer`."""
    if not isinstance(tokenizer, CLIPTokenizer) or len(tokenizer) != OPENAI_VOCABULARY_SIZE:
        return False
    return tokenizer.get_vocab() == build_vocabulary(read_openai_merges())


# The classes of a model and its processor, by the type of its config.
TRANSFORMERS_CLASSES: dict[str, tuple[type[PreTrainedModel], Callable[..., Any]]] = {
    "clip": (CLIPModel, CLIPProcessor),
    "siglip": (SiglipModel, SiglipProcessor),
    "siglip2": (Siglip2Model, Siglip2Processor),
    "metaclip_2": (MetaClip2Model, CLIPProcessor),
    "chinese_clip": (ChineseCLIPModel, ChineseCLIPProcessor),
}
# What a pipeline of diffusers calls its parts.
DIFFUSERS_PARTS: dict[str, type[PreTrainedModel]] = {
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
    "image_encoder": CLIPVisionModelWithProjection,
}
# Each writes a model to an empty folder, and says whether weights were rounded.
WRITERS: dict[str, Callable[[HFCLIPModel, HFCLIPProcessor, Path], bool]] = {
    "hf_clip": write_hf_clip,
    "transformers": write_transformers,
    "open_clip": write_open_clip,
    "openai": write_openai,
    "diffusers": write_diffusers,
}
