"""The package's public names: complete, known to editors, and the same objects whatever was imported before."""

import ast
import inspect
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import hf_clip

PROMISED = {
    "load", "embed_images", "embed_texts", "ZeroShotClassifier", "contrastive_loss", "sigmoid_loss", "train",
    "load_recipe", "convert", "push", "evaluate_zero_shot", "evaluate_retrieval", "evaluate_linear_probe",
    "evaluate_few_shot", "evaluate_corruptions", "evaluate_shift", "open_source", "DataSpec", "load_prompts",
    "list_prompts", "join_towers", "Index", "evaluate_segmentation", "evaluate_groups", "evaluate_languages",
    "CaptionTable", "Decisions",
    "HFCLIPModel", "HFCLIPConfig", "HFCLIPProcessor",
}  # fmt: skip


def test_every_public_name_is_the_object_of_its_home_after_every_module_was_imported():
    for module in walk_packages(hf_clip.__path__, "hf_clip."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    assert set(hf_clip.__all__) == set(hf_clip._HOME) >= PROMISED
    assert len(hf_clip.__all__) == len(set(hf_clip.__all__))
    for name, home in hf_clip._HOME.items():
        found = getattr(hf_clip, name)
        # A module of the same name would stand in its way.
        assert not inspect.ismodule(found) and callable(found), name
        assert found is getattr(import_module(f"hf_clip.{home}"), name)
        assert found.__doc__ and found.__name__ == name


def test_editors_see_what_is_imported_on_first_use():
    tree = ast.parse(Path(hf_clip.__file__).read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }
    assert seen == hf_clip._HOME
    for package in ("hf_clip", "hf_clip_cli"):
        assert (Path(import_module(package).__path__[0]) / "py.typed").is_file()
