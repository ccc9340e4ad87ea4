"""Every setting of the trainer is used, refused with the reason, or noted; all in one process."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from tiny import QUIET, TinyModule, make_loader, make_module, make_trainer
from torch import Tensor, nn

from yolox.cpu.machine import LogicalCpu, Machine
from yolox.errors import MissingDependencyError, ModelFileError, UsageError
from yolox.trainer.arguments import warmup_epochs
from yolox.trainer.checkpoint_io import AtomicCheckpointIO
from yolox.trainer.plan import Request
from yolox.trainer.resolve import Settings, resolve
from yolox.trainer.trainer import Trainer

pytestmark = QUIET


class Sees(TinyModule):
    """Remembers types and layouts of what passes."""

    def __init__(self) -> None:
        super().__init__()
        self.images = ""
        self.weights: torch.dtype | None = None
        self.outputs: list[torch.dtype] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.images = f"{batch[0].dtype} {batch[0].is_contiguous(memory_format=torch.channels_last)}"
        self.weights = self.net[0].weight.dtype
        self.outputs = []
        value: Any = batch[0]
        for layer in self.net:
            value = layer(value)
            self.outputs.append(value.dtype)
        return (value.to(batch[1].dtype) - batch[1]).square().mean()


@pytest.mark.parametrize(
    ("precision", "images", "weights", "product"),
    [
        (64, torch.float64, torch.float64, torch.float64),
        ("32", torch.float32, torch.float32, torch.float32),
        (16, torch.float32, torch.float32, torch.float16),
        ("bf16", torch.float32, torch.float32, torch.bfloat16),
    ],
)
def test_precisions(
    precision: Any, images: torch.dtype, weights: torch.dtype, product: torch.dtype, tmp_path: Path
) -> None:
    module = Sees()
    trainer = make_trainer(tmp_path, precision=precision, channels_last=True, max_epochs=1)
    trainer.fit(module, make_loader())
    assert module.images == f"{images} True"
    assert module.weights == weights
    assert module.outputs[0] == product
    assert module.net[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_without_channels_last_the_layout_stays(tmp_path: Path) -> None:
    module = Sees()
    make_trainer(tmp_path, max_epochs=1).fit(module, make_loader())
    assert module.images == "torch.float32 False"


def test_named_parts_stay_in_fp32(tmp_path: Path) -> None:
    module = Sees()
    make_trainer(tmp_path, precision="bf16", fp32_modules=["net.4"], max_epochs=1).fit(module, make_loader())
    assert module.outputs[0] == torch.bfloat16
    assert module.outputs[-1] == torch.float32
    assert not module.net[4]._forward_pre_hooks, "the hooks are gone after the fit"
    with pytest.raises(UsageError, match=r"no part is called 'net\.9'"):
        make_trainer(tmp_path, precision="bf16", fp32_modules=["net.9"], max_epochs=1).fit(module, make_loader())
    with pytest.raises(UsageError, match="exceptions from mixed precision"):
        make_trainer(tmp_path, fp32_modules=["net.4"])


def test_operator_lists_of_the_gaudi_port(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "bf16.txt").write_text("silu  # an activation\nno_such_operator\n")
    (tmp_path / "fp32.txt").write_text("conv2d\n")
    module = Sees()
    trainer = make_trainer(
        tmp_path,
        precision="bf16",
        bf16_operations=tmp_path / "bf16.txt",
        fp32_operations=tmp_path / "fp32.txt",
        max_epochs=1,
    )
    assert "no operator no_such_operator" in caplog.text
    trainer.fit(module, make_loader())
    assert module.outputs[0] == torch.float32
    assert module.outputs[2] == torch.bfloat16
    (tmp_path / "fp32.txt").write_text("silu\n")
    with pytest.raises(UsageError, match="both lists: silu"):
        make_trainer(
            tmp_path, precision="bf16", bf16_operations=tmp_path / "bf16.txt", fp32_operations=tmp_path / "fp32.txt"
        )


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"max_epoch": 1}, "Did you mean 'max_epochs'"),
        ({"use_hpo": True}, "hyper-parameters"),
        ({"algorithms": []}, "SelectiveBackprop"),
        ({"checkpoint_callback": False}, "enable_checkpointing"),
        ({"num_processes": 2, "strategy": "ddp"}, "contradict"),
        ({"num_processes": 2, "devices": 3}, "contradict"),
        ({"num_nodes": 2}, "several machines"),
        ({"precision": "int8"}, "unknown precision"),
        ({"accelerator": "abacus"}, "unknown accelerator"),
        ({"accelerator": "xpu"}, "accelerator 'xpu'"),
        ({"auto_lr": {"warmup": 3}}, "auto_lr"),
    ],
)
def test_refused_arguments(arguments: dict[str, Any], part: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=part):
        make_trainer(tmp_path, **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_absent_accelerators_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"without CUDA|no device"):
        make_trainer(tmp_path, accelerator="cuda")
    with pytest.raises(MissingDependencyError, match="Gaudi"):
        make_trainer(tmp_path, accelerator="hpu")
    with pytest.raises(MissingDependencyError, match="Ascend"):
        make_trainer(tmp_path, accelerator="npu")


def test_what_a_trainer_is_made_of_is_decided_without_touching_anything() -> None:
    given = {"devices": 2, "callbacks": [pl.Callback()], "max_epochs": 1}
    settings = Settings(Request(precision="bf16"), auto_lr=True, lightning=given)
    threads, filters = torch.get_num_threads(), list(warnings.filters)
    machine = Machine(tuple(LogicalCpu(number, core=number) for number in range(4)), allowed=(0, 1, 2, 3))
    parts = resolve(settings, machine)
    assert (torch.get_num_threads(), list(warnings.filters)) == (threads, filters)
    assert given == {"devices": 2, "callbacks": given["callbacks"], "max_epochs": 1}
    assert (parts.plan.world, parts.plan.precision, parts.threads, parts.is_alone) == (2, "bf16", None, False)
    assert (parts.arguments["devices"], parts.arguments["max_epochs"]) == (2, 1)
    names = [type(callback).__name__ for callback in parts.arguments["callbacks"]]
    assert names == ["Callback", "TrainingKernels", "ScaledLearningRate", "ResumeCounters", "GracefulStop"]
    one = resolve(Settings(), machine)
    assert (one.plan.launcher, one.threads, one.is_alone, one.arguments["devices"]) == ("none", 4, True, 1)


class BackToTheBeginning(TinyModule):
    """Changes the counters of the checkpoint that it goes on from."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["epoch"], checkpoint["global_step"] = 1, 2


def test_a_module_may_move_the_counters_of_a_checkpoint(tmp_path: Path) -> None:
    first = make_trainer(tmp_path, max_epochs=3, enable_checkpointing=False)
    first.fit(make_module(), make_loader())
    assert (first.current_epoch, first.global_step) == (3, 6)
    first.save_checkpoint(tmp_path / "three.ckpt")
    module = BackToTheBeginning()
    rest = make_trainer(tmp_path, max_epochs=4, enable_checkpointing=False)
    rest.fit(module, make_loader(), ckpt_path=tmp_path / "three.ckpt")
    assert (module.steps_seen, rest.current_epoch, rest.global_step) == (6, 4, 8)


def test_devices_is_another_word_for_processes(tmp_path: Path) -> None:
    assert make_trainer(tmp_path, devices=2).plan.world == 2
    assert make_trainer(tmp_path, devices="auto").plan.world == 1


def test_ipex_that_is_not_there_is_noted_and_its_layout_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = Sees()
    trainer = make_trainer(tmp_path, use_ipex=True, max_epochs=1)
    if any("use_ipex" in note for note in trainer.plan.notes):
        assert "use_ipex" in caplog.text
        trainer.fit(module, make_loader())
        assert module.images == "torch.float32 True"


@pytest.mark.parametrize(("value", "epochs"), [(True, None), (False, None), ({"warmup_epochs": 3}, 3)])
def test_auto_lr_values(value: Any, epochs: int | None) -> None:
    assert warmup_epochs(value) == epochs


def test_checkpoints_are_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = AtomicCheckpointIO(journal=tmp_path / "journal")
    target = tmp_path / "deep" / "a.ckpt"
    files.save_checkpoint({"value": torch.ones(2)}, target)
    assert files.load_checkpoint(target)["value"].tolist() == [1.0, 1.0]
    assert (tmp_path / "journal").read_text() == f"{target}\n"

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(Exception, match="No space left"):
        files.save_checkpoint({"value": torch.zeros(2)}, target)
    monkeypatch.undo()
    assert files.load_checkpoint(target)["value"].tolist() == [1.0, 1.0]
    assert [file.name for file in target.parent.iterdir()] == ["a.ckpt"]


def test_checkpoints_that_hold_code_or_are_damaged_are_refused(tmp_path: Path) -> None:
    files = AtomicCheckpointIO()
    torch.save({"model": nn.Linear(1, 1)}, tmp_path / "code.ckpt")
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "code.ckpt").read_bytes()[:100])
    for name in ("code.ckpt", "cut.ckpt", "absent.ckpt"):
        with pytest.raises(ModelFileError, match=name):
            files.load_checkpoint(tmp_path / name)


def test_resuming_equals_never_stopping(tmp_path: Path) -> None:
    expected = make_module()
    make_trainer(tmp_path, max_epochs=4, enable_checkpointing=False).fit(expected, make_loader())
    first = make_trainer(tmp_path, max_epochs=2, enable_checkpointing=False)
    first.fit(make_module(), make_loader())
    first.save_checkpoint(tmp_path / "half.ckpt")
    module = TinyModule()
    rest = make_trainer(tmp_path, max_epochs=4, enable_checkpointing=False)
    rest.fit(module, make_loader(), ckpt_path=tmp_path / "half.ckpt")
    for value, other in zip(module.state_dict().values(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, rtol=0, atol=1e-7)


class Regression(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(192, 1))

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.net(images)
        return result


def mean_error(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).abs().mean()


def test_compile_trains_a_plain_module(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Regression()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    module = Trainer.compile(model, nn.MSELoss(), optimizer, metrics=[mean_error])
    trainer = make_trainer(tmp_path, max_epochs=3)
    trainer.fit(module, make_loader(), make_loader())
    first = trainer.callback_metrics["val/loss"]
    assert {"train/loss", "val/loss", "val/mean_error_0"} <= trainer.callback_metrics.keys()
    trainer.fit_loop.max_epochs = 6
    trainer.fit(module, make_loader(), make_loader())
    assert trainer.callback_metrics["val/loss"] < first
    results = trainer.test(module, make_loader(), verbose=False)
    assert set(results[0]) == {"test/mean_error_0"}
    module.load_state_dict(model.state_dict())


def test_compile_refuses_what_makes_no_sense(tmp_path: Path) -> None:
    lightning = make_module()
    assert Trainer.compile(lightning) is lightning
    with pytest.raises(UsageError, match="LightningModule and loss"):
        Trainer.compile(lightning, nn.MSELoss())
    with pytest.raises(UsageError, match="got int"):
        Trainer.compile(3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="without loss and optimizer"):
        make_trainer(tmp_path).fit(Trainer.compile(Regression()), make_loader())


def test_save_and_load(tmp_path: Path) -> None:
    saved, other = Regression(), Regression()
    Trainer.save(saved, tmp_path / "model")
    loaded = Trainer.load(tmp_path / "model", other)
    assert loaded is not other
    assert torch.equal(loaded.get_parameter("net.1.weight"), saved.get_parameter("net.1.weight"))
    assert Trainer.load(tmp_path / "model", other, inplace=True) is other
    with pytest.raises(UsageError, match="got no model"):
        Trainer.load(tmp_path / "model")
    with pytest.raises(ModelFileError, match="do not fit"):
        Trainer.load(tmp_path / "model", nn.Linear(2, 2))
    with pytest.raises(ModelFileError, match="has no file"):
        Trainer.load(tmp_path / "nowhere", other)


def test_the_trainer_knows_nothing_of_sessions_before_it(tmp_path: Path) -> None:
    """A trainer is made without touching the random state of the caller."""
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    make_trainer(tmp_path)
    assert torch.equal(torch.rand(1), expected)
    assert isinstance(make_trainer(tmp_path), pl.Trainer)


class OverflowsAtFirst(TinyModule):
    """Its first gradient is infinite, so that a gradient scaler skips the first step."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * (torch.inf if self.steps_seen == 1 else 1.0)

    def configure_optimizers(self) -> dict[str, Any]:
        return {"optimizer": torch.optim.SGD(self.parameters(), 0.02, momentum=0.9, nesterov=True, fused=True)}


def test_a_skipped_step_leaves_no_momentum(tmp_path: Path) -> None:
    """PyTorch's fused SGD went on from memory that nobody had written; here unwritten memory is NaN."""
    torch.manual_seed(7)
    module = OverflowsAtFirst()
    trainer = make_trainer(tmp_path, precision=16, max_epochs=2)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        trainer.fit(module, make_loader())
    finally:
        torch.use_deterministic_algorithms(False)
    assert module.steps_seen == 4
    assert all(bool(parameter.isfinite().all()) for parameter in module.parameters())


def test_dampening_cannot_skip_steps(tmp_path: Path) -> None:
    module = make_module()
    optimizer = torch.optim.SGD(module.parameters(), 0.02, momentum=0.9, dampening=0.5, fused=True)
    module.configure_optimizers = lambda: optimizer  # type: ignore[assignment, method-assign, return-value]
    with pytest.raises(UsageError, match="Use fused=False"):
        make_trainer(tmp_path, precision=16, max_epochs=1).fit(module, make_loader())


def test_the_filters_of_the_caller_are_left_alone(tmp_path: Path) -> None:
    before = list(warnings.filters)
    trainer = make_trainer(tmp_path, max_epochs=1)
    assert warnings.filters == before
    trainer.fit(make_module(), make_loader())
    trainer.validate(trainer.lightning_module, make_loader(), verbose=False)
    assert warnings.filters == before
