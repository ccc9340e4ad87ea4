"""What all benchmarks share: parts of a table, statistics, the machine block, and the files that hold the results."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from yolox.cpu.allocator import keep_freed_memory, malloc_library
from yolox.cpu.machine import read_machine
from yolox.files import make_output_dir, write_text
from yolox.tables import markdown_table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
REAL_DATA = ROOT.parent / "shared" / "data"
"""COCO images and published weights, where a machine has them."""
QUICK_RESULTS = Path("YOLOX_outputs") / "benchmarks"
LIBRARIES = (
    *("torch", "pytorch-lightning", "numpy", "opencv-python-headless", "openvino", "onnxruntime", "torchao"),
    *("faster-coco-eval", "pycocotools"),
)
Row = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One table, or the part of one that a single run fills.

    Args:
        rows: One a side; JSON values.
        columns: Title of each column and the ``str.format`` pattern that a row fills.
        settings: What was asked for.
        notes: Sentences below the table.
    """

    rows: Sequence[Row]
    columns: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def to_markdown(self) -> str:
        """Return the table and its notes; a value that a row lacks is a dash."""
        body = [[_cell(pattern, row) for pattern in self.columns.values()] for row in self.rows]
        return "\n\n".join([markdown_table(list(self.columns), body), *self.notes])


MakePart = Callable[[bool], Part]
"""Measures one part; True asks for the smallest settings that exercise it."""


def _cell(pattern: str, row: Row) -> str:
    try:
        return pattern.format(**row)
    except (KeyError, TypeError, ValueError):
        return "–"


def summary(samples: Sequence[float]) -> dict[str, float]:
    """Return median, 10th and 90th percentile and count of repeated measurements."""
    low, middle, high = (float(value) for value in np.percentile(samples, [10, 50, 90]))
    return {"median": middle, "p10": low, "p90": high, "count": len(samples)}


def native_precisions() -> tuple[str, ...]:
    """Return the trainer's precisions that this processor computes in hardware, the fastest last.

    bf16 in software takes minutes for a batch, and nobody would use it.
    """
    return ("32", "bf16") if read_machine().has_bf16 else ("32",)


def machine_block() -> dict[str, Any]:
    """Return what a reader needs to assess the figures: processor, libraries, allocator, source version."""
    setting = keep_freed_memory()
    return {
        **read_machine().as_dict(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "libraries": {name: found for name in LIBRARIES if (found := _version(name)) is not None},
        "malloc": malloc_library() or "unknown",
        "allocator_of_ours": str(setting),
        "load_average": round(os.getloadavg()[0], 2),
        "source": _source_version(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _source_version() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def run_benchmark(
    name: str, about: str, parts: Mapping[str, MakePart], argv: Sequence[str] | None = None, extra: str = ""
) -> int:
    """Parse the command line, measure the parts asked for, write and print them; return the exit code.

    Args:
        name: Name of the result files.
        about: First line of ``--help`` and of the Markdown file.
        parts: The parts by name, in order.
        argv: Arguments; None for those of the process.
        extra: Text that ends the Markdown file.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=about, epilog=f"parts: {', '.join(parts)}"
    )
    parser.add_argument("--part", nargs="+", choices=list(parts), metavar="PART", help="only these parts")
    parser.add_argument("--quick", action="store_true", help="tiny settings: shows that it works, measures nothing")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the results (benchmarks/results)")
    args = parser.parse_args(argv)
    folder = make_output_dir(args.out or (QUICK_RESULTS if args.quick else RESULTS))
    for part_name in args.part or parts:
        began = time.perf_counter()
        part = parts[part_name](args.quick)
        seconds = time.perf_counter() - began
        print(f"\n{name}, {part_name} ({seconds:.0f} s)\n\n{part.to_markdown()}\n", flush=True)
        write_results(folder, name, f"{about}\n", extra, {part_name: (part, seconds)}, list(parts))
    print(f"written: {folder / name}.json, {folder / name}.md")
    return 0


def write_results(
    folder: Path, name: str, about: str, extra: str, new: Mapping[str, tuple[Part, float]], order: Sequence[str]
) -> None:
    """Put new parts into the files of a benchmark; parts measured earlier stay."""
    path = folder / f"{name}.json"
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["parts"] if path.exists() else {}
    machine = machine_block()
    for part_name, (part, seconds) in new.items():
        known[part_name] = {
            "measured": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "seconds": round(seconds, 1),
            "machine": machine,
            "settings": dict(part.settings),
            "rows": _rounded(list(part.rows)),
            "notes": list(part.notes),
            "markdown": part.to_markdown(),
        }
    known = {part_name: known[part_name] for part_name in order if part_name in known}
    write_text(path, json.dumps({"benchmark": name, "parts": known}, indent=1) + "\n")
    write_text(folder / f"{name}.md", _markdown(name, about, extra, known))


def _markdown(name: str, about: str, extra: str, parts: Mapping[str, Any]) -> str:
    text = [f"# {name}", about]
    for part_name, part in parts.items():
        where = f"{part['measured']}, source {part['machine']['source']}, {part['seconds']:.0f} s"
        text += [f"## {part_name}", part["markdown"], f"_{where}_"]
    machine = list(parts.values())[-1]["machine"]
    libraries = ", ".join(f"{key} {value}" for key, value in machine["libraries"].items())
    text += [
        "## Machine",
        f"{machine['model_name']}, {machine['usable_cores']} cores, {' '.join(machine['isa'])}, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB; Python {machine['python']}, {libraries}; "
        f"{machine['allocator_of_ours']}. The JSON file has the block of every part.",
    ]
    return "\n\n".join([*text, extra]).rstrip() + "\n"


def _rounded(value: Any) -> Any:
    """Return the value with floats cut to five digits, to keep the files readable."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
