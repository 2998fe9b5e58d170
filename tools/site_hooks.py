"""What the documentation site makes of the repository itself, called by mkdocs as mkdocs.yml says.

The changelog, the reference of the command and that of the Python names are pages that no file holds: they are of the
code as it is when the site is built. Pages of docs/ that mkdocs.yml does not list stand under "Use".
"""

import ast
import importlib.util
import re
import shutil
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
# Where the package's folders stand when it is installed.
MAPPED = {"conversion": "conversion", "training": "training"}
# What `hf_clip/__init__.py` says of its names.
SETS = ("_HOME", "__all__")
# Titles of the API's sections, by the package that the names are from; another one's name is its title.
SECTIONS = {
    "conversion": "Checkpoints",
    "model": "Models, embeddings and classification",
    "search": "Search",
    "evaluation": "Evaluation",
    "training": "Training",
    "sources": "Data",
    "prompts": "Prompts",
    "joining_towers": "Joining towers",
    "export": "Export",
    "hub": "Publishing",
}


def on_startup(command, dirty):
    """Lays the package out as it is installed, for the reader of docstrings."""
    source = ROOT / "build/site_source/hf_clip"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    for item in (ROOT / "hf_clip").iterdir():
        if item.name != "__pycache__":
            (source / item.name).symlink_to(item)
    for name, folder in MAPPED.items():
        (source / name).symlink_to(ROOT / folder)


def on_config(config):
    """Lists pages that mkdocs.yml does not."""
    listed = re.findall(r"[\w-]+\.md", str(config.nav))
    use = next(entry["Use"] for entry in config.nav if "Use" in entry)
    use += [page.name for page in sorted((ROOT / "docs").glob("*.md")) if page.name not in listed]
    return config


def on_files(files, config):
    """Adds the pages that are made here."""
    pages = {"changelog.md": changelog(), "cli.md": command_reference(), "api.md": api_reference()}
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def changelog() -> str:
    """CHANGELOG.md, with links as they lead from within docs/."""
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "](")


def command_reference() -> str:
    spec = importlib.util.spec_from_file_location("make_cli_reference", ROOT / "tools/make_cli_reference.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script.page()


def api_reference() -> str:
    """A directive of mkdocstrings for each public name, by the package that it is from."""
    parts = ["# Python reference", "", "Every name of `hf_clip`. Each is imported on first use.", ""]
    homes = public_homes()
    packages = dict.fromkeys([*SECTIONS, *sorted({home.split(".")[0] for home in homes.values()})])
    for package in packages:
        names = [name for name, home in homes.items() if home.split(".")[0] == package]
        if names:
            parts += [f"## {SECTIONS.get(package, package.replace('_', ' ').capitalize())}", ""]
        # Classes stand behind functions, errors at the end.
        for name in sorted(names, key=lambda one: (one[0].isupper(), one.endswith("Error"), one)):
            parts += [f"::: hf_clip.{homes[name]}.{name}", "    options:", f"      heading: hf_clip.{name}", ""]
    return "\n".join(parts)


def public_homes() -> dict[str, str]:
    """The module of each public name within the package, read from `hf_clip/__init__.py` without importing it."""
    tree = ast.parse((ROOT / "hf_clip/__init__.py").read_text(encoding="utf-8"))
    values = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in SETS
    }
    return {name: values["_HOME"][name] for name in values["__all__"]}
