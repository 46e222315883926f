"""Trees of all corpora, made once."""

import pytest
import trees


@pytest.fixture(scope="session")
def corpora(tmp_path_factory) -> trees.Corpora:
    root = tmp_path_factory.mktemp("corpora")
    return trees.build(root, {"train": 12, "valid": 3, "test": 4})
