"""Messages keep their types and never run code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yolox.processes.messages import Channel, from_json, to_json


class Colour(Enum):
    RED = "red"


@dataclass(frozen=True)
class Inner:
    numbers: tuple[int, ...]
    flags: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Everything:
    name: str
    share: float
    colour: Colour
    inner: Inner | None
    by_rank: Mapping[int, Inner]
    file: Path
    pair: tuple[int, str]
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Arrays:
    arrays: tuple[np.ndarray[Any, Any], ...]
    content: bytes
    note: str | None = None


def test_every_field_keeps_its_type() -> None:
    inner = Inner((1, 2), frozenset({"a"}))
    value = Everything("ä", 0.5, Colour.RED, inner, {3: Inner(())}, Path("/x"), (1, "b"), {"a": [1, None]})
    assert from_json(Everything, to_json(value)) == value
    assert from_json(Everything, to_json(Everything("", 1.0, Colour.RED, None, {}, Path(), (0, "")))).inner is None


def test_arrays_and_bytes_travel_unchanged() -> None:
    ours, theirs = Pipe()
    arrays: tuple[np.ndarray[Any, Any], ...]
    arrays = (np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::2], np.zeros((0, 4), np.uint8), np.array(3.5))
    Channel(ours, ()).send(Arrays(arrays, b"\0\xff"))
    received = Channel(theirs, [Arrays]).receive(5)
    assert received.content == b"\0\xff"
    for sent, got in zip(arrays, received.arrays, strict=True):
        assert got.dtype == sent.dtype
        np.testing.assert_array_equal(got, sent)
        got[...] = 1  # it is writable, as the model may work in place


def test_silence_and_the_end_are_told_apart() -> None:
    ours, theirs = Pipe()
    channel = Channel(theirs, [Inner])
    with pytest.raises(TimeoutError):
        channel.receive(0.01)
    ours.close()
    with pytest.raises(EOFError):
        channel.receive(1)


def test_a_pickle_is_no_message(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "executed",)

    ours, theirs = Pipe()
    ours.send_bytes(pickle.dumps(Attack()))
    with pytest.raises(ValueError, match=r"codec|Expecting|decode"):
        Channel(theirs, [Inner]).receive(1)
    Channel(ours, ()).send(Arrays((), b""))
    with pytest.raises(ValueError, match="'Arrays' arrived; expected one of Inner"):
        Channel(theirs, [Inner]).receive(1)
    assert not (tmp_path / "executed").exists()


def test_what_has_no_form_is_refused() -> None:
    with pytest.raises(TypeError, match="cannot hold object"):
        to_json({"a": object()})
    with pytest.raises(TypeError, match="cannot hold bytes"):
        to_json(b"")
