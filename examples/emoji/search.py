"""Indexes a drawing style that the model never saw, asks it some texts, and draws what one of them finds.

    python examples/emoji/search.py runs/emoji

Twemoji's images are written as files that are named by their captions, so that one sees what was found: the model is
given their pixels alone.
"""

import io
import re
import sys
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

TWEMOJI = Path(__file__).with_name("twemoji.parquet")
# The first is drawn.
QUERIES = ("clock", "fruit", "heart", "music", "smiling face", "sun behind a cloud")
SHOWN = 6
DRAWN = 12


def file_name(caption: str) -> str:
    caption = caption.replace("#", "hash").replace("*", "asterisk")
    return re.sub(r"\W+", "-", caption).strip("-") + ".png"


def write_style(folder: Path) -> int:
    """Writes the style's images, those that are not there yet; gives their count."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = pq.read_table(TWEMOJI, columns=["image", "caption"]).to_pylist()
    for row in rows:
        file = folder / file_name(row["caption"])
        if not file.exists():
            Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB").save(file)
    return len(rows)


def told(query: str, paths: list[str]) -> str:
    return f"  {query:<20} {', '.join(Path(path).stem.replace('-', ' ') for path in paths)}"


def main() -> int:
    # Beside this file.
    from show import model_folder

    folder = model_folder(__doc__)
    if folder is None:
        return 1

    from hf_clip import Index

    images = folder.parent / "twemoji"
    write_style(images)
    index = Index.open(images, model=str(folder))
    report = index.update(show_progress=False)
    print(f"\nThe same style as an index, {report.total:,} images in {report.seconds:.0f} s; texts find:\n")
    for query in QUERIES:
        print(told(query, [hit.path for hit in index.search(query, top_k=SHOWN)]))
    command = f'.venv/bin/hf-clip search {images} "{QUERIES[0]}" --top-k {DRAWN} --sheet {folder.parent / "found.png"}'
    print(f"\nAsk it yourself, with a contact sheet:\n  {command}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
