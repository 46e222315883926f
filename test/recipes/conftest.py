"""Fixtures of the recipe tests."""

import pytest
from private_recipe import Recipe


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    """A private copy of the recipe, with nothing done yet."""
    return Recipe(tmp_path)
