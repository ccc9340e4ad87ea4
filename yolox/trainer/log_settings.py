"""Let a worker log and warn as its parent does: same levels, same format, same filters."""

from __future__ import annotations

import logging
import re
import warnings
from dataclasses import dataclass
from typing import Any

import cloudpickle

from yolox.error_stream import ErrorStreamHandler


@dataclass(frozen=True)
class LogSettings:
    """How one logger is set up.

    Args:
        name: Name of the logger; empty for the root.
        level: Its own level, 0 for that of its parent.
        formatter: Formatter of its first handler that shows records to the user; None without one.
        propagate: Whether its records go to its parent as well.
    """

    name: str
    level: int
    formatter: logging.Formatter | None
    propagate: bool

    @classmethod
    def of(cls, name: str) -> LogSettings:
        """Return the settings of this process."""
        logger = logging.getLogger(name)
        shown = [handler for handler in logger.handlers if _shows(handler)]
        formatter = (shown[0].formatter or logging.Formatter()) if shown else None
        return cls(name, logger.level, _portable(formatter), logger.propagate)

    def apply(self) -> None:
        """Set up this process's logger; a handler that is there already is kept."""
        logger = logging.getLogger(self.name)
        logger.setLevel(self.level)
        logger.propagate = self.propagate
        if self.formatter is not None and not logger.handlers:
            handler = ErrorStreamHandler()
            handler.setFormatter(self.formatter)
            logger.addHandler(handler)


class WarningFilters:
    """The warning filters of the process that makes this object, to be applied in another."""

    def __init__(self) -> None:
        self._filters: list[Any] = [
            (action, _pattern(message), category, _pattern(module), line)
            for action, message, category, module, line in warnings.filters
        ]

    def apply(self) -> None:
        """Replace the filters of this process."""
        warnings.resetwarnings()
        for action, message, category, module, line in reversed(self._filters):
            warnings.filterwarnings(action, message, category, module, line)


def _pattern(value: str | re.Pattern[str] | None) -> str:
    return value.pattern if isinstance(value, re.Pattern) else value or ""


def _shows(handler: logging.Handler) -> bool:
    """Whether a handler writes for the user's eyes; files and sockets stay with the parent, which owns them."""
    elsewhere = isinstance(handler, (logging.FileHandler, logging.NullHandler))
    return not elsewhere and type(handler).__module__ != "logging.handlers"


def _portable(formatter: logging.Formatter | None) -> logging.Formatter | None:
    """Return the formatter, or where it cannot be sent one with the same pattern."""
    try:
        cloudpickle.dumps(formatter)
    except Exception:  # noqa: BLE001 - any object may refuse in any way
        return logging.Formatter(getattr(formatter, "_fmt", None))
    return formatter
