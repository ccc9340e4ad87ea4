"""The guard: a verdict only where the rounds allow it, and two checkouts measured in processes of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.checkouts import CheckoutProcess
from benchmarks.guard import compare, judge, main, table
from benchmarks.protocol import ROOT


def test_only_what_lies_outside_the_noise_is_slower() -> None:
    rng = np.random.default_rng(0)
    before = 1.0 + 0.05 * rng.random(9)
    assert judge("a", before, before * 1.01).word == "same"
    assert judge("a", before, before * 1.1).word == "slower"
    assert judge("a", before, before * 0.9).word == "faster"
    noisy = before * np.array([0.7, 1.4, 0.8, 1.3, 1.0, 0.9, 1.1, 1.5, 0.6])
    assert judge("a", before, noisy).word == "same"


def test_two_checkouts_are_compared_and_what_cannot_be_measured_is_said(tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "yolox").mkdir(parents=True)
    (other / "yolox" / "__init__.py").write_text("")
    name = "import yolox, processor time"
    (verdict,) = compare(other, ROOT, [name], rounds=1)
    assert not verdict.problem
    assert verdict.before > 0
    assert verdict.after > 0
    (missing,) = compare(other, ROOT, ["loss, batch 16, 30 objects"], rounds=1)
    assert missing.word == "not measured, before: ModuleNotFoundError: No module named 'yolox.experiments'"
    shown = table([missing, verdict], "other")
    assert shown.index(name) < shown.index("loss, batch 16")


def test_unknown_words_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "nothing like it"])
    assert "no measurement is named like 'nothing like it'" in capsys.readouterr().err
    assert main(["no-such-commit", "--only", "import yolox"]) == 2


def test_a_process_that_ends_is_named(tmp_path: Path) -> None:
    command = ["-c", "raise SystemExit(3)"]
    with CheckoutProcess(tmp_path, command) as process, pytest.raises(RuntimeError, match="code 3"):
        process.ask(1)
