"""What the tests of model cards write into them: data, one result of every task, and a card made of them."""

import math
import re

import yaml

from hf_clip.hub import CardFacts, write_model_card

LABELS = ["a red square", "something blue"]
DATA = [
    {
        "name": "Drawings",
        "file": "drawings.parquet",
        "images": 1200,
        "license": "Apache-2.0",
        "attribution": "A, Inc.",
    },
    {"name": "Stamps", "file": "stamps.parquet", "images": 34, "license": "CC-BY-4.0", "source": "npm:@x/y@1.2"},
]
RETRIEVAL = {
    "task": "retrieval",
    "title": "unseen style, seen concepts",
    "image_to_text": {
        "recall_at_1": 0.61234,
        "recall_at_5": 0.8,
        "recall_at_10": None,
        "median_rank": 1.0,
        "chance_at_1": 0.0006,
        "queries": 1675,
        "candidates": 1644,
    },
    "text_to_image": {"recall_at_1": 0.5, "median_rank": math.nan, "queries": 1644, "candidates": 1675},
    "skipped": {"no_caption": 3},
    "seconds": 2.0,
}
ZERO_SHOT = {
    "task": "zero-shot",
    "title": "fashion",
    "top_1": 0.345,
    "top_5": None,
    "mean_per_class": 0.333,
    "chance": 0.1,
    "images": 2000,
    "classes": 10,
    "templates": ["a {}"],
    "skipped": {},
}
PROBE = {
    "task": "linear-probe",
    "title": "fashion",
    "top_1": 0.8,
    "top_5": None,
    "mean_per_class": 0.79,
    "penalty": 0.1,
    "train_images": 500,
    "images": 100,
    "classes": 10,
}
FEW_SHOT = {
    "task": "few-shot",
    "title": "fashion",
    "shots": [
        {"shots": 1, "mean": 0.4, "standard_deviation": None},
        {"shots": 16, "mean": 0.6, "standard_deviation": 0.02},
    ],
    "num_seeds": 5,
    "images": 100,
    "classes": 10,
}
ROBUSTNESS = {
    "task": "robustness",
    "title": "fashion",
    "top_1": 0.5,
    "corrupted_top_1": 0.25,
    "shifted_title": "sketches",
    "shifted_top_1": 0.3,
    "expected_top_1": 0.28,
    "effective_robustness": 0.02,
    "templates": ["a {}", "the {}", "{}", "one {}"],
    "images": 100,
    "classes": 10,
}
EVERY = [RETRIEVAL, ZERO_SHOT, PROBE, FEW_SHOT, ROBUSTNESS]


def card_of(folder, *, runs_snippets: bool = False, **changes) -> tuple[dict, str]:
    """The front matter and the body of a card; the snippets are run where their output matters."""
    known = {"training_data": DATA, "results": [RETRIEVAL, ZERO_SHOT], "languages": ["en"], "recipe": {"steps": 3}}
    facts = {"model_name": "tiny", **known, **changes}
    path = write_model_card(folder, CardFacts(**facts), runs_snippets=runs_snippets)
    text = path.read_text(encoding="utf-8")
    front, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", text, re.S).groups()
    return yaml.safe_load(front), body
