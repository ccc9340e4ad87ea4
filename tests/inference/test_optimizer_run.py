"""One run over methods that succeed and fail in every way, and what the optimizer says and hands out afterwards."""

from __future__ import annotations

import copy
import csv
import io
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_models import CountingAccuracy, Failing, SmallClassifier, Treacherous, sharing

from yolox.errors import UsageError
from yolox.inference import methods
from yolox.inference.optimizer import InferenceOptimizer
from yolox.inference.search.protocol import Limits, Status
from yolox.inference.search.results import OptimizationReport
from yolox.inference.search.run import Listener, Search, SearchOptions

pytestmark = pytest.mark.processes
RUN = ["channels_last", "bf16", "jit_fp32", "jit_bf16", "openvino_fp32"]
QUICK = Limits(rounds=3, round_seconds=0.02, tune_seconds=0.0, calibration_size=4)


class Run:
    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.model = Treacherous().train()
        self.before = copy.deepcopy(self.model.state_dict())
        self.progress: list[tuple[str, str]] = []
        self.finished: list[str] = []
        self.optimizer = InferenceOptimizer(
            folder,
            Listener(lambda name, text: self.progress.append((name, text)), lambda row: self.finished.append(row.name)),
        )
        self.sample = torch.rand(4, 3, 16, 16)
        self.report = self.optimizer.optimize(
            self.model,
            training_data=self.sample,
            metric=sharing,
            methods=RUN,
            thread_num=1,
            limits=QUICK,
            metadata={"classes": ["a", "b"]},
            output_filename=folder / "table.txt",
        )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "find_spec", lambda name: None if name == "openvino" else find_spec(name))
        return Run(tmp_path_factory.mktemp("run"))


def test_every_method_is_a_row_with_status_reason_and_log(run: Run) -> None:
    statuses = {row.name: row.status for row in run.report}
    assert statuses == {
        "original": Status.SUCCESSFUL,
        "channels_last": Status.SUCCESSFUL,
        "bf16": Status.FAIL_TO_FORWARD,
        "jit_fp32": Status.FAIL_TO_CONVERT,
        "jit_bf16": Status.FAIL_TO_FORWARD,
        "openvino_fp32": Status.LACK_DEPENDENCY,
    }
    assert "killed by signal 11 (SIGSEGV)" in run.report["jit_fp32"].reason
    assert "wrong output: shapes" in run.report["jit_bf16"].reason
    assert run.report["bf16"].reason == "the metric failed: ArithmeticError: not this one"
    assert "pip install openvino" in run.report["openvino_fp32"].reason
    log = run.report["bf16"].log
    assert log is not None
    assert "Traceback" in log.read_text()
    assert run.finished[0] == "original"
    assert sorted(run.finished) == sorted(statuses)
    assert [row.name for row in run.report] == list(statuses)


def test_the_users_model_is_bit_identical_and_still_in_training_mode(run: Run) -> None:
    assert run.model.training
    after = run.model.state_dict()
    assert list(after) == list(run.before)
    assert all(torch.equal(after[key], run.before[key]) for key in after)
    assert not any(key.startswith("_trainer") or "example" in key for key in vars(run.model))


def test_numbers_are_measured_for_the_row(run: Run) -> None:
    original, other = run.report["original"], run.report["channels_last"]
    assert original.latency is not None
    assert other.latency is not None
    assert original.metrics == {"quality": 0.5, "shape": 10.0}
    assert other.metrics == {"quality": 0.45, "shape": 10.0}
    assert run.report.drop(other) == pytest.approx(0.05)
    assert other.max_difference is not None
    assert other.max_difference < 1e-5
    assert other.settings is not None
    assert other.settings.channels_last
    assert original.settings is not None
    assert not original.settings.channels_last
    assert original.peak_memory_mb is not None
    assert original.peak_memory_mb > 50
    assert original.size_mb is not None
    assert original.size_mb > 0


def test_rounds_are_interleaved(run: Run) -> None:
    rounds = [(name, text) for name, text in run.progress if text.startswith("measuring, round")]
    assert rounds == [
        ("original", "measuring, round 2 of 3"),
        ("channels_last", "measuring, round 2 of 3"),
        ("channels_last", "measuring, round 3 of 3"),
        ("original", "measuring, round 3 of 3"),
    ]


def test_table_files(run: Run, tmp_path: Path) -> None:
    rows = json.loads(run.report.to_json())["rows"]
    assert [row["method"] for row in rows] == [row.name for row in run.report]
    needed = {"status", "reason", "latency_ms", "images_per_second", "speedup", "quality", "shape", "size_mb"}
    assert all(needed | {"peak_memory_mb", "int8_share"} <= row.keys() for row in rows)
    assert rows[0]["speedup"] == 1.0
    lines = list(csv.DictReader(io.StringIO(run.report.to_csv())))
    assert [line["method"] for line in lines] == [row["method"] for row in rows]
    assert run.report.to_markdown().count("\n") == len(rows) + 2
    text = run.report.to_text()
    assert "killed by signal 11" in text
    assert run.report["original"].log is not None
    saved = run.report["original"].log.parents[1] / "table.txt"
    assert saved.read_text() == text + "\n"


def test_models_come_back_and_answer_like_the_original(run: Run) -> None:
    model = run.optimizer.get_model("channels_last")
    with torch.inference_mode():
        expected = copy.deepcopy(run.model).eval()(run.sample)
    torch.testing.assert_close(model(run.sample), expected, rtol=1e-4, atol=1e-5)
    assert isinstance(model(run.sample.numpy()), np.ndarray)
    assert model.metadata == {"classes": ["a", "b"]}
    with pytest.raises(UsageError, match=r"killed by signal"):
        run.optimizer.get_model("jit_fp32")
    with pytest.raises(UsageError, match=r"not among the methods"):
        run.optimizer.get_model("jit_int8")
    with pytest.raises(UsageError, match=r"Did you mean 'channels_last'"):
        run.optimizer.get_model("chanels_last")


def test_the_best_model_respects_filters_and_the_originals_accuracy(run: Run) -> None:
    assert run.optimizer.best_row(accuracy_criterion=0.05).name == "original"
    assert run.optimizer.best_row(accuracy_criterion=0.2).name in ("original", "channels_last")
    with pytest.raises(UsageError, match=r"passes these filters"):
        run.optimizer.get_best_model(accelerator="openvino")
    with pytest.raises(UsageError, match=r"expected one of"):
        run.optimizer.get_best_model(precision="int4")
    model, used = run.optimizer.get_best_model(accuracy_criterion=0.05)
    assert model.manifest.method == "original"
    assert used == "original"


def test_a_saved_model_gives_the_same_in_a_fresh_process(run: Run, tmp_path: Path) -> None:
    model = run.optimizer.get_model("channels_last")
    InferenceOptimizer.save(model, tmp_path / "model", {"note": 1})
    np.save(tmp_path / "x.npy", run.sample.numpy())
    code = (
        "import sys, numpy as np; from yolox.inference.artifacts.model import load_model\n"
        "sys.path.append('tests/inference'); from small_models import Treacherous\n"
        "model = load_model(sys.argv[1], module=Treacherous()); assert model.metadata == {'note': 1}\n"
        "np.save(sys.argv[3], model(np.load(sys.argv[2])))"
    )
    arguments = [str(tmp_path / name) for name in ("model", "x.npy", "y.npy")]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, cwd=Path(__file__).parents[2])
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), model(run.sample.numpy()), rtol=1e-5, atol=1e-6)
    assert not [path for path in (tmp_path / "model").rglob("*") if path.suffix in (".pkl", ".pickle")]


def test_an_interruption_keeps_the_finished_rows(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(row: Any) -> None:
        raise KeyboardInterrupt

    optimizer = InferenceOptimizer(listener=Listener(on_result=interrupt))
    data = [(torch.rand(2, 3, 16, 16), torch.tensor([1, 2]))]
    with pytest.raises(KeyboardInterrupt):
        optimizer.optimize(
            SmallClassifier(), data, data, metric=CountingAccuracy(), methods=["bf16"], limits=QUICK, thread_num=1
        )
    assert [row.name for row in optimizer.report] == ["original"]
    assert optimizer.report.metric_names == ("CountingAccuracy",)
    assert 0.0 <= optimizer.report["original"].metrics["CountingAccuracy"] <= 1.0
    assert "original" in optimizer.summary()
    assert "successful" in capsys.readouterr().out


def test_a_model_that_does_not_run_is_an_error_that_says_why() -> None:
    optimizer = InferenceOptimizer(listener=Listener())
    with pytest.raises(UsageError, match=r"no forward today"):
        optimizer.optimize(Failing(), torch.rand(2, 3, 16, 16), limits=QUICK, thread_num=1)


def test_wrong_options_are_told_before_any_work() -> None:
    optimizer = InferenceOptimizer(listener=Listener())
    sample = torch.rand(2, 3, 16, 16)
    with pytest.raises(UsageError, match=r"Did you mean 'openvino_int8'"):
        optimizer.optimize(SmallClassifier(), sample, includes=["openvino_in8"])
    with pytest.raises(UsageError, match=r"direction is 'up'"):
        optimizer.optimize(SmallClassifier(), sample, direction="up")
    with pytest.raises(UsageError, match=r"thread_num is 0"):
        optimizer.optimize(SmallClassifier(), sample, thread_num=0)
    with pytest.raises(UsageError, match=r"no training_data"):
        optimizer.optimize(SmallClassifier())
    with pytest.raises(UsageError, match=r"shape \(2, 3, 24, 24\)"):
        optimizer.optimize(SmallClassifier(), torch.rand(2, 3, 24, 24), input_sample=sample)
    with pytest.raises(UsageError, match=r"there are no results yet"):
        optimizer.summary()


def test_a_model_that_cannot_be_sent_is_named() -> None:
    model = SmallClassifier()
    model.handle = (number for number in range(3))  # type: ignore[assignment]
    with pytest.raises(UsageError, match=r"the model cannot be sent to another process"):
        InferenceOptimizer(listener=Listener()).optimize(model, torch.rand(2, 3, 16, 16), limits=QUICK)


def test_the_time_budget_leaves_later_methods_out() -> None:
    optimizer = InferenceOptimizer(listener=Listener())
    report: OptimizationReport
    with pytest.raises(UsageError, match=r"time budget of 0 s"):
        optimizer.optimize(
            SmallClassifier(), torch.rand(2, 3, 16, 16), limits=Limits(time_budget=1e-9), methods=["bf16"]
        )
    report = optimizer.report
    assert [row.status for row in report] == [Status.EARLY_STOPPED]


@pytest.mark.parametrize(
    ("has_bf16", "order"),
    [(True, "original bf16 openvino_fp32 inductor_fp32"), (False, "original openvino_fp32 inductor_fp32 bf16")],
)
def test_rows_that_are_computed_in_software_come_last(
    has_bf16: bool, order: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("yolox.inference.search.run.read_machine", lambda: SimpleNamespace(has_bf16=has_bf16))
    chosen = tuple(methods.get_method(name) for name in ("original", "bf16", "inductor_fp32", "openvino_fp32"))
    search = Search(chosen, tmp_path, 1, SearchOptions(threads=1), Listener())
    assert [method.name for group in search._groups() for method in group] == order.split()
