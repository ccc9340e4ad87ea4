"""Loggers that talk to services: a run goes on whatever happens to them."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import Any

from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

_log = logging.getLogger(__name__)


class ForgivingLogger(Logger):
    """Hands everything to another logger until that fails once, which is told in one line; from then on nothing.

    Args:
        name: What to call the other one.
        build: Returns it; called in the process that logs, when there is something to log.
        hyperparameters: What it is to know of the run, told before the first metrics.
    """

    def __init__(self, name: str, build: Callable[[], Logger], hyperparameters: Mapping[str, Any]) -> None:
        super().__init__()
        self.failed = False
        self._name = name
        self._build = build
        self._logger: Logger | None = None
        self._hyperparameters: Mapping[str, Any] | None = hyperparameters

    @property
    def name(self) -> str:
        """What is logged to."""
        return self._name

    @property
    def version(self) -> str:
        """None of its own."""
        return ""

    @property
    def experiment(self) -> Any:
        """The other logger's experiment; None in ranks that do not log, and where it is not to be had."""
        return None if rank_zero_only.rank else self._try(lambda logger: logger.experiment)  # type: ignore[attr-defined]

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Hand metrics on."""
        parameters, self._hyperparameters = self._hyperparameters, None
        if parameters is not None:
            self._try(lambda logger: logger.log_hyperparams(dict(parameters)))
        self._try(lambda logger: logger.log_metrics(metrics, step))

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Hand hyperparameters on."""
        self._try(lambda logger: logger.log_hyperparams(params, *args, **kwargs))

    @rank_zero_only
    def save(self) -> None:
        """Have the other one save."""
        self._try(lambda logger: logger.save())

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Tell the other one how the run has ended."""
        self._try(lambda logger: logger.finalize(status))

    def _try(self, act: Callable[[Logger], Any]) -> Any:
        if self.failed:
            return None
        try:
            if self._logger is None:
                self._logger = self._build()
            return act(self._logger)
        except Exception as error:  # noqa: BLE001 - a service, its client or the network may fail in any way
            self.failed = True
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            _log.warning("%s gets no more of this run, which goes on: %s", self.name, reason[:300])
            return None


class OwnRunWandbLogger(WandbLogger):
    """Ends its W&B run with the training, so that the next training in this process gets a run of its own.

    A run that the caller has begun with ``wandb.init()`` takes the values instead, and stays open.

    Args:
        name: The run's name.
        save_dir: The folder of its files.
    """

    def __init__(self, name: str, save_dir: str) -> None:
        import wandb

        self._is_callers = wandb.run is not None
        super().__init__(name=name, save_dir=save_dir)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Upload what is left and end the run, unless it is the caller's."""
        super().finalize(status)
        if not self._is_callers:
            self.experiment.finish(exit_code=0 if status == "success" else 1)
