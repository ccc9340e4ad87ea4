from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from tiny import QUIET, make_loader, make_module, make_trainer
from torch import nn

from yolox.errors import UsageError
from yolox.processes.inside import peak_memory_mb
from yolox.structures import Targets
from yolox.trainer.callbacks import Throughput, TraceProfile
from yolox.trainer.live_progress import LiveProgress, format_seconds
from yolox.trainer.run_callbacks import ScaledLearningRate
from yolox.trainer.run_report import RunReport
from yolox.trainer.tensors import first_dimension, map_tensors

pytestmark = QUIET


def test_progress_on_request_is_a_line_every_few_steps_without_a_terminal(tmp_path: Path) -> None:
    stream = io.StringIO()
    progress = LiveProgress(interval=1, names=["loss"], stream=stream)
    trainer = make_trainer(tmp_path, callbacks=[progress], enable_progress_bar=True)
    trainer.fit(make_module(), make_loader())
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("epoch 1/2  step 1/2  loss ")
    assert "images/s" in lines[-1]
    assert lines[-1].endswith("0:00:00 left")


def trained_into(descriptor: int, folder: Path, **settings: Any) -> None:
    """Train two epochs of two steps with the live view on ``descriptor`` and close that."""
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        progress = LiveProgress(names=["loss"], stream=stream)
        trainer = make_trainer(folder, callbacks=[progress, *settings.pop("callbacks", [])], enable_progress_bar=True)
        trainer.fit(make_module(), make_loader())


def read_all(descriptor: int) -> str:
    content = b""
    with os.fdopen(descriptor, "rb", buffering=0) as source, contextlib.suppress(OSError):  # EIO: the pty's other end
        while part := source.read(65536):
            content += part
    return content.decode()


def test_progress_on_a_terminal_is_one_line_with_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Chatter(Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            trainer.progress_bar_callback.print(f"above [red] {trainer.current_epoch}")

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    control, terminal = os.openpty()
    trained_into(terminal, tmp_path, callbacks=[Chatter()])
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", read_all(control))
    shown = re.split(r"[\r\n]+", text)
    assert [line.strip() for line in shown if "above" in line] == ["above [red] 0", "above [red] 1"]
    (last,) = {line.strip() for line in shown if line.startswith("epoch 2/2") and " 2/2  " in line}
    assert "━" * 10 in last
    assert "0:00:00 left" in last
    assert "images/s" in last
    assert "loss " in last
    assert all(len(line) <= 100 for line in shown)
    assert text.count("\n") <= 4, "two lines of others, and the one that stays"


def test_progress_in_a_pipe_is_silent(tmp_path: Path) -> None:
    source, pipe = os.pipe()
    trained_into(pipe, tmp_path)
    assert read_all(source) == ""


def test_the_line_of_an_epoch_names_values(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "yolox")
    make_trainer(tmp_path, callbacks=[Throughput(["loss", "missing"])]).fit(make_module(), make_loader())
    lines = [record.getMessage() for record in caplog.records if "images/s" in record.getMessage()]
    assert len(lines) == 2
    assert re.match(r"epoch 2: loss \S+, data \d+ ms, step \d+ ms, [\d.]+ images/s, ", lines[1])


def test_a_run_leaves_its_figures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "yolox")
    report = RunReport(tmp_path / "run.json", {"dataset": "drawn"})
    trainer = make_trainer(tmp_path, callbacks=[Throughput(), report], max_epochs=2)
    trainer.fit(make_module(), make_loader(), make_loader())
    content = json.loads((tmp_path / "run.json").read_text())
    assert content["images_per_second"] > 0
    assert content["seconds_per_step"] >= content["data_wait_seconds_per_step"] >= 0
    assert content["steps_done"] == 4
    assert content["epochs_done"] == 2
    assert set(content["metrics"]) == {"loss", "val_loss"}
    assert content["dataset"] == "drawn"
    assert content["plan"]["precision"] == "32"
    assert content["machine"]["usable_cores"] >= 1
    assert 0 < content["peak_memory_bytes"][0] <= 1e6 * (peak_memory_mb() or 0.0)
    lines = [record.getMessage() for record in caplog.records if "images/s" in record.getMessage()]
    assert [line.partition(":")[0] for line in lines] == ["epoch 1", "epoch 2"]
    assert all(part in lines[0] for part in ("data ", "step ", "images/s", "min"))


def test_a_trace_can_be_opened(tmp_path: Path) -> None:
    trace = TraceProfile(tmp_path / "trace.json", skip=1, steps=2)
    make_trainer(tmp_path, callbacks=[trace]).fit(make_module(), make_loader())
    names = {event.get("name") for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]}
    assert any("conv" in str(name) for name in names)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3723, "1:02:03")])
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_batches_of_any_make() -> None:
    targets = Targets(torch.ones(3, 2, 4), torch.ones(3, 2), torch.ones(3, 2))
    batch = {"a": [torch.ones(3, 1), "text"], "b": (targets, 5)}
    doubled = map_tensors(lambda tensor: tensor * 2, batch)
    assert doubled["a"][1] == "text"
    assert isinstance(doubled["b"][0], Targets)
    assert float(doubled["b"][0][0].max()) == 2.0
    assert float(targets[0].max()) == 1.0
    assert first_dimension(batch) == 3
    assert first_dimension("nothing") == 0


def pretend_trainer(world: int, schedulers: list[Any], optimizer: torch.optim.Optimizer) -> Any:
    configs = [SimpleNamespace(scheduler=scheduler) for scheduler in schedulers]
    return SimpleNamespace(
        world_size=world,
        lr_scheduler_configs=configs,
        optimizers=[optimizer],
        is_global_zero=True,
        global_step=0,
        num_training_batches=10,
        max_epochs=20,
    )


def test_auto_lr_scales_once_says_so_and_warms_up(caplog: pytest.LogCaptureFixture) -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1)
    trainer = pretend_trainer(4, [], optimizer)
    callback = ScaledLearningRate()
    callback.on_train_start(trainer, None)  # type: ignore[arg-type]
    assert "multiplied by 4" in caplog.text
    rates = []
    for step in (0, 10, 20, 30):
        trainer.global_step = step
        callback.on_train_batch_start(trainer, None, None, 0)  # type: ignore[arg-type]
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1, 0.25, 0.4, 0.4])
    resumed = ScaledLearningRate()
    resumed.load_state_dict(callback.state_dict())
    resumed.on_train_start(trainer, None)  # type: ignore[arg-type]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.4)


def test_auto_lr_scales_a_scheduler_or_refuses_it() -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    ScaledLearningRate().on_train_start(pretend_trainer(2, [schedule], optimizer), None)  # type: ignore[arg-type]
    assert schedule.base_lrs == [0.2]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2)
    with pytest.raises(UsageError, match="cannot scale the rates of object"):
        ScaledLearningRate().on_train_start(pretend_trainer(2, [object()], optimizer), None)  # type: ignore[arg-type]


class AskedAgain(Callback):
    """Asks the run to stop, and once more while it is being closed."""

    def __init__(self) -> None:
        self.went_on = False

    def on_train_batch_end(self, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def on_exception(self, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        self.went_on = True


def test_a_second_sigterm_does_not_interrupt_the_end(tmp_path: Path) -> None:
    """It raised in whatever was running, such as the destructor of a data loader, which printed a traceback."""
    again = AskedAgain()
    with pytest.raises(SystemExit) as stop:
        make_trainer(tmp_path, callbacks=[again]).fit(make_module(), make_loader())
    assert stop.value.code == 143
    assert again.went_on
    assert (tmp_path / "interrupted.ckpt").exists()
