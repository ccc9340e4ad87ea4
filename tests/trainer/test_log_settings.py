from __future__ import annotations

import io
import logging
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from yolox.trainer.log_settings import LogSettings, WarningFilters


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("yolox_test_of_settings")
    yield logger
    logger.handlers.clear()


def test_a_worker_logs_as_its_parent(logger: logging.Logger) -> None:
    logger.setLevel(logging.INFO)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger.addHandler(handler)
    settings = LogSettings.of(logger.name)
    logger.handlers.clear()
    logger.setLevel(logging.ERROR)
    settings.apply()
    settings.apply()
    assert logger.level == logging.INFO
    assert len(logger.handlers) == 1
    assert logger.handlers[0].formatter is not None
    assert logger.handlers[0].formatter._fmt == "%(levelname)s %(message)s"


class Own(logging.Handler):
    """Shows records in a way of its own, as the tools do."""

    def emit(self, record: logging.LogRecord) -> None:
        self.format(record)


class OwnFormatter(logging.Formatter):
    lock = None


def test_handlers_of_any_kind_count_unless_they_write_elsewhere(logger: logging.Logger, tmp_path: Path) -> None:
    own = Own()
    own.setFormatter(OwnFormatter())
    for handler in (logging.FileHandler(tmp_path / "log"), logging.NullHandler(), own):
        logger.addHandler(handler)
    settings = LogSettings.of(logger.name)
    logger.handlers[0].close()
    logger.handlers.clear()
    settings.apply()
    assert isinstance(logger.handlers[0].formatter, OwnFormatter)


def test_a_formatter_that_cannot_be_sent_leaves_its_pattern(logger: logging.Logger) -> None:
    own = Own()
    formatter = OwnFormatter("%(name)s: %(message)s")
    vars(formatter)["lock"] = threading.Lock()
    own.setFormatter(formatter)
    logger.addHandler(own)
    sent = LogSettings.of(logger.name).formatter
    assert type(sent) is logging.Formatter
    assert sent._fmt == "%(name)s: %(message)s"


def test_a_logger_without_handlers_gets_none(logger: logging.Logger) -> None:
    settings = LogSettings.of(logger.name)
    settings.apply()
    assert not logger.handlers


def test_filters_of_warnings_travel() -> None:
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="harmless", category=UserWarning)
        filters = WarningFilters()
        warnings.resetwarnings()
        filters.apply()
        warnings.warn("harmless, as everyone knows", UserWarning, stacklevel=1)
        with pytest.raises(UserWarning, match="not harmless"):
            warnings.warn("not harmless", UserWarning, stacklevel=1)


def test_a_worker_logs_to_what_the_error_stream_is_at_the_moment(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A live line replaces the stream for a while, so that messages appear above it."""
    LogSettings(logger.name, logging.INFO, logging.Formatter("%(message)s"), False).apply()
    live = io.StringIO()
    monkeypatch.setattr("sys.stderr", live)
    logger.info("above the line")
    assert live.getvalue() == "above the line\n"
