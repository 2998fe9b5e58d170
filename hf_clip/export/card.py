"""The card of an exported folder: what it is, how exact, and how it is used."""

import re
from pathlib import Path

from .parity import ParityReport
from .runtime import Manifest

_USE = """```python
from hf_clip import ZeroShotClassifier, load_exported

model, processor = load_exported("{folder}")
classifier = ZeroShotClassifier(model, processor, labels=["cat", "dog"])
```"""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def write_card(folder: Path, manifest: Manifest, report: ParityReport) -> None:
    """Writes README.md."""
    runtime = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}[manifest.runtime]
    is_on_hub = _HUB_ID.fullmatch(manifest.source) is not None
    base = f"base_model: {manifest.source}\n" if is_on_hub else ""
    lines = [
        "---",
        f"{base}library_name: {manifest.runtime}\npipeline_tag: zero-shot-image-classification\ntags:\n- clip\n---",
        f"\n# {manifest.source} for {runtime}\n",
        "| file | inputs | MB |\n| --- | --- | --- |",
    ]
    for tower in ("image", "text"):
        file = folder / manifest.files[tower]
        size = sum(one.stat().st_size for one in file.parent.iterdir() if one.name.startswith(file.stem))
        inputs = ", ".join(
            f"`{key}` ({', '.join('any' if size is None else str(size) for size in shape)})"
            for key, shape in manifest.inputs[tower].items()
        )
        lines.append(f"| `{manifest.files[tower]}` | {inputs} | {size / 1e6:.1f} |")
    lines += [
        f"\nWeights: {manifest.precision}. Embeddings are not normalized; `logit_scale` and `logit_bias` are in "
        "`hf_clip_export.json`.",
        f"\nMeasured beside the model in float32, {report}.\n",
        _USE.format(folder=folder.name),
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
