"""Turn objects into bytes for another process, and name the part that refuses."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from functools import partial
from inspect import getclosurevars, isfunction
from typing import Any

import cloudpickle

from yolox.errors import UsageError

_MAX_DEPTH = 12
_REFUSALS = (TypeError, AttributeError, ValueError, RuntimeError, pickle.PicklingError, NotImplementedError)


def dumps(value: Any, what: str) -> bytes:
    """Return ``value`` pickled, code of the main script included.

    Args:
        value: Any object.
        what: What it is, for the message.

    Raises:
        UsageError: When it cannot be pickled; the message names the innermost part that cannot, and where it is.
    """
    try:
        return bytes(cloudpickle.dumps(value))
    except _REFUSALS as error:
        path, part = _culprit(value)
        place = f": {path}, of type {_type_name(part)}, cannot be pickled" if path else ""
        raise UsageError(
            f"{what} cannot be sent to another process{place} ({error}). Make it when it is first used there, or leave "
            "it out of the object's __getstate__: open files, locks, threads and handles belong to one process."
        ) from error


def _culprit(value: Any) -> tuple[str, Any]:
    """Return where the innermost object is that cannot be pickled, and the object.

    The path begins at the class of the last object with attributes, which is what its author knows.
    """
    path, seen = "", set()
    for _ in range(_MAX_DEPTH):
        seen.add(id(value))
        parts = ((name, part) for name, part in _parts(value) if id(part) not in seen)
        found = next(((name, part) for name, part in parts if not _can_be_pickled(part)), None)
        if found is None:
            break
        name, part = found
        path = f"{_type_name(value)}{name}" if name.startswith(".") or not path else f"{path}{name}"
        value = part
    return path, value


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((f"[{name!r}]", part) for name, part in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"[{number}]", part) for number, part in enumerate(value))
    elif isinstance(value, partial):
        yield from (("(function)", value.func), ("(arguments)", value.args), ("(keywords)", value.keywords))
    elif isfunction(value):
        used = getclosurevars(value)
        yield from ((f"({name})", part) for name, part in {**used.globals, **used.nonlocals}.items())
    elif hasattr(value, "__func__"):
        yield "(object)", value.__self__
    elif hasattr(value, "__dict__"):
        yield from ((f".{name}", part) for name, part in vars(value).items())


def _can_be_pickled(value: Any) -> bool:
    try:
        cloudpickle.dumps(value)
    except Exception:  # noqa: BLE001 - any object may refuse in any way
        return False
    return True


def _type_name(value: Any) -> str:
    kind = type(value)
    return (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )
