"""`Trainer`: Lightning's trainer on ordinary CPUs, with all cores and all precisions."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch

from yolox.cpu.allocator import keep_freed_memory
from yolox.cpu.machine import read_machine
from yolox.errors import UsageError
from yolox.trainer.checkpoint_io import AtomicCheckpointIO
from yolox.trainer.precision import build_precision, canonical_precision

__all__ = ["Trainer"]

_log = logging.getLogger(__name__)


class Trainer(pl.Trainer):
    """Trains any LightningModule fast on CPUs.

    Args:
        num_processes: Data-parallel processes on this host; None means one.
        use_ipex: Use Intel's extension where it can be found.
        distributed_backend: How processes start: ``subprocess``, ``spawn``, ``ray`` or ``spark``.
        process_group_backend: How processes talk: None for gloo, ``gloo`` or ``ccl``.
        cpu_for_each_process: For each process the hardware threads it is bound to.
        channels_last: Whether module and 4-D batches take the channels_last memory format.
        auto_lr: Scale the learning rate with the number of processes and warm it up; off by default.
        precision: 64, 32, 16 or "bf16".
        pl_arguments: Handed to ``pytorch_lightning.Trainer``.

    Raises:
        UsageError: When an argument cannot be meant.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - the interface of BigDL-Nano
        self,
        num_processes: int | None = None,
        use_ipex: bool = False,
        distributed_backend: str = "subprocess",
        process_group_backend: str | None = None,
        cpu_for_each_process: Sequence[Sequence[int]] | None = None,
        channels_last: bool = False,
        auto_lr: bool | dict[str, int] = False,
        precision: int | str = 32,
        **pl_arguments: Any,
    ) -> None:
        if num_processes not in (None, 1):
            raise UsageError(f"num_processes {num_processes}: several processes are being built; use 1 for now.")
        _log.info("%s", keep_freed_memory())
        accelerator = pl_arguments.setdefault("accelerator", "cpu")
        if accelerator == "cpu":
            pl_arguments.setdefault("devices", 1)
            if "OMP_NUM_THREADS" not in os.environ:
                torch.set_num_threads(read_machine().num_threads)
        plugins = list(pl_arguments.pop("plugins", None) or ())
        device = accelerator if isinstance(accelerator, str) else "cpu"
        plugins.append(build_precision(canonical_precision(precision), device, channels_last))
        plugins.append(AtomicCheckpointIO())
        super().__init__(plugins=plugins, **pl_arguments)
