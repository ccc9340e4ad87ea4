"""``python -m benchmarks.wheel PYTHON``: this checkout against the wheel in the environment of another interpreter."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.protocol import ROOT, Part, Row, native_precisions, run_benchmark, summary
from benchmarks.shared_machine import open_program, save_program
from benchmarks.side_process import CommandLine, Side, measure_sides, timed_steps

ABOUT = "The wheel in an environment of its own against this checkout, which compiled its kernels, by turns."
COLUMNS = {
    "side": "{side}",
    "ms": "{ms[median]:.2f}",
    "p10–p90": "{ms[p10]:.2f}–{ms[p90]:.2f}",
    "times the checkout": "{times:.3f}",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("python", help="interpreter of the environment with the wheel and the same libraries as here")
    known, rest = parser.parse_known_args(argv)
    parts = {name: partial(part, known.python) for name, part in (("training", _training), ("native_int8", _int8))}
    return run_benchmark("wheel", ABOUT, parts, rest)


def native(settings: dict[str, Any], channel: CommandLine) -> None:
    """Run a saved 8-bit program on one image, again and again, with all threads."""
    from yolox.cpu.allocator import keep_freed_memory
    from yolox.cpu.machine import read_machine

    keep_freed_memory()
    run = open_program(Path(settings["folder"]), read_machine().num_threads)
    for _ in timed_steps(channel):
        run()


def _training(python: str, quick: bool) -> Part:
    size, rounds, steps, warmup = (64, 1, 1, 1) if quick else (416, 8, 3, 6)
    settings = {
        **{"model": "yolox_nano", "size": size, "batch_size": 2 if quick else 16},
        **{"precision": native_precisions()[-1], "as_tool": True},
    }
    with tempfile.TemporaryDirectory(prefix="benchmark-wheel-") as folder:
        sides = _sides("benchmarks.training_sides:ours", settings, python, Path(folder))
        return _part(measure_sides(sides, rounds=rounds, steps=steps, warmup=warmup), settings)


def _int8(python: str, quick: bool) -> Part:
    size, rounds, steps, warmup = (64, 1, 2, 1) if quick else (416, 20, 200, 200)
    with tempfile.TemporaryDirectory(prefix="benchmark-wheel-") as folder:
        program = Path(folder) / "program"
        program.mkdir()
        save_program(program, size)
        sides = _sides("benchmarks.wheel:native", {"folder": str(program)}, python, Path(folder))
        return _part(measure_sides(sides, rounds=rounds, steps=steps, warmup=warmup), {"size": size, "batch_size": 1})


def _sides(target: str, settings: dict[str, Any], python: str, folder: Path) -> list[Side]:
    """Return both sides; the wheel's finds a copy of the benchmarks and its own package, nothing of the checkout."""
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks", ignore=shutil.ignore_patterns("results", "__pycache__"))
    path = [str(folder)]
    return [Side("checkout", target, settings), Side("wheel", target, settings, interpreter=python, path=path)]


def _part(found: dict[str, dict[str, Any]], settings: dict[str, Any]) -> Part:
    rows: list[Row] = [
        {"side": name, "ms": summary([1e3 * seconds for seconds in side["seconds"]])} for name, side in found.items()
    ]
    for row in rows:
        row["times"] = row["ms"]["median"] / rows[0]["ms"]["median"]
    return Part(rows, COLUMNS, settings)


if __name__ == "__main__":
    sys.exit(main())
