"""``python -m yolox.tools.eval``: COCO AP and speed of a model on a data set."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from yolox.config import Experiment, apply_fields
from yolox.errors import DataError, ModelFileError, UsageError
from yolox.precision_names import eval_precision
from yolox.tools.arguments import (
    MULTI_LABEL,
    ToolParser,
    add_data_arguments,
    add_model_arguments,
    add_overrides,
    apply_arguments,
    asked_experiment,
    keep_stdout_for_json,
    positive_int,
    prepare_cpu,
    probability,
    run_tool,
)

if TYPE_CHECKING:
    from yolox.data.loader import ValLoader
    from yolox.evaluation.loop import EvaluationResult, Predict


@dataclass(frozen=True)
class Subject:
    """What is evaluated.

    Args:
        predict: The network.
        class_names: In the order of its classes.
        has_own_names: Whether the model itself names its classes.
        experiment: With the thresholds and the input size of this evaluation.
        source: One line: what it is.
    """

    predict: Predict
    class_names: tuple[str, ...]
    has_own_names: bool
    experiment: Experiment
    source: str


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run_tool(lambda: run(build_parser().parse(words), words))


def build_parser() -> ToolParser:
    """Return the parser of the command line."""
    parser = ToolParser("eval", "Evaluate a model: COCO AP, AP and AR of each class, milliseconds per image.")
    what = "checkpoint, published name, deployed folder or ONNX file. Default: best_ckpt.pth of -n, -f or -expn"
    add_model_arguments(parser, what)
    add_data_arguments(parser, batch_size=16)
    parser.add_argument("--num_processes", type=positive_int, default=1, metavar="N", help="share the images (1)")
    parser.add_argument("--trust", action="store_true", help="load a deployed model even if it is a program")
    parser.add_argument("--conf", type=probability, help="lowest score (default: test_conf, 0.01)")
    parser.add_argument("--nms", type=probability, help="IoU of non-maximum suppression (default: nmsthre, 0.65)")
    parser.add_argument("--multi_label", action="store_true", help=MULTI_LABEL)
    parser.add_argument("--tsize", type=positive_int, help="side of the square input (default: test_size)")
    parser.add_argument("--precision", type=eval_precision, default="32", help="of a checkpoint: 32 or bf16 (32)")
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="also write AP, AP50, ..., times and machine to FILE; bare: to stdout, and all else to stderr",
    )
    parser.add_argument("--detections", metavar="FILE.json", help="also write what was found as COCO result rows")
    add_overrides(parser)
    return parser


def run(args: argparse.Namespace, words: Sequence[str]) -> EvaluationResult:
    """Evaluate what the options ask for, print it, and return it.

    Args:
        args: What `build_parser` made of ``words``.
        words: The command line; other processes get it as well.
    """
    with keep_stdout_for_json(args.json == "-") as machines:
        return _evaluate(args, words, machines)


def _evaluate(args: argparse.Namespace, words: Sequence[str], machines: TextIO) -> EvaluationResult:
    from yolox.data.report import report_dataset
    from yolox.evaluation.coco_metric import coco_results
    from yolox.evaluation.loop import merge_shares, predict_share
    from yolox.evaluation.summary import summary
    from yolox.files import check_outputs, refuse_inputs, write_text
    from yolox.tools.eval_processes import predict_in_processes

    print(prepare_cpu())
    target = None if args.json in (None, "-") else Path(args.json)
    rows_file = None if args.detections is None else Path(args.detections)
    check_outputs(target, rows_file)
    subject = load_subject(args)
    settings = subject.experiment.eval
    loader = open_loader(subject, args.batch_size)
    refuse_inputs(target, rows_file)  # the data set is known now
    print(f"model: {subject.source}")
    print(
        f"data: {loader.dataset.source}, {len(loader.dataset)} images; confidence {settings.test_conf:g}, "
        f"NMS {settings.nmsthre:g}, precision {args.precision}, batch {args.batch_size}"
    )
    report = report_dataset(None, loader.dataset)
    print(report.summary())
    report.check()
    progress = _progress(len(loader.dataset))
    thresholds = {"confidence": settings.test_conf, "nms_iou": settings.nmsthre, "multi_label": args.multi_label}
    try:
        if args.num_processes > 1:
            shares = predict_in_processes(words, args.num_processes, progress)
        else:
            shares = [predict_share(subject.predict, loader, **thresholds, on_batch=progress)]
    finally:
        loader.close()
    truth = loader.dataset.ground_truth_json()
    result = merge_shares(shares, truth)
    print(summary(result))
    if rows_file is not None:
        category_ids = sorted(int(category["id"]) for category in truth["categories"])
        write_text(rows_file, json.dumps(list(coco_results(result.detections, category_ids))))
        print(f"written: {rows_file}")
    if args.json is not None:
        facts = {**result.as_json(), "settings": _settings(subject.experiment, args), "machine": _machine()}
        text = json.dumps(facts, indent=2) + "\n"
        if target is None:
            machines.write(text)
        else:
            write_text(target, text)
            print(f"written: {target}")
    return result


def load_subject(args: argparse.Namespace) -> Subject:
    """Return the model that the options name.

    Raises:
        UsageError: When none is named, or its size is asked to change where that cannot be.
        ModelFileError: When it cannot be read.
    """
    from yolox.files import mark_inputs
    from yolox.prediction.models import is_deployed

    asked = asked_experiment(args)
    checkpoint = _checkpoint_path(args, asked)
    mark_inputs(checkpoint, args.exp_file)
    if is_deployed(checkpoint):
        return _deployed(checkpoint, args, asked)
    from yolox.checkpoint import load_model
    from yolox.evaluation.predictor import build_predict
    from yolox.models.detector import summarize

    loaded = load_model(checkpoint, asked)
    experiment = _experiment(loaded.experiment, args)
    source = f"{loaded.source}; {summarize(experiment.model, experiment.eval.test_size)}"
    predict = build_predict(loaded.detector, args.precision)
    return Subject(predict, loaded.class_names, loaded.has_own_names, experiment, source)


def _deployed(path: Path, args: argparse.Namespace, asked: Experiment | None) -> Subject:
    import torch

    from yolox.prediction.models import load_predictor

    if args.tsize is not None:
        raise UsageError("--tsize cannot change a deployed model, whose input size is fixed. Leave it out.")
    predictor = load_predictor(path, trust=args.trust)
    experiment = _experiment(asked or Experiment(predictor.name), args)
    experiment = replace(experiment, eval=replace(experiment.eval, test_size=predictor.input_size))

    def predict(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        boxes, scores = predictor.run_batch(images.numpy())
        return torch.as_tensor(boxes), torch.as_tensor(scores)

    return Subject(predict, predictor.class_names, bool(predictor.class_names), experiment, predictor.source)


def _checkpoint_path(args: argparse.Namespace, asked: Experiment | None) -> Path:
    if args.ckpt is not None:
        return Path(args.ckpt)
    if asked is None:
        raise UsageError("no checkpoint given; expected -c FILE (or -n, -f for the best one of an earlier training).")
    chosen = apply_arguments(asked, args)
    best, latest = (Path(chosen.output_dir) / chosen.exp_name / f"{name}_ckpt.pth" for name in ("best", "latest"))
    if latest.is_file() and not best.is_file():
        print(f"note: the run in '{best.parent}' has no best checkpoint, since no AP was measured; its latest is taken")
        return latest
    return best


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


def open_loader(subject: Subject, batch_size: int, share: tuple[int, int] = (0, 1)) -> ValLoader:
    """Return the images, labelled with the class indices of the model.

    Args:
        subject: The model.
        batch_size: Images per batch.
        share: This process and the number of processes.

    Raises:
        ModelFileError: When the data has classes that the model does not predict.
    """
    from yolox.data.datamodule import build_val_loader, find_dataset

    config, size = subject.experiment.data, subject.experiment.eval.test_size
    print(find_dataset(config)[1])
    loader = build_val_loader(config, batch_size=batch_size, test_size=size, share=share)
    ours, theirs = subject.class_names, loader.dataset.class_names
    if ours == theirs:
        return loader
    try:
        return build_val_loader(config, batch_size=batch_size, test_size=size, class_names=ours, share=share)
    except DataError as error:
        if not subject.has_own_names and len(ours) == len(theirs):
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
        "multi_label": args.multi_label,
        "test_size": list(experiment.eval.test_size),
        "precision": args.precision,
        "batch_size": args.batch_size,
        "num_processes": args.num_processes,
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
