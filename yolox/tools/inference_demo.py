"""``python -m yolox.tools.inference_demo``: the fastest way to run a detector here, and what it costs in AP."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolox.config import Experiment, experiment_to_dict
from yolox.errors import UsageError
from yolox.temporary_folders import TemporaryFolder
from yolox.tools.arguments import (
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
    ranged,
    run_tool,
)

if TYPE_CHECKING:
    from yolox.checkpoint import LoadedModel
    from yolox.inference.optimizer import InferenceOptimizer
    from yolox.inference.search.results import MethodResult, OptimizationReport
    from yolox.tools.inference_images import EvalImages, InferenceImages

NOTHING_BETTER = 6
"""Exit code when no method is faster than the original within ``--max_drop``; the original is kept then."""
METRICS = ("AP", "AP50")
FEW_IMAGES, MANY_IMAGES, FEW_CALIBRATION = 50, 500, 32
"""Fewer prove little: with 50 images one object that is found or not moves AP by about a hundredth."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit code."""
    return run_tool(lambda: run(build_parser().parse(argv)))


def build_parser() -> ToolParser:
    """Return the parser of the command line."""
    parser = ToolParser("inference_demo", "Measure latency, memory and AP of every way to run a checkpoint here.")
    add_model_arguments(parser, "checkpoint; alone it is enough. Default: best_ckpt.pth of -n, -f or -expn")
    add_data_arguments(parser, batch_size=64)
    add_test_arguments(parser)
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="only these methods, and the original")
    parser.add_argument("--includes", nargs="+", default=[], metavar="NAME", help="add these methods")
    parser.add_argument("--excludes", nargs="+", default=[], metavar="NAME", help="leave these methods out")
    accelerators = "openvino, native, onnxruntime, jit, inductor, none"
    parser.add_argument("--accelerator", nargs="+", metavar="NAME", help=accelerators)
    parser.add_argument("--precision", nargs="+", metavar="NAME", help="fp32, bf16, fp16, int8")
    parser.add_argument("--search_mode", default="default", help="default, all or grid (%(default)s)")
    parser.add_argument("--thread_num", type=positive_int, metavar="N", help="threads (default: one for each core)")
    parser.add_argument(
        "--max_drop",
        type=ranged("--max_drop", float, 0, 1),
        default=0.01,
        help="AP that may be lost, absolute (%(default)s)",
    )
    parser.add_argument(
        "--time_budget",
        type=ranged("--time_budget", float, 0),
        default=660.0,
        metavar="S",
        help="seconds in all (%(default)s); 0: no limit",
    )
    parser.add_argument("--num_images", type=positive_int, default=512, help="images for AP, at most (%(default)s)")
    parser.add_argument("--calib", metavar="DIR", help="pictures to calibrate int8 on (default: the training images)")
    add_json(parser, "the table", to_file=True)
    parser.add_argument("--csv", metavar="FILE", help="write the table as CSV")
    parser.add_argument("--markdown", metavar="FILE", help="write the table as Markdown")
    parser.add_argument("--plot", metavar="FILE", help="draw latency against AP (.png, .svg, .pdf)")
    parser.add_argument("--save", metavar="DIR", help="folder for the best model (default: in the output folder)")
    add_overrides(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Measure what the options ask for, print and write it, and return the exit code."""
    with keep_stdout_for_json(args.json) as args.machines:
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    from yolox.checkpoint import load_model
    from yolox.files import check_outputs, make_output_dir, mark_inputs
    from yolox.inference.methods import MethodQuery, select_methods

    query = _query(args)
    select_methods(  # a wrong name is told before anything is read
        MethodQuery(
            search_mode=query["search_mode"],
            only=query["methods"],
            accelerators=query["accelerator"],
            precisions=query["precision"],
            includes=query["includes"],
            excludes=query["excludes"],
        )
    )
    _check_files(args)
    asked = asked_experiment(args)
    print(prepare_cpu())
    checkpoint = chosen_checkpoint(args, asked)
    mark_inputs(checkpoint, args.exp_file, args.calib)
    files = [name for name in (args.json, args.csv, args.markdown, args.plot) if name != "-"]
    check_outputs(*files, folder=args.save)
    loaded = load_model(checkpoint, asked)
    experiment = experiment_of_test(loaded.experiment, args)
    output = make_output_dir(Path(experiment.output_dir) / experiment.exp_name / f"inference_b{args.batch_size}")
    print(f"model: {loaded.source}")
    with TemporaryFolder("inference-demo") as folder:
        return _measure(args, loaded, experiment, folder, output)


def _measure(args: argparse.Namespace, loaded: LoadedModel, experiment: Experiment, scratch: Path, output: Path) -> int:
    from yolox.inference.optimizer import InferenceOptimizer
    from yolox.inference.search.protocol import Limits
    from yolox.models.decoding import DecodedDetector
    from yolox.tools.detection_metric import DetectionMetric
    from yolox.tools.inference_images import read_inference_images
    from yolox.tools.inference_report import LiveProgress

    settings = experiment.eval
    limits = Limits(time_budget=args.time_budget or None, max_drop=args.max_drop)
    found = read_inference_images(
        experiment.data,
        loaded,
        settings.test_size,
        (args.num_images, limits.calibration_size),
        scratch / "images.npy",
        None if args.calib is None else Path(args.calib),
    )
    images = found.evaluation
    print("\n".join([*found.notes, f"data: {images.source}; batch {args.batch_size}"]))
    metric = None
    if images.has_labels:
        metric = DetectionMetric(images, min(max(args.batch_size, 16), 64), settings.test_conf, settings.nmsthre)
    progress = LiveProgress(METRICS[0])
    optimizer = InferenceOptimizer(output, progress.listener)
    try:
        optimizer.optimize(
            DecodedDetector(loaded.detector),
            training_data=found.calibration,
            input_sample=images.batch(args.batch_size),
            metric=metric,
            thread_num=args.thread_num,
            **_query(args),
            limits=limits,
            metadata=_metadata(loaded, experiment),
        )
    except KeyboardInterrupt:
        progress.close()
        print("stopped by the user; the finished rows:")
        _show(args, optimizer, found)
        raise
    progress.close()
    return _show(args, optimizer, found)


def _show(args: argparse.Namespace, optimizer: InferenceOptimizer, found: InferenceImages) -> int:
    """Print and write the table, name and save the best row, and return the exit code."""
    from yolox.inference.artifacts.manifest import read_manifest
    from yolox.inference.artifacts.model import copy_artifact
    from yolox.inference.artifacts.trust import needs_trust

    report, images = optimizer.report, found.evaluation
    if report.original is None or not report.original.successful:
        return 0
    best = report.best(args.max_drop if images.has_labels else None) or report.original
    table = replace(report, metric_names=METRICS)
    print(table.to_text())
    print(f"batch {args.batch_size}, {images.source}, {report.seconds:.0f} s in all")
    for line in _doubts(report, images, sum(map(len, found.calibration))):
        print(line)
    better = best.name != "original"
    if better:
        print(_praise(report, best, args.max_drop))
    else:
        print(f"no method is faster than the original within a drop of {args.max_drop:g} AP; the original is kept")
    _write_files(args, table, best)
    if best.artifact is not None:
        target = best.artifact
        if args.save is not None:
            target = Path(args.save)
            copy_artifact(best.artifact, target)
        trust = " --trust" if needs_trust(read_manifest(target)) else ""
        print(f"saved: {target}\nrun it: yolox predict IMAGE -c {target}{trust}")
    return 0 if better else NOTHING_BETTER


def _praise(report: OptimizationReport, best: MethodResult, max_drop: float) -> str:
    assert best.latency is not None
    drop, margin = report.drop(best), report.drop_margin(best)
    level = [other.name for other in report.ties(best, None if drop is None else max_drop)]
    accuracy = "its AP was not measured"
    if drop is not None:
        accuracy = f"AP drop {drop:.4f}{'' if margin is None else f' ± {margin:.4f}'} (allowed {max_drop:g})"
        if margin is not None and drop + margin > max_drop:
            accuracy += f": up to {drop + margin:.4f} is possible, more images would tell"
    return (
        f"best: {best.name}, {best.latency.median_ms:.1f} ms, {best.latency.images_per_second:.1f} images/s, "
        f"{report.speedup(best):.2f} times as fast as the original; {accuracy}"
        + (f"; not to be told from it: {', '.join(level)}" if level else "")
    )


def _doubts(report: OptimizationReport, images: EvalImages, num_calibration: int) -> list[str]:
    """Return a line for each reason why the accuracies prove little."""
    lines = []
    original = report.original
    if images.has_labels:
        if original is not None and original.metrics.get(METRICS[0]) == 0:
            lines.append(
                "the original's AP is 0, so no row can lose any: the drops prove nothing. Give a trained checkpoint "
                "and data of its classes."
            )
        if len(images) < FEW_IMAGES:
            lines.append(f"AP of {len(images)} images proves little; give {FEW_IMAGES} or more, best {MANY_IMAGES}.")
        if len({row["category_id"] for row in images.ground_truth["annotations"]}) == 1:
            lines.append("one class alone is labelled in these images: AP says nothing about the others.")
    if num_calibration < FEW_CALIBRATION and any(row.int8_share is not None for row in report):
        lines.append(f"int8 rows were calibrated on {num_calibration} images; give {FEW_CALIBRATION} or more.")
    return lines


def _write_files(args: argparse.Namespace, table: OptimizationReport, best: MethodResult) -> None:
    from yolox.files import write_text
    from yolox.tools.inference_report import draw_plot

    facts = {"best": best.name, "max_drop": args.max_drop, "batch_size": args.batch_size, "machine": machine_facts()}
    if args.json == "-":
        args.machines.write(table.to_json(**facts) + "\n")
    elif args.json is not None:
        write_text(Path(args.json), table.to_json(**facts))
    if args.csv is not None:
        write_text(Path(args.csv), table.to_csv())
    if args.markdown is not None:
        write_text(Path(args.markdown), table.to_markdown())
    if args.plot is not None:
        draw_plot(table, best, Path(args.plot))
    written = [name for name in (args.json, args.csv, args.markdown, args.plot) if name not in (None, "-")]
    if written:
        print(f"written: {', '.join(written)}")


def _query(args: argparse.Namespace) -> dict[str, Any]:
    """Return the choice of methods under the names of ``optimize``."""
    accelerators = tuple(None if name.lower() == "none" else name for name in args.accelerator or ())
    return {
        "methods": tuple(args.methods or ()),
        "includes": tuple(args.includes),
        "excludes": tuple(args.excludes),
        "accelerator": accelerators,
        "precision": tuple(args.precision or ()),
        "search_mode": args.search_mode,
    }


def _check_files(args: argparse.Namespace) -> None:
    """Find out before ten minutes of work that a result could not be written.

    Raises:
        UsageError: When a file's folder does not exist or the plot has an unknown ending.
    """
    for option in ("json", "csv", "markdown", "plot"):
        name = getattr(args, option)
        if name is not None and not Path(name).absolute().parent.is_dir():
            raise UsageError(f"--{option} {name}: the folder does not exist. Create it or choose another one.")
    if args.plot is not None and Path(args.plot).suffix not in (".png", ".svg", ".pdf"):
        raise UsageError(f"--plot {args.plot}: expected a name that ends in .png, .svg or .pdf.")


def _metadata(loaded: LoadedModel, experiment: Experiment) -> dict[str, Any]:
    from yolox.data.image_ops import PREPROCESSING

    return {
        "class_names": list(loaded.class_names),
        "input_size": list(experiment.eval.test_size),
        "preprocessing": PREPROCESSING,
        "confidence": experiment.eval.test_conf,
        "nms_iou": experiment.eval.nmsthre,
        "model": experiment.exp_name,
        "network": experiment_to_dict(loaded.experiment)["model"],
    }


if __name__ == "__main__":
    sys.exit(main())
