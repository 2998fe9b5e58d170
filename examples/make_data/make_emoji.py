"""Make examples/emoji: a parquet file of emoji a style, with English texts from CLDR, and one of 28 languages.

    pip install resvg_py pillow pyarrow pyyaml        # and npm on the path
    python examples/make_data/make_emoji.py

The images are drawn from the SVG of openly licensed sets, as Iconify packs them on npm. The texts come from
CLDR, the groups from emojibase-data. With resvg_py 0.5.0, pillow 13.0.0 and pyarrow 26.0.1 the files come out
byte for byte as they stand there.
"""

import argparse
import hashlib
import io
import json
import re
import subprocess
import tarfile
import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import resvg_py
from common import WHITE, encode_png, write_parquet, write_sources
from PIL import Image

EMOJIBASE = "emojibase-data@17.0.0"
CLDR = "cldr-annotations-full@48.2.0"
CLDR_DERIVED = "cldr-annotations-derived-full@48.2.0"
CODE_POINTS = "chars.json"  # in an Iconify package: code points -> icon name (not every one has it)
LANGUAGES = (
    *(
        "en",
        "ar",
        "bn",
        "cs",
        "de",
        "el",
        "es",
        "fa",
        "fi",
        "fr",
        "he",
        "hi",
        "id",
        "it",
        "ja",
        "ko",
        "nl",
        "pl",
        "pt",
    ),
    *("ru", "sv", "sw", "th", "tr", "uk", "vi", "zh", "zh-Hant"),
)
SIDE = 64
COLORS = 128


@dataclass(frozen=True)
class Style:
    name: str
    package: str
    license: str
    attribution: str
    # Icons whose name is another concept's, where icons are matched by name.
    wrong_names: tuple[str, ...] = ()


STYLES = [
    Style("noto", "@iconify-json/noto@1.2.9", "Apache-2.0", "Noto Emoji, Google LLC"),
    Style(
        "noto_v1",
        "@iconify-json/noto-v1@1.2.5",
        "Apache-2.0",
        "Noto Emoji (first design, up to 2017), Google LLC",
    ),
    Style(
        "emojitwo",
        "@iconify-json/emojione@1.2.3",
        "CC-BY-4.0",
        "EmojiTwo, the continued EmojiOne 2 artwork (EmojiTwo/emojitwo)",
    ),
    Style(
        "fxemoji",
        "@iconify-json/fxemoji@1.2.2",
        # The package says Apache-2.0; upstream's LICENSE.md says that of the code only.
        "CC-BY-4.0",
        "FxEmojis (Firefox OS Emoji), Mozilla Foundation (mozilla/fxemoji)",
        wrong_names=("keyboard",),  # a musical one
    ),
    Style(
        "twemoji",
        "@iconify-json/twemoji@1.2.5",
        "CC-BY-4.0",
        "Twemoji, Twitter, Inc and other contributors (maintained as jdecked/twemoji)",
    ),
]

COLUMNS = {
    "image": "image",
    "caption": "string",
    "keywords": "strings",
    "concept": "string",
    "emoji": "string",
    "label": None,  # the group as ClassLabel; filled in with the groups' names
    "group": "string",
    "subgroup": "string",
    "split": "string",
    "vendor": "string",
    "lang": "string",
    "license": "string",
    "source": "string",
}


class NpmPackage:
    """Reads files straight out of the tarball of `name@version`, fetched once with `npm pack`."""

    def __init__(self, spec: str, cache: Path):
        name, _, version = spec.rpartition("@")
        tarball = cache / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"
        if not tarball.exists():
            cache.mkdir(parents=True, exist_ok=True)
            command = ["npm", "pack", "--silent", spec, "--pack-destination", str(cache)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        self._tar = tarfile.open(tarball)
        self._members = {member.name.split("/", 1)[-1]: member for member in self._tar if member.isfile()}

    def __contains__(self, path: str) -> bool:
        return path in self._members

    def bytes(self, path: str) -> bytes:
        return self._tar.extractfile(self._members[path]).read()

    def json(self, path: str):
        return json.loads(self.bytes(path))


@cache
def package(spec: str, folder: Path) -> NpmPackage:
    return NpmPackage(spec, folder)


def concept_id(hexcode: str) -> str:
    """Code points in lower-case hex, without the variation selector: 2764-200d-1f525."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def texts_of(language: str, folder: Path) -> dict[str, tuple[str, list[str]]]:
    """emoji (without variation selectors) -> (short name, keywords)."""
    texts = {}
    for spec, key in ((CLDR, "annotations"), (CLDR_DERIVED, "annotationsDerived")):
        annotations = package(spec, folder).json(f"{key}/{language}/annotations.json")[key]["annotations"]
        for emoji, entry in annotations.items():
            if "tts" in entry:
                texts[emoji.replace("\ufe0f", "")] = (entry["tts"][0], entry.get("default", []))
    return texts


def read_concepts(folder: Path) -> dict[str, dict]:
    """Every emoji without skin tones, by concept id, in Unicode's order."""
    data = package(EMOJIBASE, folder)
    groups = {group["order"]: group["message"] for group in data.json("en/messages.json")["groups"]}
    subgroups = data.json("meta/groups.json")["subgroups"]
    english = texts_of("en", folder)
    concepts = {}
    for entry in sorted(data.json("en/data.json"), key=lambda entry: entry.get("order", 0)):
        if "group" not in entry or groups[entry["group"]] == "components":
            continue
        if entry["label"].endswith("facing right"):  # mirror images of others
            continue
        plain = entry["emoji"].replace("\ufe0f", "")
        caption, keywords = english[plain]
        concepts[concept_id(entry["hexcode"])] = {
            "emoji": entry["emoji"],
            "plain": plain,
            "caption": caption,
            "keywords": keywords,
            "group": groups[entry["group"]],
            "subgroup": subgroups[str(entry["subgroup"])],
            "split": "test" if bucket(family(caption), "emoji") < 0.1 else "train",
        }
    return concepts


def bucket(key: str, salt: str) -> float:
    """A stable number in [0, 1) for a key: what a split is decided by."""
    digest = hashlib.sha256(f"{salt}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def family(caption: str) -> str:
    """One key for "man running", "woman running" and "person running", to split by."""
    words = re.sub(r"[^\w ]", " ", caption.lower()).split()
    people = {"man", "men", "woman", "women", "person", "people"}
    return " ".join(word for word in words if word not in people) or caption.lower()


def slug(text: str) -> str:
    text = unicodedata.normalize("NFKD", text.lower())
    text = re.sub(r"['’]", "", "".join(char for char in text if not unicodedata.combining(char)))
    return re.sub(r"[^a-z0-9]+", "", text)


def concepts_by_name(concepts: dict[str, dict]) -> dict[str, set[str]]:
    """slug of a CLDR or Unicode name -> the concepts so named, for sets without code points."""
    names: dict[str, set[str]] = {}
    for key, concept in concepts.items():
        spellings = [concept["caption"]]
        if concept["caption"].startswith("flag: "):
            spellings.append("flag for " + concept["caption"][6:])
        if len(concept["plain"]) == 1:
            spellings.append(unicodedata.name(concept["plain"], ""))
        for spelling in filter(None, map(slug, spellings)):
            names.setdefault(spelling, set()).add(key)
    return names


def icon_names(style: Style, concepts: dict[str, dict], folder: Path) -> dict[str, str]:
    """concept id -> name of the style's icon."""
    source = package(style.package, folder)
    code_points = source.json(CODE_POINTS) if CODE_POINTS in source else {}
    if code_points:
        return {concept_id(key): icon for key, icon in code_points.items() if concept_id(key) in concepts}
    names = concepts_by_name(concepts)
    icons = source.json("icons.json")
    found: dict[str, str] = {}
    for icon in [*icons["icons"], *icons.get("aliases", {})]:
        matches = names.get(slug(icon), set())
        if len(matches) == 1 and icon not in style.wrong_names:
            found.setdefault(next(iter(matches)), icon)
    return found


def svg_of(icons: dict, name: str) -> str:
    icon = icons["icons"].get(name) or icons["icons"][icons["aliases"][name]["parent"]]
    defaults = {"left": 0, "top": 0, "width": 16, "height": 16}
    box = " ".join(str(icon.get(key, icons.get(key, default))) for key, default in defaults.items())
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}">{icon["body"]}</svg>'
    )


def on_white(image: Image.Image) -> Image.Image:
    """An RGBA image as RGB, over white."""
    return Image.alpha_composite(Image.new("RGBA", image.size, WHITE + (255,)), image).convert("RGB")


def draw_svg(svg: str, side: int) -> Image.Image:
    """An SVG drawn in RGBA so that its longer side has `side` pixels. ValueError where it cannot be."""
    # Without dpi, sizes in pt or mm come out as nothing; without the system's fonts, alike on any machine.
    options = {"svg_string": svg, "skip_system_fonts": True, "dpi": 96}
    image = Image.open(io.BytesIO(resvg_py.svg_to_bytes(**options, width=side)))
    if image.height > image.width:
        image = Image.open(io.BytesIO(resvg_py.svg_to_bytes(**options, height=side)))
    return image.convert("RGBA")


def square(image: Image.Image) -> Image.Image:
    """An RGB image padded with white to a square, so that a center crop keeps all of it."""
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), WHITE)
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def share_of_ink(image: Image.Image) -> float:
    """Share of the pixels that differ visibly from white."""
    gray = image.convert("L").point(lambda value: 255 if value < 245 else 0)
    return gray.histogram()[255] / (image.width * image.height)


def style_rows(style: Style, concepts: dict[str, dict], folder: Path) -> tuple[list[dict], Counter]:
    """One row a concept that the style draws, and why each of the others was skipped."""
    icons = package(style.package, folder).json("icons.json")
    names = icon_names(style, concepts, folder)
    rows, seen, skipped = [], set(), Counter()
    for key, concept in concepts.items():
        if key not in names:
            skipped["not in the set"] += 1
            continue
        try:
            image = square(on_white(draw_svg(svg_of(icons, names[key]), SIDE)))
        except (ValueError, KeyError):
            skipped["not drawable"] += 1
            continue
        digest = hashlib.sha256(image.tobytes()).hexdigest()
        if share_of_ink(image) < 0.005:
            skipped["blank"] += 1
            continue
        if digest in seen:
            skipped["same image as another concept"] += 1
            continue
        seen.add(digest)
        row = {
            "image": {"bytes": encode_png(image, COLORS), "path": f"{key}.png"},
            "concept": key,
            "label": concept["group"],
            "vendor": style.name,
            "lang": "en",
            "license": style.license,
            "source": f"npm:{style.package}#{names[key]}",
        }
        rows.append(concept | row)
    return rows, skipped


def caption_rows(concepts: dict[str, dict], folder: Path) -> list[dict]:
    """The name of each concept in each language that has one."""
    origin = {"license": "Unicode-3.0", "source": f"npm:{CLDR} and npm:{CLDR_DERIVED}"}
    rows = []
    for language in LANGUAGES:
        texts = texts_of(language, folder)
        for key, concept in concepts.items():
            if concept["plain"] in texts:
                caption = texts[concept["plain"]][0]
                rows.append({"concept": key, "lang": language, "caption": caption, "split": concept["split"]} | origin)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "emoji")
    parser.add_argument("--cache", type=Path, default=Path(".package-cache"), help="where packages are kept")
    args = parser.parse_args()

    concepts = read_concepts(args.cache)
    columns = COLUMNS | {"label": list(dict.fromkeys(concept["group"] for concept in concepts.values()))}
    sources, drawn = [], set()
    for style in STYLES:
        rows, skipped = style_rows(style, concepts, args.cache)
        write_parquet(args.out / f"{style.name}.parquet", rows, columns)
        drawn.update(row["concept"] for row in rows)
        print(f"{style.name}.parquet: {len(rows)} images; skipped: {dict(skipped)}")
        sources.append(
            {
                "name": style.name,
                "file": f"{style.name}.parquet",
                "images": len(rows),
                "license": style.license,
                "attribution": style.attribution,
                "source": f"npm:{style.package}",
                "changes": f"drawn from SVG on white at {SIDE}x{SIDE} pixels, at most {COLORS} colors",
            }
        )
    captions = caption_rows({key: concept for key, concept in concepts.items() if key in drawn}, args.cache)
    write_parquet(
        args.out / "captions.parquet", captions, dict.fromkeys(captions[0], "string"), row_group=len(captions)
    )
    sources.append(
        {
            "name": "names in 28 languages",
            "file": "captions.parquet",
            "captions": len(captions),
            "license": "Unicode-3.0",
            "attribution": "Unicode CLDR, Copyright Unicode, Inc.",
            "source": f"npm:{CLDR} and npm:{CLDR_DERIVED}",
            "changes": "the names alone, of the concepts drawn here",
        }
    )
    write_sources(args.out, sources)
    for name, spec in (("unicode", CLDR), ("emojibase", EMOJIBASE)):
        (args.out / f"LICENSE.{name}.txt").write_bytes(package(spec, args.cache).bytes("LICENSE"))


if __name__ == "__main__":
    main()
