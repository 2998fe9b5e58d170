"""Runs of single tests end quickly; those of fixtures of a module end as they do for a user."""

import pytest

from tests.helpers.quick_ends import end_quickly


@pytest.fixture(autouse=True)
def quick_ends(monkeypatch):
    end_quickly(monkeypatch)
