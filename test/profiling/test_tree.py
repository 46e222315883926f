"""Parts of a model."""

import pytest
from torch import nn

from espnet2_sepx.profiling.tree import (
    by_part,
    parameters_by_part,
    part_of,
    subtotal,
    with_subtotals,
)


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("separator.blocks.3.time.ffn1.linear1", "separator.blocks.time.ffn1"),
        ("separator.blocks.3.0", "separator.blocks"),
        ("encoder", "encoder"),
        ("", "model"),
    ],
)
def test_parts_drop_indices_and_tails(path, part):
    assert part_of(path) == part


def test_nothing_is_lost_on_the_way_into_parts():
    modules = {f"a.{index}.b.c.d.e": index for index in range(4)}
    assert by_part(modules, depth=2) == {"a.b": 6}
    assert by_part(modules, depth=1) == {"a": 6}


def test_parents_stand_before_their_children():
    parts = ["a.b", "c", "a.d.e", "a"]
    assert with_subtotals(parts) == ["a", "a.b", "a.d", "a.d.e", "c"]
    values = {"a.b": 1, "c": 2, "a.d.e": 4, "a": 8, "ab": 16}
    assert {part: subtotal(values, part) for part in ("a", "a.d", "c")} == {
        "a": 13,
        "a.d": 4,
        "c": 2,
    }


def test_shared_parameters_count_once():
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    assert parameters_by_part(model) == {"a": 12, "b": 3}
