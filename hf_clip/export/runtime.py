"""An exported model in the place of the model: it encodes with ONNX Runtime or OpenVINO, on the CPU.

    model, processor = load_exported("vit-b-32-int8")
    classifier = ZeroShotClassifier(model, processor, labels=["cat", "dog"])

Shape suffixes: B images or texts, T tokens, D dimensions of the shared space.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from hf_clip.conversion.errors import one_line_errors, short_reason
from hf_clip.conversion.locating import EXPORT_MANIFEST as MANIFEST
from hf_clip.conversion.locating import read_json
from hf_clip.model.configuration_hf_clip import POOL_AT_HIGHEST_ID, HFCLIPConfig
from hf_clip.model.modeling_inputs_hf_clip import check_pixels, check_texts, out_of_range
from hf_clip.model.processing_hf_clip import HFCLIPProcessor

from .errors import ExportError, optional

# Folder of the files of each runtime, and how they end.
RUNTIMES = {"onnx": "onnx", "openvino": "xml"}

# From inputs, in the order of the tower's names, to (B, D).
_Run = Callable[[Sequence[np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class Manifest:
    """What an exported folder says of itself, in `hf_clip_export.json`.

    Attributes:
        runtime: "onnx" or "openvino".
        dtype: of the weights in the files that are not int8.
        int8: whether products with weights are int8.
        files: of the towers "image" and "text", relative to the folder.
        inputs: of each tower, by name: the sizes of the dimensions, None where a dimension is free.
        logit_scale: the logarithm of the scale of logits.
        logit_bias: of a model that a sigmoid trained, else None.
        source: what was exported.
        parity: what `ParityReport.to_dict` gave.
    """

    runtime: str
    dtype: str
    int8: bool
    files: Mapping[str, str]
    inputs: Mapping[str, Mapping[str, Sequence[int | None]]]
    logit_scale: float
    logit_bias: float | None
    source: str
    parity: Mapping[str, Any] | None = None

    @property
    def precision(self) -> str:
        """In words, for people."""
        if not self.int8:
            return self.dtype
        return f"int8 (products with weights), {self.dtype} (all else)"


def is_exported(source: str | Path) -> bool:
    """Whether a folder was written by `export_model`."""
    return (Path(source).expanduser() / MANIFEST).is_file()


def load_exported(
    folder: str | Path, *, device: torch.device | str | None = None
) -> tuple["ExportedCLIP", HFCLIPProcessor]:
    """The model of a folder that `export_model` wrote, with the processor that makes its inputs.

    It takes as many threads as `torch.get_num_threads()` says.

    Args:
        folder: with `hf_clip_export.json` in it.
        device: None or the CPU.

    Raises:
        ExportError: (a ValueError) if it is no such folder, or is damaged; for another device.
        ImportError: where the runtime is not installed.
    """
    folder = Path(folder).expanduser()
    if not is_exported(folder):
        raise ExportError(f"{folder} is no exported model: it has no {MANIFEST}. hf_clip.load takes checkpoints.")
    _require_cpu(device)
    manifest = read_manifest(folder)
    with one_line_errors(folder):
        config = HFCLIPConfig.from_pretrained(folder)
        processor = HFCLIPProcessor.from_pretrained(folder, trust_remote_code=False)
    return ExportedCLIP(folder, manifest, config, takes_mask="attention_mask" in manifest.inputs["text"]), processor


def read_manifest(folder: Path) -> Manifest:
    """What the folder says of itself. Raises ExportError for one that is damaged."""
    content = read_json(folder / MANIFEST)
    fields = Manifest.__dataclass_fields__
    try:
        manifest = Manifest(**{name: content[name] for name in fields if name in content})
        files = [manifest.files["image"], manifest.files["text"]]
        shapes = [manifest.inputs["image"]["pixel_values"], manifest.inputs["text"]["input_ids"]]
        is_sound = manifest.runtime in RUNTIMES and [len(shape) for shape in shapes] == [4, 2]
        float(manifest.logit_scale)
    except (KeyError, TypeError, ValueError) as error:
        raise ExportError(
            f"{folder / MANIFEST} lacks what it must have ({short_reason(error)}): export again."
        ) from None
    # A file of a folder stands in it.
    inside = all(
        isinstance(name, str) and ".." not in Path(name).parts and not Path(name).is_absolute() for name in files
    )
    if not is_sound or not inside:
        raise ExportError(f"{folder / MANIFEST} is of no folder that this version reads: export again.")
    for name in files:
        if not (folder / name).is_file():
            raise ExportError(f"{folder} lacks {name}: copy the whole folder, or export again.")
    return manifest


def _require_cpu(device: Any) -> None:
    if device is not None and torch.device(device).type != "cpu":
        raise ExportError(f"`device={device}`: an exported model runs on the CPU. Drop it, or load the checkpoint.")


class ExportedTower(nn.Module):
    """One file of an exported folder. Its state is the file's content, so that kept embeddings know it again."""

    def __init__(self, folder: Path, manifest: Manifest, tower: str):
        super().__init__()
        self.file = folder / manifest.files[tower]
        self.precision = manifest.precision
        self.inputs = {name: tuple(shape) for name, shape in manifest.inputs[tower].items()}
        start = _start_onnx if manifest.runtime == "onnx" else _start_openvino
        self._run = start(self.file, manifest)
        self._content = _Content(self.file)

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        """(B, D) embeddings, float32, not normalized."""
        given = [np.ascontiguousarray(inputs[name].detach().numpy()) for name in self.inputs]
        # Not of the runtime's memory, which the next call may use again.
        return torch.from_numpy(np.array(self._run(given), dtype=np.float32))

    def _save_to_state_dict(self, destination, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}content"] = self._content.digest


class _Content:
    """What is in a file, as a hash: read once, when somebody asks."""

    def __init__(self, file: Path):
        self.file = file

    @cached_property
    def digest(self) -> torch.Tensor:
        digest = hashlib.sha256()
        for file in _files_with_weights(self.file):
            with file.open("rb") as stream:
                while block := stream.read(1 << 24):
                    digest.update(block)
        return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def _files_with_weights(file: Path) -> list[Path]:
    beside = (file.with_name(f"{file.name}_data"), file.with_suffix(".bin"))
    return [file, *(one for one in beside if one.is_file())]


def _start_onnx(file: Path, manifest: Manifest) -> _Run:
    runtime = optional("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Its warnings are of what it optimizes.
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(
            f"{file} cannot be loaded by ONNX Runtime ({short_reason(error)[:200]}): export again."
        ) from error
    names = [one.name for one in session.get_inputs()]
    return lambda inputs: session.run(None, dict(zip(names, inputs, strict=True)))[0]


def _start_openvino(file: Path, manifest: Manifest) -> _Run:
    openvino = optional("openvino")
    core = openvino.Core()
    # Left alone, OpenVINO computes in halves where the processor is fast at them.
    can_halve = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    wanted = {"float16": ("FP16", "f16"), "bfloat16": ("BF16", "bf16")}.get(manifest.dtype)
    precision = wanted[1] if wanted is not None and wanted[0] in can_halve else "f32"
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": precision}
    try:
        model = core.compile_model(core.read_model(file), "CPU", settings)
    except Exception as error:
        raise ExportError(
            f"{file} cannot be loaded by OpenVINO ({short_reason(error)[:200]}): export again."
        ) from error
    # A request of its own for each call: threads may share a model.
    return lambda inputs: model.create_infer_request().infer(list(inputs))[0]


class ExportedCLIP(nn.Module):
    """A dual encoder whose towers are exported: in `embed_images`, `embed_texts`, `ZeroShotClassifier` and every
    evaluation it takes the model's place. It can't be trained, and has no weights of torch.

    Attributes:
        config: of the model that was exported.
        manifest: what the folder says of itself.
        logit_scale: scalar, as in `HFCLIPModel`.
        logit_bias: scalar, or None.
    """

    logit_scale: torch.Tensor
    logit_bias: torch.Tensor | None

    def __init__(self, folder: Path, manifest: Manifest, config: HFCLIPConfig, *, takes_mask: bool):
        super().__init__()
        self.config, self.manifest, self.takes_mask = config, manifest, takes_mask
        self.vision_model = ExportedTower(folder, manifest, "image")
        self.text_model = ExportedTower(folder, manifest, "text")
        self.register_buffer("logit_scale", torch.tensor(float(manifest.logit_scale)))
        bias = manifest.logit_bias
        self.register_buffer("logit_bias", None if bias is None else torch.tensor(float(bias)))
        self.eval()

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of the embeddings that it gives."""
        return torch.float32

    def to(self, *args: Any, **kwargs: Any) -> "ExportedCLIP":
        """Itself. Raises ExportError for another device than the CPU and another type than float32."""
        device, dtype, *_ = cast(Any, torch._C)._nn._parse_to(*args, **kwargs)
        _require_cpu(device)
        if dtype not in (None, torch.float32):
            raise ExportError(
                f"`dtype={str(dtype)[6:]}`: the precision of an exported model is that of its files. Export it again."
            )
        return self

    def encode_image(self, pixel_values: torch.Tensor, normalize: bool = True) -> torch.Tensor:
        """(B, D) float32 embeddings of images, unit length unless `normalize=False`.

        Raises TypeError and ValueError for inputs that the model would refuse too.
        """
        pixel_values = check_pixels(pixel_values, self.config.vision_config.num_channels, torch.float32)
        shape = self.vision_model.inputs["pixel_values"]
        for given, size in zip(pixel_values.shape[2:], shape[2:], strict=True):
            if size is not None and given != size:
                rows, columns = pixel_values.shape[2:]
                raise ValueError(
                    f"Images of {rows} x {columns} pixels do not fit the exported {shape[2]} x {shape[3]}: resize "
                    "them (the processor does so)."
                )
        return _finished(self._encode(self.vision_model, pixel_values=pixel_values), normalize)

    def encode_text(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, normalize: bool = True
    ) -> torch.Tensor:
        """(B, D) float32 embeddings of texts, unit length unless `normalize=False`.

        A causal tower was exported without a mask, whose padding its end token can't see. Raises TypeError and
        ValueError for inputs that the model would refuse too, and for such a tower masks other than of right padding.
        """
        check_texts(input_ids, attention_mask, None)
        self._check_length(input_ids.shape[1])
        if attention_mask is not None and attention_mask.ndim != 2:
            raise ValueError(
                "`attention_mask` has four dimensions, which an exported model does not take: pass (B, T)."
            )
        mask_BT = self._mask(input_ids, attention_mask)
        self._check_ids(input_ids, mask_BT)
        inputs = {"input_ids": input_ids.long()}
        if self.takes_mask:
            inputs["attention_mask"] = mask_BT.long()
        return _finished(self._encode(self.text_model, **inputs), normalize)

    def _encode(self, tower: ExportedTower, **inputs: torch.Tensor) -> torch.Tensor:
        try:
            return tower(**inputs)
        # Each runtime's own.
        except Exception as error:
            raise ValueError(f"{tower.file.name} cannot be run ({short_reason(error)[:200]}).") from error

    def _check_length(self, length: int) -> None:
        text = self.config.text_config
        size, limit = self.text_model.inputs["input_ids"][1], text.max_position_embeddings
        if size is not None and length != size:
            raise ValueError(
                f"Texts of {length} tokens do not fit the exported {size}: pad them to that (padding='max_length', "
                f"max_length={size}; the processor does so)."
            )
        if length > limit:
            raise ValueError(
                f"Texts of {length} tokens are longer than the model's {limit} positions: truncate them to {limit} "
                "(the processor and the tokenizer do so, and keep the end token)."
            )

    def _mask(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Which tokens are text, (B, T)."""
        text = self.config.text_config
        if attention_mask is None:
            if text.tower != "transformers" or text.pad_token_id is None:
                return torch.ones_like(input_ids)
            if text.pad_token_id == text.eos_token_id:
                raise ValueError(
                    f"Texts are padded with their end token (id {text.pad_token_id}), which hides where they end: "
                    "pass `attention_mask`, which the tokenizer returns."
                )
            return input_ids.ne(text.pad_token_id)
        mask_BT = attention_mask.ne(0)
        is_right = bool((mask_BT[:, :1].all()) & (mask_BT[:, 1:] <= mask_BT[:, :-1]).all())
        if not is_right and not self.takes_mask:
            raise ValueError(
                "`attention_mask` hides tokens before others that it shows: pad on the right "
                "(tokenizer.padding_side = 'right')."
            )
        return mask_BT

    def _check_ids(self, input_ids: torch.Tensor, mask_BT: torch.Tensor) -> None:
        text = self.config.text_config
        if int(input_ids.min()) < 0 or int(input_ids.max()) >= text.vocab_size:
            raise out_of_range("input_ids", input_ids, text.vocab_size)
        is_marked = text.eos_token_id == POOL_AT_HIGHEST_ID and text.tower == "clip"
        needs_end = {"first_eos": True, "eos": not is_marked, "mean": text.tower == "clip" and not is_marked}
        if not needs_end.get(text.pooling, False):
            return
        is_end_BT = input_ids.eq(cast(int, text.eos_token_id))
        if self.takes_mask:
            is_end_BT = is_end_BT & mask_BT.ne(0)
        if not is_end_BT.any(dim=-1).all():
            raise ValueError(
                f"A text has no end token (id {text.eos_token_id}): tokenize with add_special_tokens=True, and "
                "truncate with the tokenizer, which keeps the end token."
            )


def _finished(embeddings_BD: torch.Tensor, normalize: bool) -> torch.Tensor:
    return F.normalize(embeddings_BD, dim=-1) if normalize else embeddings_BD


def write_manifest(folder: Path, manifest: Manifest) -> None:
    content = {"format": 1, **{name: getattr(manifest, name) for name in Manifest.__dataclass_fields__}}
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
