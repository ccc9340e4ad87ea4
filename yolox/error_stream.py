"""Messages of the log on standard error."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress


class ErrorStreamHandler(logging.Handler):
    """Writes to what ``sys.stderr`` is at the moment of the message: redirections and a live line take its place."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        text = self.format(record) + "\n"
        with suppress(ValueError):  # it is closed: a thread goes on after the end
            sys.stderr.write(text)
