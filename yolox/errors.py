"""Errors a user can cause, each with the exit code of the tool that meets it.

A message has three parts: what arrived, what was expected, what to do. Chain the cause with ``raise ... from``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class YoloxError(Exception):
    """A run that cannot go on; tools print its message without a traceback."""

    exit_code = 1

    def __str__(self) -> str:
        """Return the message, harmless for a terminal: it may quote names that others chose."""
        return printable(super().__str__())


class UsageError(YoloxError):
    """An unknown or contradictory option, name or override."""

    exit_code = 2


class DataError(YoloxError):
    """A data set that is missing, malformed or unusable."""

    exit_code = 3


class ModelFileError(YoloxError):
    """A checkpoint or artifact that cannot be read or does not fit."""

    exit_code = 4


class MissingDependencyError(YoloxError):
    """An optional library that is not installed.

    Args:
        library: The name to show to the user.
        install: The command that installs it.
    """

    exit_code = 5

    def __init__(self, library: str, install: str) -> None:
        super().__init__(f"{library} is not installed. Install it with: {install}")
        self.library = library
        self.install = install

    def __reduce__(self) -> tuple[type[MissingDependencyError], tuple[str, str]]:
        """Return how to pickle and copy it."""
        return MissingDependencyError, (self.library, self.install)


@contextmanager
def needs(library: str, install: str) -> Iterator[None]:
    """Say how to get an optional library where an import inside the context fails.

    Raises:
        MissingDependencyError: When it is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise MissingDependencyError(library, install) from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the known name nearest to ``name``, or an empty string."""
    matches = get_close_matches(name.lower()[:80], list(known), n=1, cutoff=0.5)
    return f" Did you mean '{matches[0]}'?" if matches else ""


def printable(text: str, *, newlines: bool = True) -> str:
    """Return text with control and other invisible characters as escapes, so that a name cannot steer a terminal.

    Args:
        text: Anything, for instance a file name.
        newlines: Keep line ends and tabs; False for a name, which has none.
    """
    kept = "\n\t" if newlines else ""
    shown = (c if c.isprintable() or c in kept else c.encode("unicode_escape").decode("ascii") for c in text)
    return text if text.isprintable() else "".join(shown)


def without_login(address: str | int) -> str:
    """Return an address as messages and logs may show it: without ``user:password@``."""
    return re.sub(r"(?<=://)[^/?#]*@", "", str(address))
