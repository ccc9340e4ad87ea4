"""Ctrl-C and SIGTERM in a command: what is open is closed, whenever they come, and the exit code says which it was.

While the command is still importing, Ctrl-C ends it as it does later, without the traceback of an import.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130  # the exit code of a program stopped by Ctrl-C
TERMINATED = 143  # and by SIGTERM


def starts_a_command() -> bool:
    """Return whether this process was started for a tool: by ``python -m yolox.tools.NAME`` or one of our scripts."""
    program = sys.argv[0] if sys.argv else ""
    if program == "-m":  # so it is while Python looks for the module
        return any(word.startswith("yolox.tools.") for word in sys.orig_argv)
    name = os.path.basename(program)
    return name == "yolox" or name.startswith("yolox-")


def end_on_interrupt() -> None:
    """Let Ctrl-C end this process at once, unless somebody has decided otherwise what it does."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


@contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Let Ctrl-C raise `KeyboardInterrupt` and SIGTERM `SystemExit`, now that somebody catches them.

    SIGTERM would end the process at once otherwise, and leave temporary folders and started processes behind.
    """
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    after: signal.Handlers = signal.SIG_DFL
    try:
        yield
    except SystemExit as stop:
        if stop.code == TERMINATED:  # another one shall not interrupt what Python still has to clean up
            after = signal.SIG_IGN
        raise
    finally:
        signal.signal(signal.SIGTERM, after)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"stopped by the user\n")
    os._exit(INTERRUPTED)  # nothing is open yet


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one would interrupt the cleaning up
    os.write(2, b"stopped by SIGTERM\n")
    raise SystemExit(TERMINATED)
