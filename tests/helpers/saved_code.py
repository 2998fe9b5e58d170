"""Saves of models without most of their copying: importing this has transformers copy each file of code once.

For each part that it saves, `save_pretrained` copies every file that one of the part's files imports, as often as one
imports it: a thousand copies of forty files for a model and its processor. What lies in the folder in the end is the
same.
"""

import shutil
from functools import cache
from pathlib import Path
from types import SimpleNamespace

from transformers import dynamic_module_utils

_files_needed_by = dynamic_module_utils.get_relative_import_files


@cache
def _once(module_file: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_files_needed_by(module_file)))


def _copy_what_is_not_there(source: str, target: Path) -> Path:
    ours, there = Path(source).stat(), target.stat() if target.is_file() else None
    if there is None or there.st_size != ours.st_size or there.st_mtime_ns < ours.st_mtime_ns:
        shutil.copyfile(source, target)
    return target


dynamic_module_utils.get_relative_import_files = lambda module_file: list(_once(module_file))
dynamic_module_utils.shutil = SimpleNamespace(**{**vars(shutil), "copyfile": _copy_what_is_not_there})
