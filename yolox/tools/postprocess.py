"""``yolox postprocess``: COCO AP of what a foreign runtime made of `preprocess`'s files, or of COCO results."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolox.errors import DataError
from yolox.structures import Detections, Size
from yolox.tools.arguments import MULTI_LABEL, add_json, keep_stdout_for_json, probability, run_tool, write_json
from yolox.tools.parser import ToolParser
from yolox.tools.preprocess import INDEX, TRUTH

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit code."""
    return run_tool(lambda: _run(build_parser().parse(argv)))


def build_parser() -> ToolParser:
    """Return the parser of the command line."""
    parser = ToolParser(
        "postprocess",
        "Decode, suppress and evaluate what a foreign runtime found: for the image 7, 7.bin or 7_0.bin (float32 "
        "[A, 5 + C], as exports give it) or 7_0.bin and 7_1.bin (boxes [A, 4] xyxy and scores [A, C]).",
    )
    parser.add_argument("folder", help="what 'yolox preprocess' wrote, or a COCO annotation file for --results FILE")
    parser.add_argument("--results", required=True, metavar="PATH", help="folder of .bin files, or a COCO results file")
    parser.add_argument("--conf", type=probability, default=0.01, help="lowest score (%(default)s)")
    parser.add_argument("--nms", type=probability, default=0.65, help="IoU of the suppression (%(default)s)")
    parser.add_argument("--multi_label", action="store_true", help=MULTI_LABEL)
    add_json(parser, "the metrics", to_file=True)
    return parser


def _run(args: argparse.Namespace) -> None:
    from yolox.evaluation.loop import Share, merge_shares
    from yolox.evaluation.summary import summary
    from yolox.files import mark_inputs, refuse_inputs

    folder, results = Path(args.folder), Path(args.results)
    mark_inputs(folder, results)
    target = None if args.json in (None, "-") else Path(args.json)
    refuse_inputs(target)
    truth = _read_json(folder / TRUTH if folder.is_dir() else folder, "images")
    with keep_stdout_for_json(args.json) as machines:
        found = _from_rows(results, truth) if results.is_file() else _from_binaries(folder, results, args)
        result = merge_shares([Share(found)], truth)
        print(summary(result))
        write_json(result.as_json(), args.json, machines)


def _read_json(path: Path, key: str | None) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"'{path}' cannot be read as JSON: {error}. Give what 'yolox preprocess' wrote.") from error
    if key is not None and not (isinstance(content, dict) and key in content):
        raise DataError(f"'{path}' has no '{key}'; expected a COCO annotation file or the index of 'yolox preprocess'.")
    return content


def _from_binaries(folder: Path, results: Path, args: argparse.Namespace) -> dict[int, Detections]:
    """Return the detections in the files of a foreign runtime, by image id, in pixels of the images."""
    from yolox.evaluation.postprocess import postprocess, rescale
    from yolox.prediction.official_output import boxes_and_scores

    if not results.is_dir():
        raise DataError(
            f"--results '{results}' does not exist; expected a folder of .bin files or a COCO results file."
        )
    index = _read_json(folder / INDEX, "images")
    size, num_classes = Size(*index["shape"][2:]), len(index["class_names"])
    found = {}
    for image in index["images"]:
        outputs = _outputs(results, str(image["id"]), size, num_classes)
        boxes, scores = boxes_and_scores(outputs, size, results)
        (one,) = postprocess(boxes, scores, confidence=args.conf, nms_iou=args.nms, multi_label=args.multi_label)
        found[int(image["id"])] = rescale(one, Size(image["height"], image["width"]), size)
    return found


def _outputs(results: Path, name: str, size: Size, num_classes: int) -> list[NDArray[np.float32]]:
    """Return the arrays of one image with a batch axis."""
    import numpy as np

    anchors = sum((size.height // stride) * (size.width // stride) for stride in (8, 16, 32))
    paths = [path for path in (results / f"{name}_0.bin", results / f"{name}_1.bin") if path.is_file()]
    paths = paths or [results / f"{name}.bin"]
    widths = (4, num_classes) if len(paths) == 2 else (5 + num_classes,)
    arrays = []
    for path, width in zip(paths, widths, strict=True):
        try:
            values = np.fromfile(path, np.float32)
        except OSError as error:
            raise DataError(f"'{path}' cannot be read: {error.strerror}. Every image needs its output.") from error
        if values.size != anchors * width:
            raise DataError(
                f"'{path}' holds {values.size} float32 values; expected {anchors} x {width} for an input of "
                f"{size.height}x{size.width} and {num_classes} classes."
            )
        arrays.append(values.reshape(1, anchors, width))
    return arrays


def _from_rows(results: Path, truth: Mapping[str, Any]) -> dict[int, Detections]:
    """Return the detections of a COCO results file: rows of image_id, category_id, bbox and score."""
    import numpy as np

    rows = _read_json(results, None)
    labels = {int(item["id"]): label for label, item in enumerate(sorted(truth["categories"], key=_id))}
    by_image: dict[int, list[tuple[float, int, list[float]]]] = {int(image["id"]): [] for image in truth["images"]}
    try:
        for row in rows:
            left, top, width, height = (float(value) for value in row["bbox"])
            box = [left, top, left + width, top + height]
            by_image.setdefault(int(row["image_id"]), []).append(
                (float(row["score"]), labels[int(row["category_id"])], box)
            )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"'{results}' holds a row that is no COCO result ({error!r}); expected image_id, category_id, bbox, score."
        ) from error
    found = {}
    for image_id, items in by_image.items():
        items.sort(key=lambda item: -item[0])
        found[image_id] = Detections(
            np.array([box for _, _, box in items], np.float32).reshape(-1, 4),
            np.array([score for score, _, _ in items], np.float32),
            np.array([label for _, label, _ in items], np.int64),
        )
    return found


def _id(category: Mapping[str, Any]) -> int:
    return int(category["id"])


if __name__ == "__main__":
    sys.exit(main())
