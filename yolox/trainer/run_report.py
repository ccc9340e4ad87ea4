"""The result file of a run: what it did, how fast, on what."""

from __future__ import annotations

import json
import math
import platform
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback

from yolox.cpu.machine import read_machine
from yolox.files import write_text
from yolox.processes.inside import peak_memory_mb
from yolox.trainer.callbacks import Throughput
from yolox.trainer.plan import ExecutionPlan


class RunReport(Callback):
    """Writes a JSON file after training: images/s, seconds a step, data wait, final metrics, memory, plan, machine.

    The plan, with its notes, is also put into every checkpoint.

    Args:
        path: The file.
        extra: Values of the caller's own to put into it.
    """

    def __init__(self, path: Path, extra: dict[str, Any] | None = None) -> None:
        self.path = path
        self.extra = dict(extra or {})
        self._began = time.time()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the plan."""
        plan = getattr(trainer, "plan", None)
        if isinstance(plan, ExecutionPlan):
            checkpoint["plan"] = plan.as_dict()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gather the ranks' memory and write the file."""
        memory = gather_numbers(1e6 * (peak_memory_mb() or 0.0), trainer.world_size)
        threads = gather_numbers(torch.get_num_threads(), trainer.world_size)
        if not trainer.is_global_zero:
            return
        plan = getattr(trainer, "plan", None)
        content = {
            **_speed(trainer),
            "metrics": {name: _number(value) for name, value in trainer.callback_metrics.items()},
            "epochs_done": trainer.current_epoch,
            "steps_done": trainer.global_step,
            "end_to_end_seconds": time.time() - self._began,
            "peak_memory_bytes": memory,
            "threads": threads,
            "plan": plan.as_dict() if isinstance(plan, ExecutionPlan) else None,
            "machine": read_machine().as_dict(),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            **self.extra,
        }
        write_text(self.path, json.dumps(content, indent=2) + "\n")


def _speed(trainer: pl.Trainer) -> dict[str, Any]:
    throughput = next((c for c in trainer.callbacks if isinstance(c, Throughput)), None)  # type: ignore[attr-defined]
    if throughput is None or not throughput.epochs:
        return {}
    epochs = throughput.epochs[1:] or throughput.epochs  # the first epoch warms up
    steps = sum(epoch["steps"] for epoch in epochs)
    data = sum(epoch["data_seconds"] * epoch["steps"] for epoch in epochs)
    step = sum(epoch["step_seconds"] * epoch["steps"] for epoch in epochs)
    return {
        "images_per_second": sum(epoch["images"] for epoch in epochs) / (data + step),
        "seconds_per_step": (data + step) / steps,
        "data_wait_seconds_per_step": data / steps,
        "epochs": throughput.epochs,
    }


def gather_numbers(value: float, world: int) -> list[int]:
    """Return the value of every rank; all of them have to ask."""
    if world == 1 or not dist.is_initialized():
        return [int(value)]
    mine = torch.tensor([float(value)], dtype=torch.float64)
    everyone = [torch.zeros_like(mine) for _ in range(world)]
    dist.all_gather(everyone, mine)
    return [int(item.item()) for item in everyone]


def _number(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
