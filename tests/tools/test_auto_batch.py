"""``-b auto``: the arithmetic, one real measurement, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolox.config import apply_fields
from yolox.data.sample_dataset import draw_sample_set
from yolox.errors import YoloxError
from yolox.experiments import get_experiment
from yolox.tools import auto_batch, train
from yolox.tools.auto_batch import StepMemory, choose_batch, measure

GIB = 2**30
STEP = StepMemory(base=1.0 * GIB, per_image=0.5 * GIB)


@pytest.mark.parametrize(
    ("available", "processes", "images", "batch"),
    [
        (100, 1, 1000, 64),  # 33 of 70 GiB
        (40, 1, 1000, 32),  # 17 of 28; 64 would take 33
        (40, 2, 1000, 32),  # 9 of 14 in each; 17 would be too much
        (40, 3, 1000, 48),  # 9 of 9.3 in each
        (3, 1, 1000, 2),  # 2 of 2.1
        (100, 1, 20, 16),  # more than the data set has no use
        (100, 4, 3, 4),  # every process has an image
    ],
)
def test_the_largest_batch_that_fits(available: float, processes: int, images: int, batch: int) -> None:
    chosen, why = choose_batch(STEP, available * GIB, processes, images)
    assert chosen == batch
    assert f"batch {batch} (auto)" in why
    assert f"1.00 GiB and 0.50 GiB an image in each of {processes} process(es)" in why
    assert f"{available:.1f} GiB available" in why


def test_one_image_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(YoloxError, match=r"one image does not fit.*smaller model"):
        choose_batch(STEP, 2 * GIB, 1, 100)


@pytest.mark.processes
def test_a_measured_step_grows_with_the_size() -> None:
    small, large = (
        measure(apply_fields(get_experiment("yolox_nano"), {"input_size": side, "random_size": "none"}), "32")
        for side in (64, 320)
    )
    assert 0.1 * GIB < small.base < 2 * GIB
    assert 4e6 < large.per_image < GIB
    assert large.per_image > 3 * small.per_image  # 25 times the pixels


@pytest.fixture
def data(tmp_path: Path) -> Path:
    draw_sample_set(tmp_path / "shapes", num_train=6, num_val=2)
    return tmp_path / "shapes"


def test_the_recipe_follows_the_chosen_batch(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(auto_batch, "measure", lambda *_: StepMemory(0.0, 1.0))
    words = ["-n", "yolox_nano", "-b", "auto", "--data_dir", str(data), "--output_dir", str(tmp_path), "--dry-run"]
    assert train.main([*words, "max_epoch", "9", "input_size", "64"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("batch 4 (auto)") < shown.index("recipe for")
    assert "9 epochs of 2 steps" in shown
    assert "batch 4, 2 steps an epoch" in shown


@pytest.mark.parametrize("options", [("--accelerator", "cuda"), ("--num_processes", "2", "--strategy", "ray")])
def test_it_is_refused_where_the_steps_are_elsewhere(
    options: tuple[str, ...], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(["-n", "yolox_nano", "-b", "auto", "--data_dir", str(data), "--dry-run", *options]) == 2
    assert "-b auto measures the memory of processes of this machine" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["Auto", "0", "many"])
def test_other_words_are_no_batch(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["-n", "yolox_nano", "-b", word]) == 2
    assert "-b/--batch-size" in capsys.readouterr().err
