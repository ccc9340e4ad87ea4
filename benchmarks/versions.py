"""``python -m benchmarks.versions NAME=PYTHON ...``: this checkout with the libraries of other environments."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.protocol import Part, Row, native_precisions, run_benchmark, summary
from benchmarks.side_process import CommandLine, Side, measure_sides, timed_steps
from yolox.errors import UsageError

ABOUT = "YOLOX-Nano with the libraries of several environments, by turns; the first one is the tested one."
COLUMNS = {
    "environment": "{side}",
    "PyTorch": "{torch}",
    "ONNX Runtime": "{onnxruntime}",
    "ms": "{ms[median]:.2f}",
    "p10–p90": "{ms[p10]:.2f}–{ms[p90]:.2f}",
    "times the first": "{times:.3f}",
}
METHODS = ("native_int8", "onnxruntime_fp32", "onnxruntime_int8_qlinear")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("environments", nargs="+", type=_environment, metavar="NAME=PYTHON", help="their interpreters")
    known, rest = parser.parse_known_args(argv)
    pythons = {"tested": sys.executable, **dict(known.environments)}
    parts = {"training": partial(_training, pythons)}
    parts.update({method: partial(_inference, method, pythons) for method in METHODS})
    return run_benchmark("versions", ABOUT, parts, rest)


def _environment(text: str) -> tuple[str, str]:
    name, _, python = text.partition("=")
    if not os.access(python, os.X_OK):
        raise UsageError(f"'{text}' names no interpreter; expected NAME=PYTHON, such as new=.venv-new/bin/python.")
    return name, python


def artifact(settings: Mapping[str, Any], channel: CommandLine) -> None:
    """Run a saved model on one image, again and again."""
    from yolox.cpu.allocator import keep_freed_memory
    from yolox.inference.artifacts.model import load_model

    keep_freed_memory()
    model = load_model(settings["folder"])
    size = settings["size"]
    images = np.random.default_rng(0).integers(0, 256, (1, 3, size, size)).astype(np.float32)
    for _ in timed_steps(channel):
        model.run(images)


def libraries(settings: Mapping[str, Any], channel: CommandLine) -> None:
    """Tell the versions of the environment's libraries."""
    from importlib.metadata import version

    for _ in channel.commands():
        channel.reply(**{name: version(name) for name in settings["names"]})


def _training(pythons: Mapping[str, str], quick: bool) -> Part:
    size, rounds, steps, warmup = (64, 1, 1, 1) if quick else (416, 6, 3, 6)
    settings = {
        **{"model": "yolox_nano", "size": size, "batch_size": 2 if quick else 16},
        **{"precision": native_precisions()[-1], "as_tool": True},
    }
    return _by_turns(pythons, "benchmarks.training_sides:ours", settings, (rounds, steps, warmup))


def _inference(method: str, pythons: Mapping[str, str], quick: bool) -> Part:
    size, rounds, steps, warmup = (64, 1, 2, 1) if quick else (416, 10, 60, 60)
    with tempfile.TemporaryDirectory(prefix="benchmark-versions-") as folder:
        _save(method, size, Path(folder))
        settings = {"folder": str(Path(folder) / "artifact"), "size": size}
        return _by_turns(pythons, "benchmarks.versions:artifact", settings, (rounds, steps, warmup))


def _save(method: str, size: int, folder: Path) -> None:
    """Write YOLOX-Nano with random weights, prepared by a method for all cores."""
    import torch

    from benchmarks.random_weights import set_statistics_
    from yolox.experiments import get_experiment
    from yolox.inference.artifacts.model import save_model
    from yolox.inference.backends.base import PrepareContext
    from yolox.inference.convert.prepare import OutputFacts, prepare_model
    from yolox.inference.methods import get_method
    from yolox.models.decoding import DecodedDetector
    from yolox.models.detector import build_detector

    torch.manual_seed(0)
    module = DecodedDetector(build_detector(get_experiment("yolox_nano").model))
    images = torch.randint(0, 256, (4, 3, size, size)).float()
    set_statistics_(module, images)
    (folder / "work").mkdir()
    context = PrepareContext((images[:1].numpy(),), ((images.numpy(),),), len(os.sched_getaffinity(0)), folder / "work")
    save_model(prepare_model(module, get_method(method), context, OutputFacts(count=2)), folder / "artifact")


def _by_turns(pythons: Mapping[str, str], target: str, settings: dict[str, Any], numbers: tuple[int, int, int]) -> Part:
    """Measure one thing in all environments.

    Args:
        pythons: Interpreter of each environment.
        target: What a side runs.
        settings: Its settings.
        numbers: Rounds, steps of a round, steps before.
    """
    rounds, steps, warmup = numbers
    versions = {name: _versions(python) for name, python in pythons.items()}
    sides = [Side(name, target, settings, interpreter=python) for name, python in pythons.items()]
    found = measure_sides(sides, rounds=rounds, steps=steps, warmup=warmup)
    rows: list[Row] = []
    for name, side in found.items():
        milliseconds = summary([1e3 * seconds for seconds in side["seconds"]])
        rows.append({"side": name, **versions[name], "ms": milliseconds})
        rows[-1]["times"] = milliseconds["median"] / rows[0]["ms"]["median"]
    return Part(rows, COLUMNS, settings)


def _versions(python: str) -> dict[str, Any]:
    side = Side("versions", "benchmarks.versions:libraries", {"names": ["torch", "onnxruntime"]}, interpreter=python)
    try:
        return side.ask()
    finally:
        side.close()


if __name__ == "__main__":
    sys.exit(main())
