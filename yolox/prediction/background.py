"""Reading ahead and writing behind: a thread beside the one that computes, and few items between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar, cast

T = TypeVar("T")


def read_ahead(items: Iterable[T], count: int) -> Iterator[T]:
    """Yield the items, of which another thread makes up to ``count`` before they are asked for.

    What making an item raises is raised where that item would have come.
    """
    source, end = iter(items), object()
    context = copy_context()

    def following() -> Any:
        return next(source, end)

    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as pool:
        waiting: deque[Future[Any]] = deque(pool.submit(context.run, following) for _ in range(count))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(pool.submit(context.run, following))
                yield cast(T, item)
        finally:
            for future in waiting:
                future.cancel()


def write_behind(items: Iterable[T], write: Callable[[T], object], count: int) -> Generator[T, None, None]:
    """Yield the items while another thread calls ``write`` on those before, in their order.

    When the iteration has ended, or was closed, all items that were yielded are written.

    Args:
        items: What is written.
        write: What it raises is raised at one of the next items, or at the end.
        count: So many items may wait to be written.
    """
    context = copy_context()  # with it the other thread knows the inputs, which no output may replace
    with ThreadPoolExecutor(1, thread_name_prefix="write-behind") as pool:
        waiting: deque[Future[object]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(context.run, write, item))
                if len(waiting) > count:
                    waiting.popleft().result()
                yield item
        finally:
            while waiting:
                waiting.popleft().result()
