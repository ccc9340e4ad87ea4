"""``python -m yolox.tools.demo``: `predict` with the words of the official tool (image, video, webcam)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from yolox.errors import UsageError
from yolox.tools.arguments import add_model_arguments, ranged, run_tool
from yolox.tools.parser import ToolParser
from yolox.tools.predict import add_prediction_options, look


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit code."""
    return run_tool(lambda: _run(build_parser().parse(argv)))


def build_parser() -> ToolParser:
    """Return the parser of the command line."""
    parser = ToolParser("demo", "Find objects in images, a video or the pictures of a camera.")
    parser.add_argument("kind", choices=("image", "video", "webcam"), help="what to look at")
    add_model_arguments(parser, "checkpoint, published name (yolox_nano), deployed folder, ONNX or OpenVINO file")
    parser.add_argument("--path", help="image, folder of images (searched with its sub-folders), video or address")
    parser.add_argument("--camid", type=ranged("--camid", int, 0), default=0, help="number of the camera (%(default)s)")
    add_prediction_options(parser)
    parser.set_defaults(cluster=None)
    return parser


def _run(args: argparse.Namespace) -> None:
    if args.kind != "webcam" and args.path is None:
        raise UsageError(f"no --path given; expected the {args.kind} to look at.")
    look(args, args.camid if args.kind == "webcam" else args.path, as_video=args.kind == "video")


if __name__ == "__main__":
    sys.exit(main())
