"""``python -m benchmarks.engines.picture RESULTS.json PICTURE.png``: each engine's fastest row of full accuracy."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.engines.plan import BATCHES
from benchmarks.engines.report import OURS
from benchmarks.engines.table import ORIGINAL

KEPT = 0.01
"""A row whose AP is lower than the original's by more does not count."""
NAMES = {
    ORIGINAL: "PyTorch, eager",
    "channels_last": "PyTorch, eager",
    "bf16": "PyTorch, eager",
    "inductor": "PyTorch, Inductor",
    "openvino": "OpenVINO",
    "onnxruntime": "ONNX Runtime",
    "ncnn": "ncnn",
    "litert": "LiteRT",
    "executorch": "ExecuTorch",
    "native": "ours",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the picture and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines.picture", description=__doc__)
    parser.add_argument("results", type=Path, help="engines.json")
    parser.add_argument("picture", type=Path, help="the file to draw")
    parser.add_argument("--model", default="nano")
    args = parser.parse_args(argv)
    parts = json.loads(args.results.read_text(encoding="utf-8"))["parts"]
    found = {batch: fastest(parts[key]["rows"]) for batch in BATCHES if (key := f"{args.model}-b{batch}") in parts}
    _draw(found, args.picture)
    return 0


def fastest(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return, by the engine's name in words, its fastest row whose AP is that of the original or nearly so."""
    measured = [row for row in rows if "rate" in row]
    wanted = next(row["AP"] for row in measured if row["engine"] == ORIGINAL)
    best: dict[str, Mapping[str, Any]] = {}
    for row in sorted(measured, key=lambda row: float(row["rate"]), reverse=True):
        name = row["engine"]
        words = NAMES.get(name) or NAMES[name.split("_")[0]]
        if wanted is None or row["AP"] >= wanted - KEPT:
            best.setdefault(words, row)
    return best


def _draw(found: Mapping[int, Mapping[str, Mapping[str, Any]]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from yolox.files import atomic_path

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    plots = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (batch, best) in zip(plots, found.items(), strict=True):
        names = sorted(best, key=lambda name: float(best[name]["rate"]))
        rates = [best[name]["rate"] for name in names]
        colours = ["tab:red" if best[name]["engine"] == OURS else "tab:blue" for name in names]
        axes.barh(names, rates, color=colours)
        for place, (name, rate) in enumerate(zip(names, rates, strict=True)):
            kind = _precision(best[name]["engine"])
            axes.text(rate, place, f" {rate:.0f}  {kind}", va="center", fontsize=7)
        axes.set_xlim(0, 1.45 * max(rates))
        axes.set_title("one image" if batch == 1 else f"batch of {batch}", fontsize=9)
        axes.set_xlabel("images/s", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=110)


def _precision(name: str) -> str:
    return "fp32" if name in {ORIGINAL, "channels_last"} else name.split("_", 1)[-1]


if __name__ == "__main__":
    sys.exit(main())
