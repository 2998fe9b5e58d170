"""`export_model`: a checkpoint of any format as files for ONNX Runtime or OpenVINO."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from hf_clip.conversion import load
from hf_clip.conversion.locating import plain_name
from hf_clip.model.modeling_hf_clip import HFCLIPModel
from hf_clip.model.processing_hf_clip import HFCLIPProcessor

from .card import write_card
from .errors import ExportError
from .graphs import FILES, prepare, read_inputs, write_graph
from .openvino_files import write_openvino
from .parity import ParityReport, compare, embeddings_of, listed
from .precision import DTYPES, quantize, round_weights
from .runtime import RUNTIMES, Manifest, load_exported, write_manifest

# As transformers.js tells files of several precisions apart.
_SUFFIXES = {"float32": "", "float16": "_fp16", "bfloat16": "_bf16"}


def export_model(
    source: str | Path,
    *,
    to: str,
    output_dir: str | Path,
    int8: bool = False,
    dtype: str | None = None,
    images: Any = None,
    texts: Iterable[str] | None = None,
    allow_low_parity: bool = False,
    **options: Any,
) -> ParityReport:
    """Writes the towers of a checkpoint for another runtime, with config and processor beside them.

    Batch and text length are free, and so is the image size where the tower takes any. What was written is run beside
    the model before the folder takes its place: it is complete and near the model, or absent. `load_exported`
    reads it.

    Args:
        source: whatever `load` takes.
        to: "onnx" or "openvino".
        output_dir: a folder that is empty or does not exist yet.
        int8: make products with weights int8. With "onnx" they are computed in int8, each activation with a scale of
            its own; with "openvino" where the processor is fast at that.
        dtype: "float32", "float16" or "bfloat16", of the weights that stay floating point; None is the checkpoint's.
            Computed is in float32, in OpenVINO in that type where the processor is fast at it.
        images: images for the parity report, as `embed_images` takes them; None draws some.
        texts: texts for it; None are those of the drawn images.
        allow_low_parity: write what is below the bounds of `ParityReport`, too.
        options: arguments of `load` about what the source does not say.

    Returns:
        The parity with the model, in float32.

    Raises:
        ExportError: (a ValueError) for a tower that cannot be exported, and for parity below the bounds.
        ImportError: where the extra `export` is not installed.
        ValueError: for unknown arguments, for a folder that holds something, and what `load` raises.
    """
    output_dir = Path(output_dir).absolute()
    _check(source, to, dtype, output_dir)
    model, processor, own_dtype = _load(source, options)
    dtype = dtype or own_dtype
    images, texts = listed(images, texts)
    reference = embeddings_of(model, processor, images, texts)
    prepare(model)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output_dir.name}-", dir=output_dir.parent) as temporary:
        result = Path(temporary) / output_dir.name
        manifest = _write(model, processor, result, to, dtype, int8=int8, source=_shown(source))
        exported, own_processor = load_exported(result)
        report = compare(reference, embeddings_of(exported, own_processor, images, texts), int8=int8)
        if not allow_low_parity:
            _require_parity(report, source)
        manifest = Manifest(**{**vars(manifest), "parity": report.to_dict()})
        write_manifest(result, manifest)
        write_card(result, manifest, report)
        del exported
        result.replace(output_dir)
    return report


def _check(source: str | Path, to: str, dtype: str | None, output_dir: Path) -> None:
    if to not in RUNTIMES:
        raise ValueError(f"`to={to}` is not a runtime to export for: use one of {', '.join(RUNTIMES)}.")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"`dtype={dtype}` is not known: use one of {', '.join(DTYPES)}.")
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ValueError(
            f"`output_dir={output_dir}` holds something already: name a folder that is empty or does not exist yet."
        )
    folder = Path(plain_name(source)).expanduser()
    if folder.is_dir() and output_dir.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"`output_dir={output_dir}` is inside {folder}, which is read: name a folder outside of it.")


def _require_parity(report: ParityReport, source: str | Path) -> None:
    if report.failures:
        raise ExportError(
            f"the export is too far from {source}: {'; '.join(report.failures)}. Export with another precision, or "
            "set `allow_low_parity`."
        )


def _shown(source: str | Path) -> str:
    """A Hub id as it is; of a path its last name: the rest says something about its owner's machine."""
    name = plain_name(source)
    path = Path(name).expanduser()
    return path.resolve().name if path.exists() else name


def _load(source: str | Path, options: dict[str, Any]) -> tuple[HFCLIPModel, HFCLIPProcessor, str]:
    """The model in float32, its processor, and the type that its weights had."""
    model, processor = load(source, **options)
    if model.config.vision_config.tower == "naflex":
        raise ExportError(
            "an image tower of NaFlex cannot be exported: its images have a mask and shapes of their own."
        )
    dtype = str(model.dtype).removeprefix("torch.")
    return model.float(), processor, dtype


@torch.no_grad()
def _write(
    model: HFCLIPModel, processor: HFCLIPProcessor, folder: Path, to: str, dtype: str, *, int8: bool, source: str
) -> Manifest:
    """Fills a folder with all but the report and the card."""
    (folder / to).mkdir(parents=True)
    files, inputs = {}, {}
    suffix = "_int8" if int8 else _SUFFIXES[dtype]
    for tower, name in FILES.items():
        # One tower after the other: what is in between takes the place of its weights again.
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            graph = Path(temporary) / "graph.onnx"
            write_graph(model, processor, tower, graph)
            inputs[tower] = read_inputs(graph)
            target = folder / to / f"{name}{suffix}.{RUNTIMES[to]}"
            if to == "openvino":
                write_openvino(graph, target, dtype, int8=int8)
            else:
                if int8:
                    quantize(graph, graph := graph.with_name("int8.onnx"))
                round_weights(graph, target, dtype)
            files[tower] = target.relative_to(folder).as_posix()
    model.config.save_pretrained(folder)
    processor.save_pretrained(folder)
    bias = model.logit_bias
    manifest = Manifest(
        runtime=to,
        dtype=dtype,
        int8=int8,
        files=files,
        inputs=inputs,
        logit_scale=model.logit_scale.item(),
        logit_bias=None if bias is None else bias.item(),
        source=source,
    )
    write_manifest(folder, manifest)
    return manifest
