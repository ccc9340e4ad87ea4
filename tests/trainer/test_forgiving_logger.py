"""A logger whose service fails costs one line and no run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.loggers import CSVLogger, Logger
from tiny import QUIET, make_loader, make_module, make_trainer

from yolox.trainer.forgiving_logger import ForgivingLogger

pytestmark = QUIET


class Flaky(CSVLogger):
    """Fails at one of its calls."""

    def __init__(self, folder: Path, failing: str) -> None:
        super().__init__(folder)
        self.failing = failing
        self.calls: list[str] = []

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.failing:
            raise ConnectionError("no route\nto host")

    @property
    def experiment(self) -> Any:
        self._call("experiment")
        return super().experiment

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self._call("log_metrics")

    def log_hyperparams(self, params: Any = None) -> None:
        self._call("log_hyperparams")

    def save(self) -> None:
        self._call("save")

    def finalize(self, status: str) -> None:
        self._call("finalize")


@pytest.mark.parametrize("failing", ["build", "experiment", "log_hyperparams", "log_metrics", "save", "finalize"])
def test_one_failure_is_one_line_and_the_end_of_it(
    failing: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inner = Flaky(tmp_path, failing)

    def build() -> Logger:
        inner._call("build")
        return inner

    logger = ForgivingLogger("service", build, {"max_epoch": 2})
    trainer = make_trainer(tmp_path, logger=logger, log_every_n_steps=1)
    trainer.fit(make_module(), make_loader())
    assert trainer.global_step == 4
    (line,) = [record.getMessage() for record in caplog.records if "service" in record.getMessage()]
    assert line == "service gets no more of this run, which goes on: ConnectionError: no route to host"
    assert inner.calls[-1] == failing
    assert inner.calls.count(failing) == 1


def test_a_working_logger_gets_everything(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    inner = Flaky(tmp_path, "nothing")
    logger = ForgivingLogger("service", lambda: inner, {"max_epoch": 2})
    make_trainer(tmp_path, logger=logger, log_every_n_steps=1).fit(make_module(), make_loader())
    assert {"experiment", "log_metrics", "save", "finalize"} <= set(inner.calls)
    assert inner.calls.count("log_hyperparams") == 1
    assert "service" not in caplog.text
