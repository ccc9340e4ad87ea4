"""The outermost frame of every tool: errors become messages and exit codes, messages of the log go to stderr."""

from __future__ import annotations

import io
import logging
import os
import select
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextvars import copy_context
from pathlib import Path

from yolox.cpu.time_limit import work_goes_on
from yolox.error_stream import ErrorStreamHandler
from yolox.errors import MissingDependencyError, YoloxError, printable
from yolox.files import describe_failed_write
from yolox.temporary_folders import remove_abandoned, without_empty_compiler_folders
from yolox.tools.early_interrupt import INTERRUPTED, signals_as_exceptions

READER_ENDED = 141


def run_tool(body: Callable[[], object]) -> int:
    """Run a tool's body and return the exit code of the process: what it returns if that is a number, else 0.

    Mistakes of the user become one message without a traceback and their own code (2 usage, 3 data, 4 model file,
    5 missing library), so does a full disk; Ctrl-C becomes 130, SIGTERM 143 and a reader of the output that has ended
    (``| head``) 141, as in a shell; anything else is a traceback and 1.
    """
    with without_empty_compiler_folders(Path(tempfile.gettempdir())):
        code = _exit_code(body)
    if work_goes_on():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _exit_code(body: Callable[[], object]) -> int:
    _show_log()
    remove_abandoned(Path(tempfile.gettempdir()))  # what killed commands left
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may lack letters that a message has
    try:
        with signals_as_exceptions():
            code = copy_context().run(body)  # the inputs that a run announces are its own
            sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except YoloxError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        return _tell_missing(error)
    except KeyboardInterrupt:
        print("stopped by the user", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as stop:  # argparse leaves this way after --help
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception as error:  # noqa: BLE001 - the outermost frame: a crash is reported whole, and never as success
        return _tell_crash(error)


def _tell_crash(error: Exception) -> int:
    """Report what is no mistake of the user, and return the exit code."""
    if isinstance(error, BrokenPipeError) and _reader_has_ended():
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still in its buffer
        return READER_ENDED
    told = describe_failed_write(error) or _describe_lack_of_memory(error)  # in a library: ours raises a YoloxError
    if told is None:
        traceback.print_exception(error)
    else:
        print(f"error: {told}", file=sys.stderr)
    return 1


def _describe_lack_of_memory(error: Exception) -> str | None:
    text = str(error).partition("\n")[0]
    if not isinstance(error, MemoryError) and "can't allocate memory" not in text:  # PyTorch's is a RuntimeError
        return None
    return (
        f"there is not enough memory ({text or 'MemoryError'}). Use a smaller batch (-b), input size or model, or "
        "fewer processes."
    )


def _reader_has_ended() -> bool:
    """Return whether standard output is a pipe that nobody reads any more."""
    try:
        output = select.poll()
        output.register(sys.stdout.fileno(), 0)
        return any(events & select.POLLERR for _, events in output.poll(0))
    except (OSError, ValueError):  # it is no file, or closed
        return False


def _tell_missing(error: ModuleNotFoundError) -> int:
    """Report a library that this package asks for: where deployed models are run, most need not be installed."""
    library = (error.name or "").partition(".")[0]
    if library in {"", "yolox"}:
        traceback.print_exc()
        return 1
    missing = MissingDependencyError(library, "pip install yolox-cpu, which brings all that this command needs")
    print(f"error: {missing}", file=sys.stderr)
    return missing.exit_code


class _PlainFormatter(logging.Formatter):
    """News as it is; anything worse says so first."""

    def format(self, record: logging.LogRecord) -> str:
        text = printable(super().format(record))
        return text if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {text}"


def _show_log() -> None:
    """Show the package's log on the error stream, once."""
    logger = logging.getLogger("yolox")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        handler = ErrorStreamHandler()
        handler.setFormatter(_PlainFormatter())
        logger.addHandler(handler)
