from __future__ import annotations

import importlib
import io
import logging
import os
import subprocess
import sys

import pytest

from yolox.config import apply_fields
from yolox.errors import DataError, MissingDependencyError, ModelFileError, UsageError
from yolox.experiments import get_experiment
from yolox.structures import Size
from yolox.tools.arguments import (
    ToolParser,
    add_data_arguments,
    add_model_arguments,
    add_overrides,
    apply_arguments,
    asked_experiment,
    positive_int,
    probability,
    run_tool,
)


@pytest.fixture
def parser() -> ToolParser:
    parser = ToolParser("eval", "Evaluates.")
    add_model_arguments(parser, "weights")
    add_data_arguments(parser, batch_size=64)
    parser.add_argument("--conf", type=probability)
    add_overrides(parser)
    return parser


def test_options_and_overrides_in_any_order(parser: ToolParser) -> None:
    words = ["-n", "yolox-s", "max_epoch", "2", "-b", "8", "data.degrees=0", "translate", "0.5", "--conf", "0.1"]
    args = parser.parse(words)
    assert (args.name, args.batch_size, args.conf) == ("yolox-s", 8, 0.1)
    experiment = asked_experiment(args)
    assert experiment is not None
    applied = apply_arguments(experiment, args)
    assert (applied.recipe.max_epoch, applied.data.degrees, applied.data.translate) == (2, 0.0, 0.5)
    assert applied.model == experiment.model


def test_a_negative_number_is_a_value_and_no_option(parser: ToolParser) -> None:
    args = parser.parse(["-n", "yolox-s", "translate", "-0.5", "--conf", "0.1"])
    assert args.opts == ["translate", "-0.5"]
    with pytest.raises(UsageError, match=r"translate got -0\.5, expected a value from 0 to 1"):
        apply_arguments(get_experiment("yolox_s"), args)


@pytest.mark.parametrize(
    ("words", "train_ann"),
    [
        ([], "old.json"),
        (["--data_dir", "new"], None),
        (["data_dir", "new"], None),
        (["data.data_dir=new", "train_ann", "mine.json"], "mine.json"),
        (["--data_dir", "new", "data.train_ann=mine.json"], "mine.json"),
    ],
)
def test_a_new_data_set_drops_the_label_files_of_another(
    parser: ToolParser, words: list[str], train_ann: str | None
) -> None:
    stored = apply_fields(get_experiment("yolox_nano"), {"data_dir": "old", "train_ann": "old.json"})
    assert apply_arguments(stored, parser.parse(words)).data.train_ann == train_ann


def test_dashes_and_underscores_are_one(parser: ToolParser) -> None:
    args = parser.parse(["--data-dir", "d", "--batch_size=3", "--experiment_name", "e", "--num-workers", "0"])
    assert (args.data_dir, args.batch_size, args.experiment_name, args.num_workers) == ("d", 3, "e", 0)
    experiment = apply_arguments(asked_experiment(parser.parse(["-n", "yolox_nano"])), args)  # type: ignore[arg-type]
    assert (experiment.exp_name, experiment.data.data_dir, experiment.data.data_num_workers) == ("e", "d", 0)
    assert experiment.eval.test_size == Size(416, 416)


@pytest.mark.parametrize("tool", ["train", "eval", "demo", "export", "inference_demo"])
def test_every_option_of_every_tool_is_known_under_both_spellings(tool: str) -> None:
    parser = importlib.import_module(f"yolox.tools.{tool}").build_parser()
    assert len(parser.spellings) > 10
    for name in parser.spellings:
        dashes, plain = name[: len(name) - len(name.lstrip("-"))], name.lstrip("-")
        for spelling in (plain.replace("_", "-"), plain.replace("-", "_")):
            assert parser.option(dashes + spelling) is parser.option(name), name


def test_options_of_groups_take_both_spellings() -> None:
    parser = ToolParser("train", "Trains.")
    parser.add_argument_group("processes").add_argument("--num_processes", type=int)
    for word in ("--num-processes=3", "--num_processes=3"):
        assert parser.parse([word]).num_processes == 3


def test_options_with_several_values_leave_the_overrides_alone(parser: ToolParser) -> None:
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--cache", nargs="?", const="ram")
    for words in (
        ["--methods", "a", "b", "max_epoch", "2", "--cache", "data.degrees=0"],
        ["max_epoch", "2", "--methods", "a", "b", "degrees", "0", "--cache"],
    ):
        args = parser.parse(words)
        experiment = apply_arguments(get_experiment("yolox_nano"), args)
        assert (args.methods, args.cache) == (["a", "b"], "ram")
        assert (experiment.recipe.max_epoch, experiment.data.degrees) == (2, 0.0)
    assert parser.parse(["--methods", "momentum"]).methods == ["momentum"]


def test_devices_are_processes_where_there_are_processes(parser: ToolParser) -> None:
    parser.add_argument("--num_processes", type=int)
    for words in (["--devices", "8"], ["-d", "8"], ["--devices=8"]):
        with pytest.raises(UsageError, match="--num_processes 8"):
            parser.parse(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batchsize", "3"], "unknown option '--batchsize'. Did you mean '--batch-size'"),
        (["--data_dri=x"], "unknown option '--data_dri'. Did you mean '--data_dir'"),
        (["--fp16"], "--precision bf16"),
        (["-d", "1"], "runs on CPUs"),
        (["--momentum", "0.9"], "write 'momentum 0.9'"),
        (["--weight-decay=0.1"], "write 'weight_decay 0.1'"),
        (["--epochs", "3"], "Write 'max_epoch 3'"),
        (["--imgsz", "320"], "Write 'input_size 320 test_size 320'"),
        (["-b", "0"], "expected 1 or more"),
        (["-b", "many"], "invalid positive_int value: 'many'"),
        (["--conf", "7"], "expected a value from 0 to 1"),
        (["-n"], "expected one argument"),
    ],
)
def test_bad_command_lines(parser: ToolParser, words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parser.parse(words)
    assert message in str(caught.value)
    assert "--help" in str(caught.value)


def test_unknown_models_and_overrides_name_the_nearest(parser: ToolParser) -> None:
    with pytest.raises(UsageError, match="Did you mean 'yolox_nano'"):
        asked_experiment(parser.parse(["-n", "yolox_nan"]))
    args = parser.parse(["-n", "yolox_nano", "max_epochs", "3"])
    with pytest.raises(UsageError, match=r"Did you mean '(recipe\.)?max_epoch'"):
        apply_arguments(asked_experiment(args), args)  # type: ignore[arg-type]
    assert asked_experiment(parser.parse([])) is None


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("no such thing"), 2),
        (DataError("no such thing"), 3),
        (ModelFileError("no such thing"), 4),
        (MissingDependencyError("no such thing", "pip install it"), 5),
    ],
)
def test_mistakes_have_their_code_and_no_traceback(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def body() -> int:
        raise error

    assert run_tool(body) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: no such thing")
    assert "Traceback" not in shown.err


def test_crashes_interrupts_and_success(capsys: pytest.CaptureFixture[str], parser: ToolParser) -> None:
    def crash() -> int:
        raise ZeroDivisionError("unexpected")

    def interrupt() -> int:
        raise KeyboardInterrupt

    assert run_tool(crash) == 1
    assert "Traceback" in capsys.readouterr().err
    assert run_tool(interrupt) == 130
    assert run_tool(lambda: None) == 0
    assert run_tool(lambda: 3) == 3
    assert run_tool(lambda: parser.parse(["--help"]) and 9) == 0
    assert "usage: python -m yolox.tools.eval" in capsys.readouterr().out


def test_the_log_goes_to_the_error_stream_once(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        run_tool(lambda: logging.getLogger("yolox.data").warning("bad image"))
    assert capsys.readouterr().err.splitlines() == ["warning: bad image"] * 2


def test_numbers() -> None:
    assert positive_int("4") == 4
    assert probability("0.5") == 0.5


def test_a_full_disk_is_no_crash(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> None:
        try:
            raise OSError(28, "No space left on device", "/full/hparams.yaml")
        except OSError as error:
            raise RuntimeError("rank 0 raised") from error

    assert run_tool(body) == 1
    assert capsys.readouterr().err == (
        "error: cannot write '/full/hparams.yaml': No space left on device. Free some space or choose another folder.\n"
    )


def test_a_lack_of_memory_is_no_crash(capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np
    import torch

    for body in (
        lambda: torch.empty(2**60, dtype=torch.uint8),
        lambda: np.empty(2**60, np.uint8),
        lambda: b"." * 2**60,
    ):
        assert run_tool(body) == 1
        shown = capsys.readouterr().err
        assert shown.startswith("error: there is not enough memory (")
        assert shown.endswith("). Use a smaller batch (-b), input size or model, or fewer processes.\n")


@pytest.mark.parametrize(
    ("tool", "words", "message"),
    [
        ("inference_demo", ["--max_drop", "nan"], "--max_drop got 'nan', expected a finite number"),
        ("inference_demo", ["--max_drop=-1"], "--max_drop got -1.0, expected a value from 0 to 1"),
        ("inference_demo", ["--time_budget", "inf"], "--time_budget got 'inf', expected a finite number"),
        ("serve", ["model", "--port", "70000"], "--port got 70000, expected a value from 0 to 65535"),
        ("serve", ["model", "--max_mb", "0"], "--max_mb got 0.0, expected a value from 0.001"),
        ("serve", ["model", "--max_wait_ms=-2"], "--max_wait_ms got -2.0"),
        ("doctor", ["--max_labels", "0"], "--max_labels got 0, expected a value from 1"),
        ("doctor", ["--num_images=-3"], "--num_images got -3, expected 0 or more"),
        ("predict", ["x.png", "--max_reconnects=-1"], "--max_reconnects got -1, expected 0 or more"),
        ("train", ["--max_restarts=-1"], "--max_restarts got -1, expected 0 or more"),
    ],
)
def test_numbers_of_options_are_finite_and_in_range(tool: str, words: list[str], message: str) -> None:
    parser = importlib.import_module(f"yolox.tools.{tool}").build_parser()
    with pytest.raises(UsageError) as refused:
        parser.parse(words)
    assert message in str(refused.value)


@pytest.mark.parametrize("words", [["completion", "bash"], ["settings", "-n", "yolox_nano"]])
def test_a_reader_of_the_output_may_end(words: list[str]) -> None:
    """``yolox settings | head`` ends as other programs do, without a traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as output:
        ended = subprocess.run(
            [sys.executable, "-m", "yolox", *words], stdout=output, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (ended.returncode, ended.stderr) == (141, "")


def test_news_after_the_end_of_stderr_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()

    def body() -> None:
        monkeypatch.setattr(sys, "stderr", closed)
        logging.getLogger("yolox").warning("a thread that goes on")

    assert run_tool(body) == 0
