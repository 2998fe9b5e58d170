"""Make `hf_clip/assets/prompts/*.json`: class names and templates of the paper's data sets, one file a data set.

    pip install --no-deps open_clip_torch
    python tools/make_prompts.py prompts.md

`prompts.md` is data/prompts.md of OpenAI's CLIP repository (MIT), with 26 of the 27 data sets. ImageNet's cleaned
class names, its 80 templates and the best seven are from OpenAI's prompt-engineering notebook; PyPI's
`open_clip_torch` (MIT) carries them as Python data.
"""

import argparse
import ast
import json
import re
import runpy
from importlib.metadata import distribution
from pathlib import Path

TARGET = Path(__file__).parents[1] / "hf_clip/assets/prompts"
SOURCE = "https://github.com/openai/CLIP/blob/main/data/prompts.md"
NOTEBOOK = "https://github.com/openai/CLIP/blob/main/notebooks/Prompt_Engineering_for_ImageNet.ipynb"
SECTION = re.compile(
    r"^## (?P<name>\S+)\s+```bash\nclasses = (?P<classes>\[.*?^\])\s+templates = (?P<templates>\[.*?^\])", re.M | re.S
)


def of_the_paper(page: str) -> list[dict]:
    """The data sets of prompts.md, in its order."""
    sections = [
        {
            "name": section["name"],
            "source": SOURCE,
            "license": "MIT",
            "templates": ast.literal_eval(section["templates"]),
            "classes": ast.literal_eval(section["classes"]),
        }
        for section in SECTION.finditer(page)
    ]
    if len(sections) != len(re.findall("^## ", page, re.M)):
        raise SystemExit(f"Only {len(sections)} sections of the page could be read.")
    return sections


def imagenet() -> dict:
    data = runpy.run_path(str(distribution("open_clip_torch").locate_file("open_clip/zero_shot_metadata.py")))
    return {
        "name": "ImageNet",
        "source": NOTEBOOK,
        "license": "MIT",
        "templates": [template("{}") for template in data["OPENAI_IMAGENET_TEMPLATES"]],
        "best_templates": [template("{}") for template in data["SIMPLE_IMAGENET_TEMPLATES"]],
        "classes": list(data["IMAGENET_CLASSNAMES"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path, help="prompts.md of OpenAI's repository")
    TARGET.mkdir(exist_ok=True)
    for prompts in [*of_the_paper(parser.parse_args().page.read_text("utf-8")), imagenet()]:
        text = json.dumps(prompts, indent=1, ensure_ascii=False) + "\n"
        (TARGET / f"{prompts['name']}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
