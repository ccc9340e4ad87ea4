"""``python -m yolox.tools.kernels``: what computes each layer of a network in training, and why."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from yolox.errors import UsageError
from yolox.precision_names import eval_precision
from yolox.tables import text_table
from yolox.tools.arguments import (
    ToolParser,
    add_json,
    add_model_arguments,
    asked_experiment,
    keep_stdout_for_json,
    positive_int,
    run_tool,
    write_json,
)

if TYPE_CHECKING:
    from yolox.kernels.training.choose import Row
    from yolox.kernels.training.repeat import ProgramRow


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit code."""
    return run_tool(lambda: _run(build_parser().parse(argv)))


def build_parser() -> ToolParser:
    """Return the parser of the command line."""
    parser = ToolParser("kernels", "Print what computes each layer of a network in training on this machine, and why.")
    add_model_arguments(parser, "checkpoint, instead of -n or -f")
    parser.add_argument("--precision", type=eval_precision, default="32", help="32 or bf16, as for a training (32)")
    parser.add_argument("-b", "--batch-size", type=positive_int, default=2, help="images of the step (%(default)s)")
    parser.add_argument("--tsize", type=positive_int, default=64, help="side of the images (%(default)s)")
    add_json(parser, "the table")
    return parser


def _run(args: argparse.Namespace) -> None:
    if args.tsize % 32:
        raise UsageError(f"--tsize {args.tsize}; expected a multiple of 32.")
    with keep_stdout_for_json(args.json) as machines:
        rows, repeated = _rows(args, in_bf16=args.precision == "bf16")
        print(text_table(("layer", "kernel", "reason"), rows, left=(0, 1, 2)))
        ours = sum(row.kernel != "PyTorch" for row in rows)
        deferred = sum("readers normalise" in row.kernel for row in rows)
        print(f"{ours} of {len(rows)} lines with kernels, {deferred} deferred")
        for row in repeated:
            calls = f"{row.kernels} calls of kernels, {row.operators} of PyTorch's operators"
            what = f"repeated as two programs: {calls}; {row.memory / 2**20:.1f} MB at this size"
            print(f"{row.part or 'a step'} is {f'not repeated: {row.reason}' if row.reason else what}")
        facts: dict[str, object] = {"layers": [row._asdict() for row in rows], "with_kernels": ours}
        facts |= {"deferred": deferred, "programs": [row._asdict() for row in repeated]}
        write_json(facts, args.json, machines)


def _rows(args: argparse.Namespace, *, in_bf16: bool) -> tuple[list[Row], list[ProgramRow]]:
    import torch

    from yolox.checkpoint import load_model
    from yolox.kernels.library import SWITCH, kernels
    from yolox.kernels.training.acceleration import accelerate, programs, table
    from yolox.kernels.training.capture import tensors_in
    from yolox.models.detector import build_detector

    if kernels() is None:
        raise UsageError(f"there are no compiled kernels here, so PyTorch computes every layer. Unset {SWITCH}=0.")
    asked = asked_experiment(args)
    if args.ckpt is not None:
        detector = load_model(args.ckpt, asked).detector
    elif asked is not None:
        detector = build_detector(asked.model)
    else:
        raise UsageError("no network named; expected -n NAME, -f FILE or -c FILE.")
    network = accelerate(detector.train().to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    images = torch.zeros(args.batch_size, 3, args.tsize, args.tsize, dtype=torch.uint8)
    for _ in range(2):  # the second step is recorded
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
            found = network(images.contiguous(memory_format=torch.channels_last))
        sum(logits.float().sum() for logits in tensors_in(found)).backward()  # type: ignore[union-attr]
    return table(network), programs(network)


if __name__ == "__main__":
    sys.exit(main())
