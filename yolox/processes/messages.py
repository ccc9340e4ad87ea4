"""Messages as frozen dataclasses, sent as JSON and the raw bytes of arrays: reading one runs no code."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock
from typing import Any, Union, get_args, get_origin

import numpy as np


class Channel:
    """One end of a connection on which both sides send messages of types that they have agreed on.

    Args:
        connection: An open connection of `multiprocessing.connection`.
        kinds: The dataclasses that may arrive. Their fields are JSON values, enumerations, paths, bytes, numpy arrays,
            other dataclasses, and tuples and mappings of them.
    """

    def __init__(self, connection: Connection, kinds: Iterable[type]) -> None:
        self.connection = connection
        self._kinds = {kind.__name__: kind for kind in kinds}
        self._lock = Lock()

    def send(self, message: Any) -> None:
        """Send one message; several threads may send at the same time.

        Raises:
            OSError: When the other side has gone.
        """
        buffers: list[Any] = []
        header = {"kind": type(message).__name__, "value": to_json(message, buffers), "buffers": len(buffers)}
        with self._lock:
            self.connection.send_bytes(json.dumps(header).encode())
            for buffer in buffers:
                self.connection.send_bytes(buffer)

    def receive(self, seconds: float | None = None) -> Any:
        """Return the next message.

        Args:
            seconds: How long to wait for it; None for as long as it takes.

        Raises:
            TimeoutError: When none has come in time.
            EOFError: When the other side has gone.
            ValueError: When a message of another type arrives.
        """
        if seconds is not None and not self.connection.poll(max(0.0, seconds)):
            raise TimeoutError(f"no message for {seconds:.0f} s")
        try:
            header = json.loads(self.connection.recv_bytes())
            buffers = iter([self.connection.recv_bytes() for _ in range(header["buffers"])])
        except ConnectionError as error:
            raise EOFError(str(error)) from error
        kind = self._kinds.get(header["kind"])
        if kind is None:
            raise ValueError(f"a message '{header['kind']}' arrived; expected one of {', '.join(self._kinds)}")
        return from_json(kind, header["value"], buffers)

    def close(self) -> None:
        """Close this end; the other one then reads the end of the file."""
        self.connection.close()


def to_json(value: Any, buffers: list[Any] | None = None) -> Any:
    """Return ``value`` as JSON values.

    Args:
        value: A dataclass, or anything that its fields may hold.
        buffers: Gets the contents of bytes and arrays; without it they are refused.

    Raises:
        TypeError: When something in it has no JSON form.
    """
    if is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name), buffers) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): to_json(item, buffers) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(item, buffers) for item in value]
    if isinstance(value, bytes | np.ndarray) and buffers is not None:
        array = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else np.ascontiguousarray(value)
        buffers.append(array.reshape(-1).view(np.uint8).data)
        return {"dtype": str(array.dtype), "shape": list(array.shape)}
    plain = value.value if isinstance(value, Enum) else value.item() if isinstance(value, np.generic) else value
    plain = str(plain) if isinstance(plain, Path) else plain
    if plain is not None and not isinstance(plain, str | int | float):
        raise TypeError(f"a message cannot hold {type(value).__name__}")
    return plain


def from_json(hint: Any, value: Any, buffers: Iterator[bytes] = iter(())) -> Any:  # noqa: B008 - it is empty
    """Return the value of type ``hint`` that `to_json` has written.

    Args:
        hint: A type, as it stands in an annotation.
        value: JSON values.
        buffers: The contents of bytes and arrays, in the order in which `to_json` met them.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        (hint,) = (argument for argument in arguments if argument is not type(None))
        return None if value is None else from_json(hint, value, buffers)
    if is_dataclass(hint) and isinstance(hint, type):
        hints = _hints(hint)
        return hint(**{name: from_json(hints[name], item, buffers) for name, item in value.items()})
    if origin in (dict, Mapping):
        return {int(n) if arguments[0] is int else n: from_json(arguments[1], v, buffers) for n, v in value.items()}
    if origin in (tuple, frozenset, list, Sequence):
        kinds = arguments if origin is tuple and arguments[-1] is not Ellipsis else arguments[:1] * len(value)
        items = [from_json(kind, item, buffers) for kind, item in zip(kinds, value, strict=True)]
        return items if origin in (list, Sequence) else origin(items)
    if hint is bytes or np.ndarray in (hint, origin):
        content = next(buffers)
        shape = value["shape"]
        return content if hint is bytes else np.frombuffer(bytearray(content), value["dtype"]).reshape(shape)
    return hint(value) if isinstance(hint, type) and issubclass(hint, Enum | Path) else value


@lru_cache(maxsize=64)
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)
