"""``python -m yolox.tools.eval``: COCO AP and speed of a model on a data set."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from yolox.config import Experiment
from yolox.errors import DataError, ModelFileError, UsageError
from yolox.precision_names import eval_precision
from yolox.tables import shortened
from yolox.tools.arguments import (
    MULTI_LABEL,
    ToolParser,
    add_data_arguments,
    add_json,
    add_model_arguments,
    add_overrides,
    add_test_arguments,
    asked_experiment,
    chosen_checkpoint,
    experiment_of_test,
    keep_stdout_for_json,
    machine_facts,
    positive_int,
    prepare_cpu,
    report_progress,
    run_tool,
    write_json,
)

if TYPE_CHECKING:
    from yolox.data.coco_dataset import CocoDataset
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
    what = (
        "checkpoint, published name, deployed folder, ONNX or OpenVINO file. Default: best_ckpt.pth of -n, -f or -expn"
    )
    add_model_arguments(parser, what)
    add_data_arguments(parser, batch_size=16)
    parser.add_argument("--num_processes", type=positive_int, default=1, metavar="N", help="share the images (1)")
    parser.add_argument("--trust", action="store_true", help="load a deployed model even if it is a program")
    add_test_arguments(parser)
    parser.add_argument("--multi_label", action="store_true", help=MULTI_LABEL)
    parser.add_argument("--precision", type=eval_precision, default="32", help="of a checkpoint: 32 or bf16 (32)")
    add_json(parser, "AP, AP50, ..., times and machine", to_file=True)
    parser.add_argument("--detections", metavar="FILE.json", help="also write what was found as COCO result rows")
    parser.add_argument("--report", metavar="FILE.html", help="also draw curves, confusions and images into one page")
    add_overrides(parser)
    return parser


def run(args: argparse.Namespace, words: Sequence[str]) -> EvaluationResult:
    """Evaluate what the options ask for, print it, and return it.

    Args:
        args: What `build_parser` made of ``words``.
        words: The command line; other processes get it as well.
    """
    with keep_stdout_for_json(args.json) as machines:
        return _evaluate(args, words, machines)


def _evaluate(args: argparse.Namespace, words: Sequence[str], machines: TextIO) -> EvaluationResult:
    from yolox.data.report import report_dataset
    from yolox.evaluation.loop import merge_shares, predict_share
    from yolox.evaluation.summary import summary
    from yolox.files import check_outputs, refuse_inputs
    from yolox.tools.eval_processes import predict_in_processes

    print(prepare_cpu())
    outputs = (None if args.json == "-" else args.json, args.detections, args.report)
    check_outputs(*outputs)
    subject = load_subject(args)
    settings = subject.experiment.eval
    loader = open_loader(subject, args.batch_size)
    refuse_inputs(*outputs)  # the data set is known now
    print(f"model: {subject.source}")
    print(
        f"data: {loader.dataset.source}, {len(loader.dataset)} images; confidence {settings.test_conf:g}, "
        f"NMS {settings.nmsthre:g}, precision {args.precision}, batch {args.batch_size}"
    )
    report = report_dataset(None, loader.dataset)
    print(report.summary())
    report.check()
    show, num_images = report_progress(10.0), len(loader.dataset)

    def progress(done: int) -> None:
        show(done, num_images)

    thresholds = {"confidence": settings.test_conf, "nms_iou": settings.nmsthre, "multi_label": args.multi_label}
    try:
        if args.num_processes > 1:
            shares = predict_in_processes(words, args.num_processes, progress)
        else:
            shares = [predict_share(subject.predict, loader, **thresholds, on_batch=progress)]
    finally:
        loader.close()
    result = merge_shares(shares, loader.dataset.ground_truth_json())
    print(summary(result))
    _write(result, loader.dataset, subject, args, machines)
    return result


def _write(
    result: EvaluationResult, data: CocoDataset, subject: Subject, args: argparse.Namespace, machines: TextIO
) -> None:
    """Write the files that were asked for, and JSON to ``machines``."""
    from yolox.evaluation.coco_metric import coco_results
    from yolox.files import write_text

    if args.detections is not None:
        found = coco_results(result.detections, data.category_ids)
        rows = [row for row in found if row["category_id"] is not None]
        write_text(Path(args.detections), json.dumps(rows))
        print(f"written: {args.detections}")
    if args.report is not None:
        draw_report(Path(args.report), result, data, subject.experiment, subject.source)
    if args.json is not None:
        facts = {**result.as_json(), "settings": _settings(subject.experiment, args), "machine": machine_facts()}
        write_json(facts, args.json, machines)


def load_subject(args: argparse.Namespace) -> Subject:
    """Return the model that the options name.

    Raises:
        UsageError: When none is named, or its size is asked to change where that cannot be.
        ModelFileError: When it cannot be read.
    """
    from yolox.files import mark_inputs
    from yolox.prediction.models import is_deployed

    asked = asked_experiment(args)
    checkpoint = chosen_checkpoint(args, asked)
    mark_inputs(checkpoint, args.exp_file)
    if is_deployed(checkpoint):
        return _deployed(checkpoint, args, asked)
    from yolox.checkpoint import load_model
    from yolox.evaluation.loop import build_predict
    from yolox.models.detector import summarize

    loaded = load_model(checkpoint, asked)
    experiment = experiment_of_test(loaded.experiment, args)
    source = f"{loaded.source}; {summarize(experiment.model, experiment.eval.test_size)}"
    predict = build_predict(loaded.detector, args.precision)
    return Subject(predict, loaded.class_names, loaded.has_own_names, experiment, source)


def _deployed(path: Path, args: argparse.Namespace, asked: Experiment | None) -> Subject:
    import torch

    from yolox.prediction.models import load_predictor

    if args.tsize is not None:
        raise UsageError("--tsize cannot change a deployed model, whose input size is fixed. Leave it out.")
    predictor = load_predictor(path, trust=args.trust)
    experiment = experiment_of_test(asked or Experiment(predictor.name), args)
    experiment = replace(experiment, eval=replace(experiment.eval, test_size=predictor.input_size))
    predictor.check_thresholds(experiment.eval.test_conf, experiment.eval.nmsthre)

    def predict(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        boxes, scores = predictor.run_batch(images.numpy())
        return torch.as_tensor(boxes), torch.as_tensor(scores)

    return Subject(predict, predictor.class_names, bool(predictor.class_names), experiment, predictor.source)


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
            f"the checkpoint predicts {len(ours)} classes ({shortened(ours, 4)}), the data set has "
            f"{len(theirs)} ({shortened(theirs, 4)}). Give the data set that the model was trained for "
            "(--data_dir), or fine-tune it: python -m yolox.tools.train -c."
        ) from error


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


def draw_report(path: Path, result: EvaluationResult, data: CocoDataset, experiment: Experiment, source: str) -> None:
    """Write the report of an evaluation; what goes wrong with it is told, since the evaluation itself is done.

    Args:
        path: The HTML file.
        result: What was found and what it is worth.
        data: The images.
        experiment: With the thresholds.
        source: What was evaluated, in one line.
    """
    from yolox.cpu.machine import read_machine
    from yolox.report.document import Judged, Report, write_report

    metrics, settings = result.metrics, experiment.eval
    ms = result.times.per_image_ms()
    facts = {
        "model": source,
        "data": f"{len(data)} images: {data.source}",
        "classes": f"{len(data.class_names)}",
        "AP": f"{metrics['AP']:.4f} (AP50 {metrics['AP50']:.4f}, AP75 {metrics['AP75']:.4f})"
        if result.coco.has_labels
        else "none: the images have no labels",
        "settings": f"confidence {settings.test_conf:g}, NMS {settings.nmsthre:g}, input {settings.test_size.height} x "
        f"{settings.test_size.width}",
        "time": f"{ms['total_ms']:.1f} ms an image: network {ms['forward_ms']:.1f}, suppression {ms['nms_ms']:.1f}",
        "machine": str(read_machine()),
    }
    judged = Judged(result, data, "the model")
    try:
        write_report(path, Report(f"Evaluation of {experiment.exp_name}", facts, splits={"val": data}, judged=judged))
    except Exception as error:  # noqa: BLE001 - the evaluation is done: its figures have to be told and written
        print(f"note: {path} was not written: {type(error).__name__}: {error}", file=sys.stderr)
    else:
        print(f"written: {path}")


if __name__ == "__main__":
    sys.exit(main())
