from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

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
