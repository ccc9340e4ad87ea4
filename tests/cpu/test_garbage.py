"""Python looks for no garbage while a command is set up, and does afterwards."""

from __future__ import annotations

import gc
import weakref

import pytest

from yolox.cpu.garbage import set_up_without_collections


class _Cycle:
    def __init__(self) -> None:
        self.own = self


def test_garbage_is_collected_again_after_the_set_up() -> None:
    before = gc.get_freeze_count()
    with set_up_without_collections() as set_up:
        assert not gc.isenabled()
        set_up()
        assert gc.isenabled()
        assert gc.get_freeze_count() > before
        made = weakref.ref(_Cycle())
        gc.collect()
        assert made() is None
    assert gc.isenabled()
    assert gc.get_freeze_count() <= before


def test_an_error_leaves_it_as_it_was() -> None:
    with pytest.raises(RuntimeError), set_up_without_collections():
        raise RuntimeError
    assert gc.isenabled()


def test_what_was_switched_off_stays_off() -> None:
    gc.disable()
    try:
        with set_up_without_collections() as set_up:
            set_up()
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()
