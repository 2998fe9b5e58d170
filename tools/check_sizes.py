"""Names every Python file over 700 lines and every function over 60; exit status 1 where there is one.

python tools/check_sizes.py [FOLDER]
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_FILE_LINES = 700
MAX_FUNCTION_LINES = 60
SKIPPED_FOLDERS = {"build", "dist", "runs"}


def python_files(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*.py")):
        folders = path.relative_to(root).parts[:-1]
        if not any(folder.startswith(".") or folder in SKIPPED_FOLDERS for folder in folders):
            yield path


def oversized(path: Path) -> Iterator[tuple[int, str]]:
    """The line and a description of each thing in a file that is too long."""
    source = path.read_text(encoding="utf-8")
    count = len(source.splitlines())
    if count > MAX_FILE_LINES:
        yield 1, f"the file has {count} lines, the limit is {MAX_FILE_LINES}: split it"
    for node in ast.walk(ast.parse(source, str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield (
                    node.lineno,
                    f"{node.name}() has {length} lines, the limit is {MAX_FUNCTION_LINES}: split it",
                )


def main(root: Path) -> int:
    files = list(python_files(root))
    found = [f"{path.relative_to(root)}:{line}: {what}" for path in files for line, what in oversized(path)]
    for line in found:
        print(line)
    if not found:
        print(f"{len(files)} files: none over {MAX_FILE_LINES} lines, no function over {MAX_FUNCTION_LINES}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()))
