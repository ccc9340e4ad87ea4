"""Ctrl-C while a command is still importing: it ends as it does later, without the traceback of an import."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130  # the exit code of a program stopped by Ctrl-C


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


def raise_on_interrupt() -> None:
    """Let Ctrl-C raise `KeyboardInterrupt` again, now that somebody catches it."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"stopped by the user\n")
    os._exit(INTERRUPTED)  # nothing is open yet
