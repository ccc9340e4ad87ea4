"""Outputs of any nesting survive being stored flat."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from yolox.inference.artifacts.structure import describe, flatten, num_leaves, unflatten

LEAVES = st.integers(0, 9).map(lambda number: np.full(2, number))
PLAIN = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3)
NESTED = st.recursive(
    LEAVES | PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)


def shape_of(value: Any) -> Any:
    """Return the same nesting with lists in place of arrays, which compare as wholes."""
    if isinstance(value, np.ndarray):
        return ("array", value.tolist())
    if isinstance(value, dict):
        return {key: shape_of(item) for key, item in value.items()}
    return type(value)(map(shape_of, value)) if isinstance(value, list | tuple) else value


@given(NESTED)
def test_flat_leaves_and_a_description_in_json_give_the_outputs_back(value: Any) -> None:
    leaves, description = flatten(value), json.loads(json.dumps(describe(value)))
    assert num_leaves(description) == len(leaves)
    assert shape_of(unflatten(description, leaves)) == shape_of(value)
    assert shape_of(unflatten(None, leaves)) == shape_of(tuple(leaves))
