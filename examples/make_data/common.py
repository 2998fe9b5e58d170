"""What make_emoji.py and make_fashion.py share: PNG bytes, parquet files, lists of sources."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

WHITE = (255, 255, 255)


def encode_png(image: Image.Image, colors: int = 0) -> bytes:
    """An image as PNG bytes; with `colors` above 0 as a palette PNG of at most that many."""
    if colors:
        palette = image.quantize(colors, method=Image.Quantize.MEDIANCUT, kmeans=1, dither=Image.Dither.NONE)
        _pin_white(image, palette)
        image = palette
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()


def _pin_white(rgb: Image.Image, palette: Image.Image) -> None:
    """Make the palette's entry for the white background exactly white: k-means moves it a little."""
    data = rgb.tobytes()
    white = next((i for i in range(0, len(data), 3) if data[i : i + 3] == b"\xff" * 3), None)
    if white is None:
        return
    y, x = divmod(white // 3, rgb.width)
    entry = palette.getpixel((x, y))
    values = palette.getpalette()
    values[3 * entry : 3 * entry + 3] = WHITE
    palette.putpalette(values)


_ARROW = {
    "image": pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    "string": pa.string(),
    "strings": pa.list_(pa.string()),
}
_FEATURE = {
    "image": {"_type": "Image", "mode": "RGB"},
    "string": {"_type": "Value", "dtype": "string"},
    # "Sequence" is read by every release of `datasets`, "List" only since 4.0.
    "strings": {"_type": "Sequence", "feature": {"_type": "Value", "dtype": "string"}},
}


def write_parquet(path: Path, rows: list[dict], columns: dict, row_group: int = 256) -> None:
    """Write rows in the layout that `datasets` reads as image-text data.

    `columns` maps a column to "image", "string", "strings", or to a list of class names (an integer
    ClassLabel whose cells are given by name).
    """
    fields, features, arrays = [], {}, []
    for name, kind in columns.items():
        cells = [row[name] for row in rows]
        if isinstance(kind, list):
            cells = [kind.index(cell) for cell in cells]
            features[name] = {"_type": "ClassLabel", "names": kind}
            arrow = pa.int64()
        else:
            features[name] = _FEATURE[kind]
            arrow = _ARROW[kind]
        fields.append(pa.field(name, arrow))
        arrays.append(pa.array(cells, arrow))
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=metadata))
    pq.write_table(table, path, compression="zstd", row_group_size=row_group)


def write_sources(folder: Path, sources: list[dict]) -> None:
    """Write `sources.yaml`: where each file's images come from and on what terms; model cards print it."""
    text = yaml.safe_dump(sources, sort_keys=False, allow_unicode=True, width=110)
    (folder / "sources.yaml").write_text(text, encoding="utf-8")
