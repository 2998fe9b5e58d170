"""What made a model: this package's version, and the commit of its code."""

import importlib.metadata
import json
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def made_with() -> dict[str, str]:
    """`hf_clip`, the version, and `revision`, the commit, where it is known; "+ changes" if the code differs from it.

    The commit is that of the tree which the package runs from, or the one that pip installed it from (PEP 610).
    """
    revision = _revision_of_tree() if (ROOT / ".git").exists() else _revision_installed()
    return {"hf_clip": importlib.metadata.version("hf-clip"), **({"revision": revision} if revision else {})}


def _revision_of_tree() -> str | None:
    try:
        commit = _git("rev-parse", "HEAD").strip()
        changes = _git("status", "--porcelain", "--untracked-files=no").strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit} + changes" if changes else commit


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout


def _revision_installed() -> str | None:
    url = importlib.metadata.distribution("hf-clip").read_text("direct_url.json")
    return json.loads(url or "{}").get("vcs_info", {}).get("commit_id")
