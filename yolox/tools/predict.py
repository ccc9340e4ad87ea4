"""``yolox predict``: find objects in images, folders, videos, cameras and network streams."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolox.errors import DataError, UsageError, printable
from yolox.precision_names import eval_precision
from yolox.tools.arguments import (
    MULTI_LABEL,
    add_json,
    add_model_arguments,
    add_overrides,
    apply_arguments,
    asked_experiment,
    keep_stdout_for_json,
    positive_int,
    prepare_cpu,
    probability,
    ranged,
    run_tool,
)
from yolox.tools.parser import ToolParser

if TYPE_CHECKING:
    from yolox.prediction.models import Predictor
    from yolox.prediction.results import Result
    from yolox.prediction.run import Thresholds
    from yolox.prediction.sources import Sources

RESULT_FORMATS = ("pictures", "coco", "yolo", "csv", "crops")
_KEY_ESCAPE = 27


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit code."""
    return run_tool(lambda: _run(build_parser().parse(argv)))


def build_parser() -> ToolParser:
    """Return the parser of the command line."""
    parser = ToolParser("predict", "Find objects in images, folders, videos, cameras and network streams.")
    parser.add_argument(
        "source",
        nargs="+",
        help="image, folder, 'pattern*.jpg', list (.txt, .csv) or table (.parquet) of images, video, http(s) or rtsp "
        "address, number of a camera",
    )
    add_model_arguments(parser, "checkpoint, published name (yolox_nano), deployed folder, ONNX or OpenVINO file")
    add_prediction_options(parser)
    parser.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="share the images among the machines of a cluster: ray, auto, ray://HOST:10001, HOST:6379, spark, "
        "spark://HOST:7077, local[N]",
    )
    return parser


def add_prediction_options(parser: ToolParser) -> None:
    """Add what the tools that look at pictures share."""
    parser.add_argument("--model", metavar="DIR", help="deployed model (saved by inference_demo) instead of -c")
    parser.add_argument("--trust", action="store_true", help="load a deployed model even if it is a program")
    parser.add_argument("--save_result", "--save", action="store_true", help="write the results into a new folder")
    parser.add_argument("--output_dir", metavar="DIR", help="where to write them; implies --save_result")
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=RESULT_FORMATS,
        metavar="FORMAT",
        help=f"what to write: {', '.join(RESULT_FORMATS)} (pictures); implies --save_result",
    )
    add_json(parser, "a line for each image")
    parser.add_argument("--conf", type=probability, default=0.25, help="lowest score (%(default)s)")
    parser.add_argument("--nms", type=probability, default=0.45, help="IoU of the suppression (%(default)s)")
    parser.add_argument("--multi_label", action="store_true", help=MULTI_LABEL)
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="only these classes, by name or index")
    parser.add_argument("--track", action="store_true", help="follow objects through videos (yolox-cpu[track])")
    parser.add_argument("--tsize", type=positive_int, help="side of the square input (default: test_size)")
    parser.add_argument(
        "-b", "--batch-size", type=positive_int, help="images at once (of a checkpoint 1, of a deployed model 8)"
    )
    parser.add_argument("--precision", type=eval_precision, default="32", help="of a checkpoint: 32 or bf16 (32)")
    parser.add_argument(
        "--max_reconnects",
        type=ranged("--max_reconnects", int, 0),
        default=10,
        metavar="N",
        help="of a camera or stream (%(default)s)",
    )
    add_overrides(parser)


def _run(args: argparse.Namespace) -> None:
    # a word such as 'max_epoch 2' is taken as an override before it can be a source
    look(args, args.source[0] if len(args.source) == 1 else args.source)


def look(args: argparse.Namespace, source: Any, as_video: bool = False) -> None:
    """Predict on ``source`` and print, show and write what the options ask for; ``as_video`` opens files as videos."""
    from yolox.prediction.run import Thresholds, predict
    from yolox.prediction.sources import Sources
    from yolox.prediction.tracking import track

    with keep_stdout_for_json(args.json) as report:
        pictures = Sources(source, args.max_reconnects, as_video)
        predictor = choose_predictor(args)
        print(f"model: {predictor.source}, input {predictor.input_size.height}x{predictor.input_size.width}")
        classes = _class_indices(args.classes, predictor.class_names)
        thresholds = Thresholds(args.conf, args.nms, classes=classes, multi_label=args.multi_label)
        if args.cluster is not None:
            results = _on_cluster(args, predictor, pictures, thresholds)
        else:
            results = predict(predictor, pictures, thresholds, args.batch_size)
        _write_all(args, predictor, pictures, track(results) if args.track else results, report)


def _on_cluster(
    args: argparse.Namespace, predictor: Predictor, pictures: Sources, thresholds: Thresholds
) -> Iterable[Result]:
    """Return the results that the machines of ``--cluster`` find.

    Raises:
        UsageError: For an address of no cluster, or with ``--track``.
    """
    from yolox.prediction.cluster import predict_on_cluster
    from yolox.prediction.cluster_work import ClusterModel, Work

    if args.track:
        raise UsageError("--track follows the frames of a video, one after another; leave --cluster out.")
    model = args.model or args.ckpt
    size = predictor.input_size if predictor.method == "checkpoint" else None
    described = ClusterModel(model, args.precision, size, asked_experiment(args), args.trust)
    return predict_on_cluster(
        args.cluster,
        Work(described, thresholds, args.batch_size or predictor.usual_batch),
        pictures,
        predictor.class_names,
    )


def _write_all(
    args: argparse.Namespace, predictor: Predictor, pictures: Sources, results: Iterable[Result], report: Any
) -> None:
    from yolox.files import mark_input_files, mark_inputs
    from yolox.prediction.background import write_behind
    from yolox.prediction.writers import ResultWriter

    mark_inputs(args.ckpt, args.model, args.exp_file)
    mark_input_files(pictures.files)
    folder = _output_dir(args, predictor)
    formats = args.formats or ("pictures",)
    writer = ResultWriter(folder or Path(), formats if folder is not None else ())
    writer.check(pictures.names)
    total = 0
    shown = _shown(results)
    if folder is not None:
        shown = write_behind(shown, writer.write, 2 * predictor.usual_batch)
    with writer, closing(shown):
        for result in shown:
            total += 1
            where = result.path or result.name if result.source is None else f"{result.source} frame {result.index + 1}"
            print(f"{printable(str(where))}: {describe(result)}, {result.elapsed_ms:.1f} ms")
            if args.json:
                print(json.dumps(result.to_dict()), file=report, flush=True)
    bad = len(pictures.skipped)
    if total == 0:
        raise DataError(f"none of the {bad} images could be read; expected whole image files.")
    if bad:
        print(f"{bad} of {len(pictures)} images were skipped")
    if folder is None:
        print("no pictures were written; --save_result writes them")
    else:
        print(f"{', '.join(writer.written)}: {folder}")


def choose_predictor(args: argparse.Namespace) -> Predictor:
    """Return the predictor of ``--model`` or ``-c`` (with ``-n`` or ``-f`` where needed).

    Raises:
        UsageError: When neither or both are given.
        ModelFileError: When the model cannot be read.
    """
    from yolox.prediction.models import is_deployed, load_predictor, predictor_of_checkpoint

    if args.model is not None and args.ckpt is not None:
        raise UsageError("both --model and -c were given; expected one of them. Leave one out.")
    model = args.model or args.ckpt
    if model is None:
        raise UsageError(
            "no model given; expected -c FILE (a checkpoint, published name, deployed folder, ONNX or OpenVINO file) "
            "or --model DIR."
        )
    if args.model is not None or is_deployed(model):
        prepare_cpu(with_torch=False)
        if args.tsize is not None:
            raise UsageError("--tsize cannot change a deployed model, whose input size is fixed. Leave it out.")
        if not Path(model).exists():
            from yolox.errors import ModelFileError

            raise ModelFileError(f"'{model}' does not exist; expected the folder of a deployed model. Check --model.")
        return load_predictor(model, trust=args.trust)
    prepare_cpu()
    from dataclasses import replace

    from yolox.checkpoint import load_model

    loaded = load_model(model, asked_experiment(args))
    loaded = replace(loaded, experiment=apply_arguments(loaded.experiment, args))
    return predictor_of_checkpoint(loaded, args.precision, args.tsize)


def _output_dir(args: argparse.Namespace, predictor: Predictor) -> Path | None:
    """Return the folder of the results: the one asked for, or a new one in the official place."""
    from datetime import datetime

    if args.output_dir is not None:
        return Path(args.output_dir)
    if not (args.save_result or args.formats):
        return None
    name = args.experiment_name or predictor.name
    stamp = datetime.now().strftime("%Y_%m_%d_%H_%M_%S")
    return Path("YOLOX_outputs") / name / "vis_res" / stamp


def _class_indices(names: Sequence[str] | None, class_names: tuple[str, ...]) -> tuple[int, ...] | None:
    from yolox.errors import did_you_mean

    if names is None:
        return None
    indices = []
    for name in names:
        if name in class_names:
            indices.append(class_names.index(name))
        elif name.isdecimal() and len(name) < 10 and int(name) < len(class_names):
            indices.append(int(name))
        else:
            raise UsageError(
                f"--classes: the model knows no class '{name}'; it has {len(class_names)}, 0 to {len(class_names) - 1}."
                f"{did_you_mean(name, class_names)}"
            )
    return tuple(indices)


def describe(result: Result) -> str:
    """Return ``3 objects (2 person, 1 dog)``."""
    counts = Counter(result.boxes.names)
    listed = ", ".join(f"{number} {name}" for name, number in counts.most_common())
    total = len(result.boxes)
    return f"{total} object{'' if total == 1 else 's'}" + (f" ({listed})" if listed else "")


def _shown(results: Iterable[Result]) -> Generator[Result, None, None]:
    """Pass the results on; show videos in a window where there is one, until q, Q or Escape is pressed there."""
    window: str | None = None
    asked = False
    for result in results:
        yield result
        if result.source is None:
            continue
        if not asked:
            window, asked = _open_window(), True
        if window is not None and _wants_to_stop(window, result):
            return


def _open_window() -> str | None:
    """Return the name of a window, or None where no screen is attached or OpenCV was built without windows."""
    import os

    import cv2

    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return None
    try:
        cv2.namedWindow("yolox", cv2.WINDOW_NORMAL)
    except cv2.error:
        return None
    return "yolox"


def _wants_to_stop(window: str, result: Result) -> bool:
    import cv2

    cv2.imshow(window, result.plot())
    return cv2.waitKey(1) & 0xFF in (_KEY_ESCAPE, ord("q"), ord("Q"))


if __name__ == "__main__":
    sys.exit(main())
