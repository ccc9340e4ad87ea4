"""A limit on the time of work in a library that cannot be interrupted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout  # Python 3.10 has two of them
from typing import TypeVar

T = TypeVar("T")
_GRACE_S = 5.0
_given_up: list[threading.Thread] = []


def limited_time(work: Callable[[], T], seconds: float, stop: Callable[[], None] | None = None) -> T:
    """Return what ``work`` returns. It is done in a thread of its own, which the caller waits for.

    Args:
        work: What to do.
        seconds: How long it may take.
        stop: Asks the library to end ``work`` early. Without it, or where it does not help, the thread goes on until
            the process ends.

    Raises:
        TimeoutError: When it takes longer.
    """
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            answer.set_exception(error)

    thread = threading.Thread(target=run, name="limited time", daemon=True)
    thread.start()
    try:
        return answer.result(seconds)
    except (FutureTimeout, KeyboardInterrupt) as error:
        if answer.done():  # raised by the work itself
            raise
        if stop is not None:
            stop()
            thread.join(_GRACE_S)
        _given_up.append(thread)
        if isinstance(error, KeyboardInterrupt):
            raise
        raise TimeoutError(f"it was not done after {seconds:.0f} s") from error


def work_goes_on() -> bool:
    """Return whether work that was given up goes on: at the end of the process, its library would crash over it."""
    return any(thread.is_alive() for thread in _given_up)
