"""A Space on the Hub that shows a model: a page of Gradio which loads it from there."""

import importlib.metadata
import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from .package_version import made_with
from .upload import upload

# The one that the page was tried with.
GRADIO = "6.31.0"
_APP = Path(__file__).with_name("space_app.py")

logger = logging.getLogger(__name__)


def push_space(
    repo_id: str,
    *,
    source: Path | None = None,
    private: bool = False,
) -> str:
    """Makes, or replaces, the Space that shows a model of the Hub, and returns its URL.

    Args:
        repo_id: owner/name of the model; the Space has the same.
        source: the model's folder, whose templates the page begins with; by default CLIP's.
        private: whether a new Space is private, as one of a private model must be. Its setting HF_TOKEN lets it read
            the model.

    Raises:
        PushError: if the upload fails.
    """
    with tempfile.TemporaryDirectory(prefix="hf-clip-space-") as name:
        folder = Path(name)
        write_space(folder, repo_id, _templates(source))
        logger.info(f"Space {repo_id}: {', '.join(sorted(file.name for file in folder.iterdir()))}")
        message = f"Page of the model, by hf_clip {made_with()['hf_clip']}"
        return upload(folder, repo_id, private=private, message=message, space_sdk="gradio")


def _templates(source: Path | None) -> Sequence[str]:
    """The templates that a model was saved with."""
    try:
        config = json.loads((source / "config.json").read_bytes()) if source is not None else {}
        return config.get("zero_shot_templates") or ()
    except (OSError, ValueError, AttributeError):
        return ()


def write_space(folder: Path, repo_id: str, templates: Sequence[str] = ()) -> None:
    """Writes app.py, requirements.txt and README.md."""
    code = _APP.read_text(encoding="utf-8")
    code = code.replace('MODEL_ID = "owner/name"', f"MODEL_ID = {json.dumps(repo_id)}")
    if templates:
        code = code.replace('= ["a photo of a {}."]', f"= {json.dumps(list(templates))}")
    (folder / "app.py").write_text(code, encoding="utf-8")
    # The package itself is not needed: its code comes with the model.
    plain = [line for line in importlib.metadata.requires("hf-clip") or [] if ";" not in line]
    (folder / "requirements.txt").write_text("\n".join(plain) + "\n", encoding="utf-8")
    about = {
        "title": repo_id.split("/")[-1],
        "sdk": "gradio",
        "sdk_version": GRADIO,
        "app_file": "app.py",
        "models": [repo_id],
        "short_description": "Classify and search images with this model",
    }
    front = yaml.safe_dump(about, sort_keys=False)
    text = f"The page of [{repo_id}](https://huggingface.co/{repo_id}): it names what images show, and finds them."
    (folder / "README.md").write_text(f"---\n{front}---\n\n{text}\n", encoding="utf-8")
