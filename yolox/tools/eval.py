"""``python -m yolox.tools.eval``: COCO AP and speed of a checkpoint on a data set."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolox.config import Experiment, apply_fields
from yolox.errors import DataError, ModelFileError, UsageError
from yolox.tools.arguments import (
    ToolParser,
    add_data_arguments,
    add_model_arguments,
    add_overrides,
    apply_arguments,
    asked_experiment,
    positive_int,
    prepare_cpu,
    probability,
    run_tool,
)

if TYPE_CHECKING:
    from yolox.checkpoint import LoadedModel
    from yolox.data.loader import ValLoader

__all__ = ["build_parser", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit code."""
    return run_tool(lambda: _run(build_parser().parse(argv)))


def build_parser() -> ToolParser:
    """Return the parser of the command line."""
    parser = ToolParser("eval", "Evaluate a checkpoint: COCO AP, AP and AR of each class, milliseconds per image.")
    add_model_arguments(parser, "checkpoint; alone it is enough. Default: best_ckpt.pth of -n, -f or -expn")
    add_data_arguments(parser, batch_size=16)
    parser.add_argument("--conf", type=probability, help="lowest score (default: test_conf, 0.01)")
    parser.add_argument("--nms", type=probability, help="IoU of non-maximum suppression (default: nmsthre, 0.65)")
    parser.add_argument("--tsize", type=positive_int, help="side of the square input (default: test_size)")
    parser.add_argument("--precision", choices=("32", "bf16"), default="32", help="of the network (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="also write AP, AP50, ..., times and machine to FILE")
    add_overrides(parser)
    return parser


def _run(args: argparse.Namespace) -> None:
    from yolox.checkpoint import load_model
    from yolox.data.report import report_dataset
    from yolox.evaluation.loop import evaluate
    from yolox.evaluation.predictor import build_predict
    from yolox.evaluation.summary import summary
    from yolox.files import mark_inputs, refuse_inputs, write_text
    from yolox.models.detector import summarize

    asked = asked_experiment(args)
    print(prepare_cpu())
    checkpoint = _checkpoint_path(args, asked)
    mark_inputs(checkpoint, args.exp_file)
    loaded = load_model(checkpoint, asked)
    experiment = _experiment(loaded.experiment, args)
    settings = experiment.eval
    loader = _loader(experiment, loaded, args.batch_size)
    refuse_inputs(args.json)
    print(f"model: {loaded.source}; {summarize(experiment.model, settings.test_size)}")
    print(
        f"data: {loader.dataset.source}, {len(loader.dataset)} images; confidence {settings.test_conf:g}, "
        f"NMS {settings.nmsthre:g}, precision {args.precision}, batch {args.batch_size}"
    )
    report = report_dataset(None, loader.dataset)
    print(report.summary())
    report.check()
    try:
        result = evaluate(
            build_predict(loaded.detector, args.precision),
            loader,
            loader.dataset.ground_truth_json(),
            confidence=settings.test_conf,
            nms_iou=settings.nmsthre,
            on_batch=_progress(len(loader.dataset)),
        )
    finally:
        loader.close()
    print(summary(result))
    if args.json is not None:
        facts = {**result.as_json(), "settings": _settings(experiment, args), "machine": _machine()}
        write_text(Path(args.json), json.dumps(facts, indent=2) + "\n")
        print(f"written: {args.json}")


def _checkpoint_path(args: argparse.Namespace, asked: Experiment | None) -> Path:
    if args.ckpt is not None:
        return Path(args.ckpt)
    if asked is None:
        raise UsageError("no checkpoint given; expected -c FILE (or -n, -f for the best one of an earlier training).")
    chosen = apply_arguments(asked, args)
    return Path(chosen.output_dir) / chosen.exp_name / "best_ckpt.pth"


def _experiment(described: Experiment, args: argparse.Namespace) -> Experiment:
    """Return the checkpoint's experiment with the options applied; the network itself is fixed by the weights."""
    experiment = apply_arguments(described, args)
    given = {"eval.test_conf": args.conf, "eval.nmsthre": args.nms, "eval.test_size": args.tsize}
    fields = {key: str(value) for key, value in given.items() if value is not None}
    experiment = apply_fields(experiment, fields)
    if experiment.model != described.model:
        raise UsageError(
            f"the overrides ask for {experiment.model}, the checkpoint holds {described.model}. "
            "Leave overrides of the model out; the weights decide."
        )
    return experiment


def _loader(experiment: Experiment, loaded: LoadedModel, batch_size: int) -> ValLoader:
    """Return the images, labelled with the class indices of the model.

    Raises:
        ModelFileError: When the data has classes that the model does not predict.
    """
    from yolox.data.datamodule import build_val_loader, find_dataset

    print(find_dataset(experiment.data)[1])
    size = experiment.eval.test_size
    loader = build_val_loader(experiment.data, batch_size=batch_size, test_size=size)
    ours, theirs = loaded.class_names, loader.dataset.class_names
    if ours == theirs:
        return loader
    try:
        return build_val_loader(experiment.data, batch_size=batch_size, test_size=size, class_names=ours)
    except DataError as error:
        if not loaded.has_own_names and len(ours) == len(theirs):
            print(f"the checkpoint names no classes; its {len(ours)} classes are taken in the order of the data set")
            return loader
        raise ModelFileError(
            f"the checkpoint predicts {len(ours)} classes ({_few(ours)}), the data set has {len(theirs)} "
            f"({_few(theirs)}). Give the data set that the model was trained for (--data_dir), or fine-tune it: "
            "python -m yolox.tools.train -c."
        ) from error


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _progress(num_images: int) -> Callable[[int], None]:
    """Return a callback that keeps one line of the terminal up to date, or logs every ten seconds without one."""
    live = sys.stderr.isatty()
    started = shown = time.monotonic()

    def show(done: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if not live and now - shown < 10.0:
            return
        shown = now
        left = (now - started) / done * (num_images - done)
        end = "\n" if not live or done == num_images else ""
        start = "\r" if live else ""
        print(f"{start}{done}/{num_images} images, {left:.0f} s left ", end=end, file=sys.stderr, flush=True)

    return show


def _settings(experiment: Experiment, args: argparse.Namespace) -> dict[str, Any]:
    return {
        "checkpoint": args.ckpt,
        "exp_name": experiment.exp_name,
        "confidence": experiment.eval.test_conf,
        "nms": experiment.eval.nmsthre,
        "test_size": list(experiment.eval.test_size),
        "precision": args.precision,
        "batch_size": args.batch_size,
    }


def _machine() -> dict[str, Any]:
    import platform

    import torch

    from yolox.cpu.machine import read_machine

    return {
        **read_machine().as_dict(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


if __name__ == "__main__":
    sys.exit(main())
