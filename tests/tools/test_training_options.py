"""The options of the training tool that say what is trained and for how long."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch

from yolox.config import apply_fields, field_names
from yolox.errors import UsageError
from yolox.experiments import get_experiment
from yolox.tools import train as train_tool
from yolox.tools.training import recipe_fields

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training.md"
pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:pytorch_lightning", "ignore::FutureWarning:pytorch_lightning"
)


def test_options_are_fields_of_the_experiment() -> None:
    words = "-n yolox-s --steps 7 --patience 3 --freeze backbone,head.stems.* --no_multiscale --accumulate 2 --clip 35"
    args = train_tool.build_parser().parse([*words.split(), "--time", "1h30m"])
    experiment = apply_fields(get_experiment("yolox_s"), recipe_fields(args))
    recipe = experiment.recipe
    assert (recipe.steps, recipe.patience, recipe.accumulate, recipe.clip) == (7, 3, 2, 35.0)
    assert recipe.freeze == ("backbone", "head.stems.*")
    assert experiment.data.size_range == (20, 20)
    assert args.time == 5400.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--time", "2"), "expected a time such as 2h"),
        (("--time", "-1h"), "time"),
        (("--time", "0h0s"), "expected a time such as 2h"),
        (("--steps", "0"), "expected 1 or more"),
        (("--clip", "nan"), "clip got nan, expected a finite number"),
        (("--clip", "0"), "a norm of gradients above 0"),
        (("fpn_strides", "4,8,16"), r"expected (8, 16, 32)"),
        (("n_candidate_k", "0"), "from 1 to 100"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        args = train_tool.build_parser().parse(["-n", "yolox-s", *words])
        overrides = dict(zip(args.opts[::2], args.opts[1::2], strict=True))
        apply_fields(get_experiment("yolox_s"), {**overrides, **recipe_fields(args)})


@pytest.mark.parametrize("service", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_stops_strict_runs_only(
    service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from yolox.data.sample_dataset import draw_sample_set

    monkeypatch.setattr("yolox.tools.training.find_spec", lambda _: None)
    draw_sample_set(tmp_path / "data", num_train=2, num_val=1)
    words = f"-n yolox_nano --data_dir {tmp_path / 'data'} --output_dir {tmp_path / 'out'} --dry-run -l {service}"
    assert train_tool.main(words.split()) == 0
    assert f"{service} is not installed. Install it with: pip install 'yolox-cpu[{service}]'" in capsys.readouterr().out
    assert train_tool.main([*words.split(), "--strict"]) == 5


def test_a_run_of_one_step_and_its_resumption(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from yolox.data.sample_dataset import draw_sample_set

    draw_sample_set(tmp_path / "data", num_train=6, num_val=2)
    common = (
        f"-n yolox_nano -b 2 --data_dir {tmp_path / 'data'} --output_dir {tmp_path / 'out'} --num_workers 0 -l none"
    )
    small = "input_size 64 test_size 64 max_epoch 2 eval_interval 9 warmup_epochs 0 --no-multiscale --freeze backbone"
    words = [*common.split(), *small.split(), "--accumulate", "2", "--clip", "35"]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert train_tool.main([*words, "--time", "1s", "--steps", "1", "--patience", "1"]) == 0
    assert not [warning for warning in told if "eval mode" in str(warning.message)]
    latest = tmp_path / "out" / "yolox_nano" / "latest_ckpt.pth"
    assert torch.load(latest, weights_only=True)["global_step"] == 1
    assert train_tool.main([*words, "--resume", "--freeze", "head"]) == 2
    assert "--resume: the run has frozen backbone, and head is asked for" in capfd.readouterr().err
    assert train_tool.main([*words, "--resume", "--steps", "3"]) == 0
    assert torch.load(latest, weights_only=True)["global_step"] == 3


def test_the_page_names_options_and_fields_that_exist() -> None:
    text = PAGE.read_text(encoding="utf-8")
    parser = train_tool.build_parser()
    for option in re.findall(r"`(--[\w-]+)", text):
        assert parser.option(option) is not None, option
    named = {
        "max_epoch",
        "ckpt_interval",
        "ckpt_interval_steps",
        "save_history_ckpt",
        "n_candidate_k",
        "basic_lr_per_img",
    }
    assert all(f"`{name}" in text for name in named)
    assert named <= field_names()
