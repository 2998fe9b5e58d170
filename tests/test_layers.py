"""Every module belongs to a layer, and imports only from layers below it or from its own package."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

from tests.helpers.warm_python import warm_python

ROOT = Path(__file__).parents[1]

# Pattern of files (a row is one package), its layer. The first row that fits a file counts.
LAYERS = [
    ("hf_clip_cli/*.py hf_clip/__init__.py hf_clip/__main__.py", 6),
    ("hf_clip/model/configuration_*hf_clip.py hf_clip/model/remote_code_hf_clip.py", 0),
    ("hf_clip/model/arguments_hf_clip.py hf_clip/model/device_hf_clip.py", 0),
    ("hf_clip/messages.py", 0),
    ("hf_clip/model/loss_hf_clip.py hf_clip/model/caption_loss_hf_clip.py", 0),
    ("hf_clip/model/image_decoding_hf_clip.py hf_clip/model/image_plugins_hf_clip.py", 0),
    ("hf_clip/model/image_patches_hf_clip.py", 0),
    ("hf_clip/model/__init__.py", 0),
    ("hf_clip/model/modeling_*hf_clip.py", 1),
    ("hf_clip/model/*processing_hf_clip.py hf_clip/model/tokenization_hf_clip.py", 1),
    ("hf_clip/model/image_files_hf_clip.py", 1),
    ("hf_clip/model/*_hf_clip.py", 2),
    ("hf_clip/joining_towers.py", 2),
    ("hf_clip/prompts.py", 2),
    ("hf_clip/sources/*.py", 2),
    ("hf_clip/conversion/*.py", 3),
    ("hf_clip/evaluation/*.py", 4),
    ("hf_clip/hub/*.py", 4),
    ("hf_clip/search/*.py", 4),
    ("hf_clip/captions/*.py", 4),
    ("hf_clip/export/*.py", 4),
    ("hf_clip/compat/*.py", 4),
    ("hf_clip/tools/*.py", 4),
    ("hf_clip/serving/*.py", 5),
    ("hf_clip/training/*.py", 5),
]
# Folders that stand beside the package in the tree and inside it when installed.
MAPPED = {"training": "hf_clip/training", "conversion": "hf_clip/conversion", "cli": "hf_clip_cli"}
# What a machine has that loads a model with trust_remote_code: transformers with torch, and what they need.
SHIPPED_MAY_IMPORT = {"PIL", "huggingface_hub", "numpy", "safetensors", "tokenizers", "torch", "transformers"}
NEVER = {"timm", "torchvision"}
# A program that is written into a Space, and never imported here.
SPACE = "hf_clip/hub/space_app.py"
# But for these, which no dependency of ours brings, within a function.
EXCEPT = {
    ("hf_clip/model/modeling_timm_hf_clip.py", "timm"),
    # A Space runs it, on the Gradio of its own requirements.
    (SPACE, "gradio"),
    # It made the adapters that it reads.
    ("hf_clip/conversion/adapters.py", "peft"),
    # It trains those that a recipe asks for.
    ("hf_clip/training/lora.py", "peft"),
    # They are those libraries' interfaces.
    ("hf_clip/tools/langchain.py", "langchain_core"),
    ("hf_clip/tools/llama_index.py", "llama_index"),
    # They read what cameras and phones write, where somebody installed them.
    ("hf_clip/model/image_plugins_hf_clip.py", "pi_heif"),
    ("hf_clip/model/image_plugins_hf_clip.py", "pillow_heif"),
    ("hf_clip/model/image_plugins_hf_clip.py", "rawpy"),
    # It finds connected places.
    ("hf_clip/model/localization_hf_clip.py", "scipy"),
    # It spells out names of many shards.
    ("hf_clip/sources/files.py", "braceexpand"),
    # It decodes JPEGs for training faster, where somebody installed it.
    ("hf_clip/training/stream/images.py", "simplejpeg"),
}
# What leans upward, within a function and where ImportError is caught: a classifier of a checkpoint is made by `load`
# where the package is installed, and by transformers' Auto classes where the code came with a model.
UPWARD = {
    ("hf_clip/model/zero_shot_hf_clip.py", "hf_clip.load"),
    ("hf_clip/model/zero_shot_hf_clip.py", "hf_clip.load_exported"),
    ("hf_clip/model/zero_shot_hf_clip.py", "hf_clip.export.runtime.is_exported"),
    ("hf_clip/model/zero_shot_hf_clip.py", "hf_clip.prompts.load_prompts"),
}
OTHER_TOP_LEVEL = {"benchmarks", "examples", "tests", "tools", *MAPPED}


def installed_name(path: Path) -> str:
    """The file's path within site-packages: training/loop.py is hf_clip/training/loop.py there."""
    top, _, rest = path.relative_to(ROOT).as_posix().partition("/")
    return f"{MAPPED.get(top, top)}/{rest}"


FILES = {
    installed_name(path): path for folder in ("hf_clip", *MAPPED) for path in sorted((ROOT / folder).rglob("*.py"))
}
SHIPPED = [name for name in FILES if name.endswith("_hf_clip.py")]


def layer_of(name: str) -> tuple[str, int]:
    """The row of LAYERS that a file belongs to."""
    for patterns, layer in LAYERS:
        if any(fnmatch(name, pattern) for pattern in patterns.split()):
            return patterns, layer
    raise LookupError(
        f"{name} belongs to no layer: give it a row in LAYERS here and in the design's table, one above the "
        "highest that it imports from."
    )


def package_of(name: str) -> list[str]:
    return name.removesuffix(".py").split("/")[:-1]


def imported_modules(name: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a file imports, within functions too.

    `from a import b` gives `a.b`: whether b is a module or a name in one is for the caller to see.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package_of(name)[: len(package_of(name)) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def modules_named_in_calls(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of what a file imports by `import_module("...")`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            if ast.unparse(node.func).endswith(("import_module", "__import__")):
                yield node.lineno, str(node.args[0].value)


def file_of(module: str) -> str | None:
    """The file of FILES that importing a dotted name reaches, or None where it is another package's."""
    parts = module.split(".")
    if parts[0] not in ("hf_clip", "hf_clip_cli"):
        return None
    while parts:
        path = "/".join(parts)
        for candidate in (f"{path}.py", f"{path}/__init__.py"):
            if candidate in FILES:
                return candidate
        parts.pop()
    return None


@cache
def parsed(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text(encoding="utf-8"), name)


def imports_upward(name: str) -> list[str]:
    """A line for each import that reaches a layer which the file may not import."""
    package, layer = layer_of(name)
    tree, wrong = parsed(name), []
    for line, module in (*imported_modules(name, tree), *modules_named_in_calls(tree)):
        target = file_of(module)
        if (name, module) in UPWARD or target is None or layer_of(target)[0] == package or layer_of(target)[1] < layer:
            continue
        wrong.append(f"{name}:{line} (layer {layer}) imports {module} (layer {layer_of(target)[1]})")
    return wrong


@pytest.mark.parametrize("name", FILES)
def test_a_file_imports_only_from_layers_below_or_its_own_package(name):
    assert not imports_upward(name)


@pytest.mark.parametrize("name", FILES)
def test_no_file_imports_what_may_be_absent_or_is_not_shipped(name):
    for line, module in imported_modules(name, parsed(name)):
        top = module.split(".")[0]
        assert top not in NEVER or (name, top) in EXCEPT, f"{name}:{line}: {module} is often absent or broken."
        assert top not in OTHER_TOP_LEVEL, f"{name}:{line}: {top} is no package of an installed hf_clip."


def test_what_may_be_absent_is_imported_only_when_asked_for():
    for name, package in EXCEPT:
        if name == SPACE:
            continue
        functions = [node for node in ast.walk(parsed(name)) if isinstance(node, ast.FunctionDef)]
        within = {line for function in functions for line, _ in imported_modules(name, function)}
        everywhere = {line for line, module in imported_modules(name, parsed(name)) if module.split(".")[0] == package}
        assert everywhere and everywhere <= within, f"{name}: import {package} within a function."


def test_what_imports_upward_does_so_once_and_can_do_without():
    for name, module in UPWARD:
        tree = parsed(name)
        lines = [line for line, imported in imported_modules(name, tree) if imported == module]
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        guarded = {
            line
            for function in functions
            for node in ast.walk(function)
            if isinstance(node, ast.Try)
            and "ImportError" in [ast.unparse(one.type) for one in node.handlers if one.type]
            for statement in node.body
            for line, imported in imported_modules(name, statement)
            if imported == module
        }
        assert len(lines) == 1 and set(lines) == guarded, f"{name}: import {module} once, in a function, under try."


def required_imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Absolute imports that stand in no `try`: what the file can't do without."""
    tried = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.Try) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in tried:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.lineno, node.module


@pytest.mark.parametrize("name", SHIPPED)
def test_a_file_pushed_to_the_hub_works_without_this_package(name):
    assert package_of(name) == ["hf_clip", "model"], f"{name}: the Hub's folder is flat."
    for line, module in required_imports(parsed(name)):
        top = module.split(".")[0]
        assert top in SHIPPED_MAY_IMPORT | sys.stdlib_module_names, f"{name}:{line} needs {module}."
    # transformers finds the files to copy by a pattern over the text, docstrings included.
    for line in re.findall(r"^\s*(?:from|import)\s+\.[^\n]*", FILES[name].read_text("utf-8"), re.M):
        assert re.match(r"\s*from \.[a-z_]+_hf_clip import ", line), (
            f"{name}: `{line.strip()}` is not shipped: write `from .name_hf_clip import x`."
        )


@pytest.fixture(scope="module")
def owners_of_imports():
    """Top-level import name -> distributions that bring it, in one spelling."""
    found = importlib.metadata.packages_distributions()
    return {top: {spelling(owner) for owner in owners} for top, owners in found.items()}


def spelling(distribution: str) -> str:
    return re.match(r"[\w.-]+", distribution)[0].lower().replace("_", "-")


@pytest.mark.parametrize("name", FILES)
def test_every_third_party_import_is_a_declared_dependency(name, owners_of_imports):
    required = importlib.metadata.requires("hf-clip")
    declared = {spelling(line) for line in required if not re.search("extra == .dev", line)}
    for line, module in imported_modules(name, parsed(name)):
        top = module.split(".")[0]
        if top not in ("hf_clip", "hf_clip_cli") and top not in sys.stdlib_module_names and (name, top) not in EXCEPT:
            owners = owners_of_imports.get(top, set())
            assert owners & declared, f"{name}:{line} imports {top}, which setup.py does not name."


def test_a_file_without_a_layer_is_told_where_layers_are_given():
    with pytest.raises(LookupError, match="LAYERS"):
        layer_of("hf_clip/attic.py")


@pytest.mark.parametrize("name", FILES)
def test_state_dicts_load_whole(name):
    """A state dict loaded with strict=False hides what did not fit: random weights, silently."""
    for node in ast.walk(parsed(name)):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "").endswith("load_state_dict"):
            said = [ast.unparse(keyword) for keyword in node.keywords]
            assert "strict=False" not in said, f"{name}:{node.lineno}: a leftover on either side must raise."


@pytest.mark.slow
def test_import_is_light(tmp_path):
    """Registering the models with transformers needs torch; nothing else that is heavy may come along."""
    script = """
import sys
import transformers.modeling_utils, transformers.processing_utils
# What the warm Python has of these is imported anew by whoever wants it.
for name in [name for name in sys.modules if name.partition(".")[0] in ("pandas", "pyarrow")]:
    del sys.modules[name]
before = set(sys.modules)
import hf_clip
heavy = {"accelerate", "datasets", "matplotlib", "pandas", "pyarrow", "sklearn", "tensorboard",
         "timm", "torchvision", "hf_clip_cli.main", "hf_clip.evaluation", "hf_clip.hub", "hf_clip.sources",
         "hf_clip.search", "hf_clip.training", "lancedb"}
print(*sorted(heavy & (set(sys.modules) - before)))
"""
    command = [*warm_python("libraries"), "-c", script]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stderr
