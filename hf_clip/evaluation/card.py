"""Measured numbers into the model-index of a model's card, in its folder or on the Hub."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, metadata_update
from huggingface_hub.repocard_data import eval_results_to_model_index

from hf_clip.hub import check_model_card, eval_results


def push_to_card(model: str | Path, result: Mapping[str, Any]) -> str:
    """Writes a result's numbers into a model's card, and says where; the same measured before is replaced.

    Args:
        model: its folder (the card is made where there is none), or its id on the Hub, which needs a token that may
            write.
        result: `to_dict()` of a result.

    Raises:
        ValueError: if the Hub would not take the card; nothing is written then.
    """
    found = eval_results([result])
    folder = Path(model)
    if not folder.is_dir():
        index = eval_results_to_model_index(str(model).split("/")[-1], found)
        return str(metadata_update(str(model), {"model-index": index}, overwrite=True))
    path = folder / "README.md"
    name = folder.resolve().name
    card = ModelCard(path.read_text(encoding="utf-8") if path.is_file() else _new_card(name))
    replaced = {(one.unique_identifier, one.metric_type) for one in found}
    kept = [one for one in card.data.eval_results or [] if (one.unique_identifier, one.metric_type) not in replaced]
    card.data.eval_results = [*kept, *found]
    card.data.model_name = card.data.model_name or name
    check_model_card(str(card))
    unfinished = path.with_name("README.md.tmp")
    unfinished.write_text(str(card), encoding="utf-8")
    os.replace(unfinished, path)
    return str(path)


def _new_card(name: str) -> str:
    data = ModelCardData(library_name="transformers", pipeline_tag="zero-shot-image-classification", model_name=name)
    return f"---\n{data.to_yaml()}\n---\n\n# {name}\n"
