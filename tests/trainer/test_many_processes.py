"""Several processes train what one process trains, and hand everything back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from tiny import QUIET, TinyModule, make_loader, make_module, make_trainer

from yolox.trainer.callbacks import Throughput
from yolox.trainer.run_report import RunReport
from yolox.trainer.trainer import Trainer

pytestmark = [pytest.mark.processes, *QUIET]
ROOT = Path(__file__).resolve().parents[2]


class Losses(pl.Callback):
    """Keeps what it saw in a plain attribute, as callbacks of users do."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.seen.append(trainer.global_step)


def run_twice(folder: Path, normalise: bool, **arguments: Any) -> tuple[Trainer, TinyModule, ModelCheckpoint, Losses]:
    """Fit two epochs, then two more with the same trainer."""
    module = make_module(normalise)
    best, losses = ModelCheckpoint(folder, monitor="val_loss"), Losses()
    trainer = make_trainer(folder, callbacks=[best, losses, Throughput(), RunReport(folder / "run.json")], **arguments)
    trainer.fit(module, make_loader(), make_loader())
    assert trainer.fit_loop.max_epochs == 2
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module, make_loader(), make_loader())
    return trainer, module, best, losses


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module, tolerance: float = 1e-6) -> None:
    for (key, value), (_, expected) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=tolerance, msg=f"{key} differs")


@pytest.mark.parametrize(("backend", "normalise"), [("subprocess", True), ("spawn", False)])
def test_two_processes_equal_one(backend: str, normalise: bool, tmp_path: Path) -> None:
    """``spawn`` is another name of ``subprocess``."""
    alone, expected, best_alone, losses_alone = run_twice(tmp_path / "one", normalise)
    trainer, module, best, losses = run_twice(
        tmp_path / "two", normalise, num_processes=2, distributed_backend=backend, sync_batchnorm=True
    )
    assert_same_weights(module, expected)
    assert module.steps_seen == expected.steps_seen == 8
    assert losses.seen == losses_alone.seen
    assert (trainer.current_epoch, trainer.global_step) == (alone.current_epoch, alone.global_step) == (4, 8)
    for name, value in alone.callback_metrics.items():
        torch.testing.assert_close(trainer.callback_metrics[name], value, rtol=0, atol=1e-6)
    assert best.best_model_score is not None
    torch.testing.assert_close(best.best_model_score, best_alone.best_model_score, rtol=0, atol=1e-6)
    assert Path(best.best_model_path).is_file()
    assert trainer.optimizers[0].param_groups[0]["params"][0] is next(module.parameters())
    momenta = [next(iter(t.optimizers[0].state.values()))["momentum_buffer"] for t in (alone, trainer)]
    torch.testing.assert_close(momenta[0], momenta[1], rtol=0, atol=1e-6)
    schedulers = [t.lr_scheduler_configs[0].scheduler.last_epoch for t in (alone, trainer)]
    assert schedulers[0] == schedulers[1]
    throughput = next(c for c in trainer.callbacks if isinstance(c, Throughput))  # type: ignore[attr-defined]
    assert [record["images"] for record in throughput.epochs] == [16.0] * 4
    if backend == "spawn":
        outputs = trainer.predict(module, make_loader())
        assert outputs is not None
        assert [len(output) for output in outputs] == [8, 8]
    if backend == "subprocess":
        trainer.save_checkpoint(tmp_path / "after.ckpt")
        content = torch.load(tmp_path / "after.ckpt", weights_only=True)
        assert content["global_step"] == 8
        assert content["optimizer_states"][0]["state"]
        import json

        report = json.loads((tmp_path / "two/run.json").read_text())
        assert len(report["peak_memory_bytes"]) == 2
        assert report["plan"]["launcher"] == "subprocess"


class DiesOnce(TinyModule):
    """Rank 1 is killed in the second epoch, unless it was before."""

    def __init__(self, marker: Path) -> None:
        super().__init__()
        self.marker = marker

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_rank == 1 and self.trainer.global_step == 2 and not self.marker.exists():
            self.marker.write_text("dead")
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_run_starts_again_from_its_last_checkpoint(tmp_path: Path) -> None:
    expected = make_module()
    make_trainer(tmp_path / "one").fit(expected, make_loader(), make_loader())
    torch.manual_seed(7)
    module = DiesOnce(tmp_path / "dead")
    trainer = make_trainer(tmp_path / "two", num_processes=2, max_restarts=2)
    trainer.fit(module, make_loader(), make_loader())
    assert (tmp_path / "dead").exists()
    assert_same_weights(module, expected)
    assert trainer.global_step == 4


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from tiny import TinyModule, make_loader, make_trainer
import signal, torch, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a script it is ignored

class Slow(TinyModule):  # in the main script, which has no main guard
    def training_step(self, batch, batch_idx):
        time.sleep(0.05)
        if self.global_step == 5:
            Path({folder!r}, "training").write_text("")
        return super().training_step(batch, batch_idx)

torch.manual_seed(7)
trainer = make_trainer({folder!r}, num_processes={processes}, max_epochs={epochs})
trainer.fit(Slow(), make_loader(), ckpt_path=sys.argv[1] if len(sys.argv) > 1 else None)
torch.save(trainer.lightning_module.state_dict(), {folder!r} + "/weights.pt")
"""


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_writes_a_checkpoint_and_ends_in_order(processes: int, signum: int, code: int, tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    values = {"tests": str(Path(__file__).parent), "folder": str(tmp_path), "processes": processes}
    script.write_text(SCRIPT.format(**values, epochs=1000))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, str(script)], env=environment, start_new_session=True) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "training").exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signum)
        assert process.wait(60) == code
    content = torch.load(tmp_path / "interrupted.ckpt", weights_only=True)
    assert content["global_step"] >= 5
    assert not (tmp_path / "weights.pt").exists()


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("even", [True, False])
def test_going_on_after_sigterm_equals_never_stopping(even: bool, tmp_path: Path) -> None:
    """In one process, between two epochs and in the middle of one."""

    class Terminated(TinyModule):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            if self.trainer.max_epochs == 3 and self.global_step == (3 if even else 2):
                os.kill(os.getpid(), signal.SIGTERM)
            return super().training_step(batch, batch_idx)

    expected = make_module()
    make_trainer(tmp_path / "whole", max_epochs=4).fit(expected, SameBatch())
    torch.manual_seed(7)
    with pytest.raises(SystemExit) as caught:
        make_trainer(tmp_path, max_epochs=3).fit(Terminated(), SameBatch())
    assert caught.value.code == 143
    module = TinyModule()
    trainer = make_trainer(tmp_path, max_epochs=4)
    trainer.fit(module, SameBatch(), ckpt_path=tmp_path / "interrupted.ckpt")
    assert trainer.global_step == 8
    assert_same_weights(module, expected)


class SameBatch:
    """Two equal batches an epoch: an ordinary loader begins its epoch again after a stop in the middle."""

    def __init__(self) -> None:
        self.batch = next(iter(make_loader()))

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Any:
        yield self.batch
        yield self.batch
