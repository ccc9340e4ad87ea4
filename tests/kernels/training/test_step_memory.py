"""The memory of repeated steps."""

from __future__ import annotations

import mmap
from typing import Any

import pytest

from yolox.kernels.training.step_memory import BLOCKS

LARGE = 1 << 27


@pytest.fixture(autouse=True)
def _released() -> Any:
    BLOCKS.release()
    yield
    BLOCKS.release()


@pytest.mark.parametrize("size", [1 << 20, LARGE])
def test_a_block_is_used_again(size: int) -> None:
    block = BLOCKS.take(size)
    assert len(block) >= size
    block[-1] = 7
    address = block.data_ptr()
    assert BLOCKS.take(size).data_ptr() != address
    BLOCKS.give(block)
    assert BLOCKS.take(size - 1000).data_ptr() == address


def test_large_blocks_begin_at_a_page_and_go_when_they_are_not_needed() -> None:
    block = BLOCKS.take(LARGE)
    assert block.data_ptr() % (1 << 21) == 0
    BLOCKS.give(block)
    BLOCKS.release()
    block.fill_(0)  # who holds it may still use it
    assert BLOCKS.take(LARGE) is not block


class _NoHugePages(mmap.mmap):
    def madvise(self, *_: Any) -> None:
        raise OSError(22, "Invalid argument")


def test_a_system_without_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "mmap", _NoHugePages)
    assert len(BLOCKS.take(LARGE)) >= LARGE


def test_memory_that_does_not_suffice() -> None:
    with pytest.raises(MemoryError, match="bytes for a training step"):
        BLOCKS.take(1 << 60)
