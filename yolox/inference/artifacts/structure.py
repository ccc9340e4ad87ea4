"""Nested outputs as a flat tuple of tensors plus a description in JSON values, and back. Works without torch.

A description is ``"*"`` for one tensor, ``{"list": [...]}``, ``{"tuple": [...]}`` (named tuples too),
``{"dict": {...}}``, or ``{"value": x}`` for anything else that JSON can hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from yolox.errors import UsageError

_MAX_DEPTH = 50


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def flatten(value: Any) -> tuple[Any, ...]:
    """Return the tensors (or arrays) in ``value``, depth first."""
    if _is_array(value):
        return (value,)
    if isinstance(value, Mapping):
        return tuple(leaf for item in value.values() for leaf in flatten(item))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(leaf for item in value for leaf in flatten(item))
    return ()


def describe(value: Any) -> Any:
    """Return the description of ``value`` that ``unflatten`` needs.

    Raises:
        UsageError: When it holds something that is neither a tensor nor a JSON value.
    """
    if _is_array(value):
        return "*"
    if isinstance(value, Mapping):
        return {"dict": {str(key): describe(item) for key, item in value.items()}}
    if isinstance(value, list):
        return {"list": [describe(item) for item in value]}
    if isinstance(value, tuple):
        return {"tuple": [describe(item) for item in value]}
    if value is None or isinstance(value, str | int | float | bool):
        return {"value": value}
    raise UsageError(
        f"the model returns a {type(value).__name__}; expected tensors, alone or in lists, tuples and dicts. "
        "Wrap the model in a module that returns these."
    )


def num_leaves(description: Any, depth: int = 0) -> int:
    """Return how many tensors a description has.

    Raises:
        ValueError: When it is none that ``describe`` returns, or is nested too deeply.
    """
    if description == "*":
        return 1
    if depth > _MAX_DEPTH or not isinstance(description, dict) or len(description) != 1:
        raise ValueError("the structure of the outputs")
    ((kind, content),) = description.items()
    if kind == "value":
        return 0
    if kind == "dict" and isinstance(content, dict):
        items = list(content.values())
    elif kind in ("list", "tuple") and isinstance(content, list):
        items = content
    else:
        raise ValueError("the structure of the outputs")
    return sum(num_leaves(item, depth + 1) for item in items)


def unflatten(description: Any, leaves: Sequence[Any]) -> Any:
    """Fold ``leaves`` into what ``describe`` saw; ``None`` as description gives the flat tuple back."""
    return tuple(leaves) if description is None else _fold(description, iter(leaves))


def _fold(description: Any, leaves: Iterator[Any]) -> Any:
    if description == "*":
        return next(leaves)
    ((kind, content),) = description.items()
    if kind == "dict":
        return {key: _fold(item, leaves) for key, item in content.items()}
    if kind == "value":
        return content
    items = [_fold(item, leaves) for item in content]
    return items if kind == "list" else tuple(items)
