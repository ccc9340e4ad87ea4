"""``python -m benchmarks.engines``: YOLOX nano, tiny and s in our engine and in those of others, by turns.

The run is cut into pieces: preparing an engine, choosing its settings, one round of one engine. What is finished lies
in a JSON file, and a run that was stopped goes on from there.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.engines.pieces_file import Pieces
from benchmarks.engines.plan import BATCHES, Plan, pieces_of
from benchmarks.engines.report import ABOUT, part_of
from benchmarks.protocol import QUICK_RESULTS, RESULTS, write_results
from yolox.files import make_output_dir

MODELS = ("nano", "tiny", "s")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    args = _parser().parse_args(argv)
    end = time.monotonic() + (args.seconds or float("inf"))
    plan = Plan(make_output_dir(args.work), len(os.sched_getaffinity(0)), args.engine or (), args.quick)
    parts = [(model, batch) for model in (["quick"] if args.quick else args.model) for batch in args.batch]
    done = {model: Pieces(make_output_dir(args.work / model) / "pieces.json") for model, _ in parts}
    for stage in ("prepare", "measure") if args.stage == "all" else (args.stage,):
        for model, batch in parts:
            for piece in pieces_of(plan, model, batch, stage):
                if time.monotonic() > end:
                    print("time is up: the same command goes on from here", flush=True)
                    return 0
                done[model].run(piece)
    if args.stage == "prepare":
        return 0
    order = [f"{model}-b{batch}" for model in ("quick", *MODELS) for batch in BATCHES]
    folder = make_output_dir(args.out or (QUICK_RESULTS if args.quick else RESULTS))
    for model, batch in parts:
        part = part_of(plan, done[model], model, batch)
        print(f"\n{model}, batch {batch}\n\n{part.to_markdown()}\n", flush=True)
        write_results(
            folder, "engines", ABOUT, "", {f"{model}-b{batch}": (part, done[model].seconds(f"{model}/"))}, order
        )
    print(f"written: {folder / 'engines'}.json, {folder / 'engines'}.md")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=ABOUT)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=MODELS, metavar="MODEL", help="nano, tiny, s")
    parser.add_argument("--batch", nargs="+", type=int, choices=BATCHES, default=BATCHES, metavar="N", help="1, 8, 64")
    parser.add_argument("--engine", nargs="+", metavar="NAME", help="only these rows; others keep what they have")
    parser.add_argument(
        "--stage",
        choices=("prepare", "measure", "all"),
        default="all",
        help="prepare: conversion and AP, which need no quiet machine; measure: settings and times",
    )
    parser.add_argument("--seconds", type=float, metavar="S", help="start no further piece after this time")
    parser.add_argument("--quick", action="store_true", help="tiny settings: shows that it works, measures nothing")
    parser.add_argument("--work", type=Path, default=Path("YOLOX_outputs") / "engines", metavar="DIR", help="prepared")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the results (benchmarks/results)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
