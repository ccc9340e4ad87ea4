"""Silence around converters and quantizers that tell of each of their steps."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout


@contextmanager
def quiet(*, printing: bool = False) -> Iterator[None]:
    """Drop warnings, and what is logged below an error; with ``printing`` also what is printed."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            if printing:
                stack.enter_context(redirect_stdout(io.StringIO()))
                stack.enter_context(redirect_stderr(io.StringIO()))
            yield
    finally:
        logging.disable(before)
