"""When Python looks for garbage that refers to itself."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def set_up_without_collections() -> Iterator[Callable[[], None]]:
    """Look for no garbage until the function that is yielded is called, and never among what was there before.

    Imports and the building of a model make hundreds of thousands of objects that stay; Python looks through them again
    and again meanwhile, which takes a fifth of the time. At the end everything is as it was.
    """
    enabled = gc.isenabled()

    def set_up() -> None:
        gc.freeze()
        if enabled:
            gc.enable()

    gc.disable()
    try:
        yield set_up
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()
