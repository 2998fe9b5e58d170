"""A saved model for cards."""

import pytest

from tests.helpers.model_cards import LABELS
from tests.helpers.toys import tiny_clip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cards") / "tiny model"
    model, processor = tiny_clip(LABELS)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
