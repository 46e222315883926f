"""Stage 4 with our engine gives what ESPnet's own inference gives."""

import numpy as np
import pytest
import soundfile
from private_recipe import Recipe


def separated(recipe: Recipe) -> dict[str, np.ndarray]:
    folder = recipe.experiment / "separated_test"
    tables = {f"spk{n}.scp": (folder / f"spk{n}.scp").read_text() for n in (1, 2)}
    return tables | {
        str(path.relative_to(folder)): soundfile.read(path)[0]
        for path in sorted(folder.rglob("*.wav"))
    }


@pytest.mark.slow
def test_both_engines_give_the_same(recipe):
    recipe.run("--stage", "1", "--stop_stage", "4")
    stock = separated(recipe)
    recipe.run("--stage", "4", "--stop_stage", "5", "--engine", "sepx")
    ours = separated(recipe)
    assert stock.keys() == ours.keys()
    assert len(stock) == 2 + 2 * 4
    for name, expected in stock.items():
        if name.endswith(".scp"):
            assert ours[name] == expected
        else:  # ESPnet writes 16 bits, normalised lest they clip
            assert abs(expected).max() < 1
            scale = abs(expected).max() / abs(ours[name]).max()
            np.testing.assert_allclose(scale * ours[name], expected, atol=2**-13)
    assert "expected espnet or sepx" in recipe.fail("--engine", "other")
