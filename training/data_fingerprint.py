"""What the training data is recognized by: a resumed run must find that with which it began.

Names, sizes and the number of rows, as reading every byte would take as long as an epoch.
"""

import hashlib
from collections.abc import Sequence

from hf_clip.sources import SourceError
from hf_clip.sources.files import is_hub_id, list_files, size_of_file

# Of more files than these, only a hash of names and sizes is kept.
MAX_NAMED_FILES = 1000


class DataChangedError(ValueError):
    """The data is not that with which the run began."""


def fingerprint(data: Sequence[str], num_rows: int | None) -> dict[str, int | str]:
    """The size of each file of `data` in bytes, by its path, and of everything the number of files and rows.

    Ids on the Hub have no sizes here; they are recognized by their rows alone.
    """
    sizes: dict[str, int | str] = {}
    for item in data:
        # As with `open_source`, a file or a folder goes before an id of its name.
        try:
            sizes |= {str(file): size_of_file(file) for file in list_files(item)[0]}
        except SourceError:
            if not is_hub_id(item):
                raise
    marks: dict[str, int | str] = {"number of files": len(sizes)}
    if num_rows is not None:
        marks["number of rows"] = num_rows
    if len(sizes) > MAX_NAMED_FILES:
        sizes = {"hash of names and sizes": hashlib.sha256(repr(sorted(sizes.items())).encode()).hexdigest()}
    return marks | sizes


def require_same_data(before: dict[str, int | str], now: dict[str, int | str]) -> None:
    """Raises DataChangedError that says in what two fingerprints differ."""
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if changed:
        shown = "; ".join(f"{name}: {before.get(name)} before, {now.get(name)} now" for name in changed[:3])
        more = f"; {len(changed) - 3} more" if len(changed) > 3 else ""
        raise DataChangedError(
            f"The training data is not that with which the run began ({shown}{more}): restore it, or start a "
            "run with the new one in another `output_dir`."
        )
