"""``yolox serve MODEL``: answer predictions over HTTP, on this machine alone unless another address is given."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TextIO

from yolox.precision_names import eval_precision
from yolox.tools.arguments import (
    add_json,
    keep_stdout_for_json,
    positive_int,
    prepare_cpu,
    ranged,
    run_tool,
)
from yolox.tools.parser import ToolParser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit code."""
    return run_tool(lambda: _run(build_parser().parse(argv)))


def build_parser() -> ToolParser:
    """Return the parser of the command line."""
    parser = ToolParser(
        "serve",
        "Answer predictions over HTTP: POST the bytes of an image to /predict; /healthz and /metrics say how it goes.",
    )
    parser.add_argument("model", help="checkpoint, published name, deployed folder, ONNX or OpenVINO file")
    parser.add_argument("--trust", action="store_true", help="load a deployed model even if it is a program")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s: this machine alone)")
    parser.add_argument(
        "--port", type=ranged("--port", int, 0, 65535), default=8000, help="(%(default)s); 0 takes a free one"
    )
    parser.add_argument(
        "-b", "--batch-size", type=positive_int, default=8, help="images at once, at most (%(default)s)"
    )
    parser.add_argument(
        "--max_wait_ms",
        type=ranged("--max_wait_ms", float, 0, 60_000),
        default=2.0,
        help="an image waits so long for others (%(default)s)",
    )
    parser.add_argument("--queue_size", type=positive_int, default=64, help="images that may wait (%(default)s)")
    parser.add_argument(
        "--max_mb",
        type=ranged("--max_mb", float, 0.001, 10_000),
        default=20.0,
        help="size of a request in MB (%(default)s)",
    )
    parser.add_argument("--precision", type=eval_precision, default="32", help="of a checkpoint: 32 or bf16 (32)")
    parser.add_argument("--tsize", type=positive_int, help="side of a checkpoint's square input (default: test_size)")
    add_json(parser, "the address")
    return parser


def _run(args: argparse.Namespace) -> None:
    with keep_stdout_for_json(args.json) as machines:
        _serve(args, machines)


def _serve(args: argparse.Namespace, machines: TextIO) -> None:
    from yolox.prediction.models import is_deployed, load_predictor
    from yolox.serve.server import serve
    from yolox.serve.service import Limits

    print(prepare_cpu(with_torch=not is_deployed(args.model)), file=sys.stderr)
    predictor = load_predictor(args.model, precision=args.precision, input_size=args.tsize, trust=args.trust)
    limits = Limits(
        batch_size=args.batch_size,
        max_wait_ms=args.max_wait_ms,
        queue_size=args.queue_size,
        max_bytes=round(1e6 * args.max_mb),
    )
    print(f"model: {predictor.source}")

    def ready(address: str) -> None:
        print(f"listening: {address}/predict (try: curl --data-binary @IMAGE {address}/predict)", flush=True)
        if args.json:
            facts = {"address": address, "model": args.model, "method": predictor.method}
            print(json.dumps(facts), file=machines, flush=True)  # one line, for who waits for it

    serve(predictor, args.host, args.port, limits, ready)


if __name__ == "__main__":
    sys.exit(main())
