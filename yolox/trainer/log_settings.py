"""Let a worker log and warn as its parent does: same levels, same format, same filters."""

from __future__ import annotations

import logging
import re
import warnings
from dataclasses import dataclass
from typing import Any

__all__ = ["LogSettings", "WarningFilters"]


@dataclass(frozen=True)
class LogSettings:
    """How one logger is set up.

    Args:
        name: Of the logger; empty for the root.
        level: Its own level, 0 for that of its parent.
        format: Of its first stream handler; None without one.
        propagate: Whether its records go to its parent as well.
    """

    name: str
    level: int
    format: str | None
    propagate: bool

    @classmethod
    def of(cls, name: str) -> LogSettings:
        """Return the settings of this process."""
        logger = logging.getLogger(name)
        # file handlers stay in the parent: two processes must not write to one file
        streams = [h for h in logger.handlers if isinstance(h, logging.StreamHandler) and not _is_file(h)]
        pattern = None
        if streams:
            formatter = streams[0].formatter
            pattern = formatter._fmt if formatter is not None and formatter._fmt else "%(message)s"
        return cls(name, logger.level, pattern, logger.propagate)

    def apply(self) -> None:
        """Set up this process's logger; a handler that is there already is kept."""
        logger = logging.getLogger(self.name)
        logger.setLevel(self.level)
        logger.propagate = self.propagate
        if self.format is not None and not logger.handlers:
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter(self.format))
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


def _is_file(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.FileHandler)
