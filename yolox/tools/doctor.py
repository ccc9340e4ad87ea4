"""``python -m yolox.tools.doctor``: look for everything that is wrong with a data set, without training."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from yolox.errors import DataError, printable
from yolox.tools.arguments import (
    ToolParser,
    add_json,
    keep_stdout_for_json,
    probability,
    ranged,
    report_progress,
    run_tool,
    write_json,
)

if TYPE_CHECKING:
    from yolox.data.coco_dataset import CocoDataset
    from yolox.data.dataset_paths import DatasetPaths
    from yolox.data.formats.description import Finding
    from yolox.data.report import DatasetReport

_PATHS = ("train_ann", "val_ann", "train_images", "val_images")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit code: 0, or 3 where an error was found (with --strict, a warning)."""
    return run_tool(lambda: _run(build_parser().parse(argv)))


def build_parser() -> ToolParser:
    """Return the parser of the command line."""
    parser = ToolParser("doctor", "Look for everything that is wrong with a data set. Nothing in it is changed.")
    parser.add_argument("data", nargs="?", metavar="DATA", help="folder or data.yaml; default: as for a training")
    for name in _PATHS:
        parser.add_argument(f"--{name}", metavar="PATH", help="as the field of that name in a training")
    parser.add_argument("--val_fraction", type=probability, default=0.0, metavar="SHARE", help="as for a training")
    parser.add_argument(
        "--max_labels",
        type=ranged("--max_labels", int, 1, 100_000),
        default=120,
        metavar="N",
        help="as for a training (%(default)s)",
    )
    add_json(parser, "the findings", to_file=True)
    parser.add_argument(
        "--output_dir", default="YOLOX_outputs/doctor", metavar="DIR", help="the worst images, drawn (%(default)s)"
    )
    parser.add_argument(
        "--num_images",
        type=ranged("--num_images", int, 0),
        default=9,
        metavar="N",
        help="how many of them at most (%(default)s)",
    )
    parser.add_argument("--quick", action="store_true", help="read labels and headers only; decode no image")
    parser.add_argument("--strict", action="store_true", help="exit with 3 for warnings too")
    return parser


def _run(args: argparse.Namespace) -> int:
    with keep_stdout_for_json(args.json) as machines:
        return _look(args, machines)


def _look(args: argparse.Namespace, machines: TextIO) -> int:
    from yolox.data.dataset_paths import default_data_dir
    from yolox.files import check_outputs, mark_inputs

    folder, reason = default_data_dir(args.data)
    mark_inputs(folder.parent if folder.is_file() else folder, *(getattr(args, name) for name in _PATHS))
    check_outputs(None if args.json == "-" else args.json, folder=args.output_dir)
    with _only_errors_logged():
        report, findings = _examine(args, folder)
    print(printable(reason))
    if report is not None:
        print(report.summary())
    print(_table(findings))
    write_json(_facts(folder, report, findings), args.json, machines)
    drawn = _draw(args, report, findings)
    if drawn:
        print(f"drawn: {drawn} images in {args.output_dir}")
    wanted = ("error", "warning") if args.strict else ("error",)
    return DataError.exit_code if any(finding.severity in wanted for finding in findings) else 0


@contextmanager
def _only_errors_logged() -> Iterator[None]:
    """Keep the readers silent: what they log is in the table."""
    logger = logging.getLogger("yolox.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _examine(args: argparse.Namespace, folder: Path) -> tuple[DatasetReport | None, list[Finding]]:
    """Return the report of what could be read, and all findings, worst first."""
    from yolox.data.dataset_paths import resolve_dataset
    from yolox.data.formats.description import Finding
    from yolox.data.inspection import inspect_images
    from yolox.data.report import report_dataset

    try:
        given = {name: getattr(args, name) for name in _PATHS}
        paths = resolve_dataset(folder, **given, val_fraction=args.val_fraction)
    except DataError as error:
        return None, [Finding("error", "labels", str(error))]
    train, val, findings = _read(paths)
    if train is None and val is None:
        return None, findings
    report = report_dataset(train, val, max_labels=args.max_labels, thorough=True)
    findings += report.findings
    if not args.quick:
        findings += inspect_images(report.splits, report_progress(10.0))
    rank = ("error", "warning", "note").index
    return report, sorted(findings, key=lambda finding: rank(finding.severity))


def _read(paths: DatasetPaths) -> tuple[CocoDataset | None, CocoDataset | None, list[Finding]]:
    """Return the splits that can be read, and why another cannot."""
    from yolox.data.dataset_paths import load_split
    from yolox.data.formats.description import Finding

    train: CocoDataset | None = None
    val: CocoDataset | None = None
    findings: list[Finding] = []
    try:
        train = load_split(paths.require("train"))
    except DataError as error:
        findings.append(Finding("error", "no-train-split" if paths.train is None else "labels", str(error)))
    try:
        val = load_split(paths.require("val"), None if train is None else train.categories)
    except DataError as error:
        findings.append(Finding("error", "no-val-split" if paths.val is None else "labels", str(error)))
    return train, val, findings


def _table(findings: Sequence[Finding]) -> str:
    from yolox.tables import text_table

    if not findings:
        return "nothing wrong was found"
    rows = [[finding.severity, str(finding.count), finding.code, printable(str(finding))] for finding in findings]
    return text_table(["severity", "count", "code", "finding"], rows, left=(0, 2, 3))


def _facts(folder: Path, report: DatasetReport | None, findings: Sequence[Finding]) -> dict[str, Any]:
    from yolox.data.report import class_counts

    splits = {} if report is None else report.splits
    return {
        "data": printable(str(folder)),
        "splits": {
            name: {
                "source": printable(data.source),
                "images": len(data),
                "images_without_boxes": len(data) - len(data.labelled()),
                "crowd_regions": int(data.crowd.sum()),
                "boxes": dict(zip(data.class_names, class_counts(data).tolist(), strict=True)),
            }
            for name, data in splits.items()
        },
        "findings": [finding.as_dict() for finding in findings],
    }


def _draw(args: argparse.Namespace, report: DatasetReport | None, findings: Sequence[Finding]) -> int:
    """Draw images that findings name with their boxes, worst first; return how many."""
    if report is None or args.num_images < 1:
        return 0
    named = {name: (data, i) for data in report.splits.values() for i in range(len(data)) for name in _names(data, i)}
    chosen: dict[tuple[int, int], tuple[str, CocoDataset]] = {}
    for finding in findings:
        for example in finding.examples:
            data, index = named.get(example.split(" ")[0], named.get(example, (None, 0)))
            if data is not None and len(chosen) < args.num_images:
                chosen.setdefault((id(data), index), (finding.code, data))
    done = 0
    for (_, index), (code, data) in chosen.items():
        done += _draw_one(Path(args.output_dir), f"{done + 1:02d}_{code}", data, index)
    return done


def _names(data: CocoDataset, index: int) -> tuple[str, str]:
    """Return the names by which a finding may mention an image."""
    name = printable(data.file_name(index), newlines=False)
    return name, name.rpartition("/")[2]


def _draw_one(folder: Path, prefix: str, data: CocoDataset, index: int) -> bool:
    """Write an image with its boxes; return whether it could be read."""
    import cv2
    import numpy as np

    from yolox.data.image_files import read_image
    from yolox.data.image_ops import resize
    from yolox.files import atomic_path, make_output_dir
    from yolox.structures import Detections
    from yolox.visualize import draw_detections

    size = data.size(index)
    image = read_image(data.path(index), size)
    if image is None:
        return False
    boxes, labels = data.objects(index)
    found = Detections(boxes, np.ones(len(labels), np.float32), labels)
    picture = draw_detections(resize(image, size), found, data.class_names, show_scores=False)
    target = make_output_dir(folder) / f"{prefix}_{Path(data.file_name(index)).stem}.jpg"
    with atomic_path(target) as temporary:
        temporary.write_bytes(cv2.imencode(".jpg", picture)[1].tobytes())
    return True


if __name__ == "__main__":
    sys.exit(main())
