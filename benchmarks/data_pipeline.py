"""``python -m benchmarks.data_pipeline``: training samples per core, and training from files against from memory."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.photographs import write_photographs
from benchmarks.protocol import MakePart, Part, Row, native_precisions, run_benchmark, summary
from benchmarks.side_process import Side
from yolox.inference.search.latency import interleave

ABOUT = "Training samples from JPEG files: images/s of one core against a plain OpenCV pipeline; training from files."
MODULE = "benchmarks.data_sides"
STOCK = "plain OpenCV"
STAGES = ("read", "letterbox", "mosaic", "mosaic and mixup")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    parts: dict[str, MakePart] = {
        "one-core-416": partial(_one_core, "yolox_nano", 416, STAGES[:3]),
        "one-core-640": partial(_one_core, "yolox_s", 640, STAGES),
        "training-nano": partial(_training, "yolox_nano", 416, 4),
        "training-tiny": partial(_training, "yolox_tiny", 416, 2),
    }
    return run_benchmark("data_pipeline", ABOUT, parts, argv)


def _one_core(model: str, size: int, stages: Sequence[str], quick: bool) -> Part:
    size, count, rounds, steps = (64, 6, 1, 2) if quick else (size, 96, 5, 24)
    with tempfile.TemporaryDirectory(prefix="benchmark-data-") as folder:
        common: dict[str, Any] = {"folder": str(write_photographs(Path(folder), count)), "model": model, "size": size}
        ours: dict[str, Any] = {**common, "cache": "off", "reduced_decode": False}
        sides = [
            Side(STOCK, f"{MODULE}:stock_stages", common, our_allocator=False),
            Side("ours", f"{MODULE}:our_stages", ours),
            Side("ours, reduced decode", f"{MODULE}:our_stages", {**ours, "reduced_decode": True}),
            Side("ours, cached", f"{MODULE}:our_stages", {**ours, "cache": "ram"}),
        ]
        seconds = _stage_seconds(sides, stages, rounds, steps, warmup=count)
    rows = [_stage_row(seconds, stage, side.name) for stage in stages for side in sides]
    columns = {
        "stage": "{stage}",
        "side": "{side}",
        "images/s a core": "{images_per_second[median]:.0f}",
        "p10–p90": "{images_per_second[p10]:.0f}–{images_per_second[p90]:.0f}",
        "ms/image": "{ms_per_image:.2f}",
        "times plain": "{times_plain:.2f}",
    }
    settings = {"model": model, "size": size, "files": count, "rounds": rounds, "steps": steps}
    note = f"Input {size} pixels, files of 640 pixels; letterbox and mosaic include colour, mirror and letterbox."
    return Part(rows, columns, settings, [note])


def _stage_seconds(
    sides: Sequence[Side], stages: Sequence[str], rounds: int, steps: int, warmup: int
) -> dict[tuple[str, str], list[float]]:
    """Return for each stage and side the mean seconds of a sample in each round."""
    means: dict[tuple[str, str], list[float]] = {(stage, side.name): [] for stage in stages for side in sides}
    by_name = {side.name: side for side in sides}
    try:
        for side in sides:
            side.ask(stage="read", steps=warmup)
        for _, (stage, name) in interleave(list(means), rounds):
            values = by_name[name].ask(stage=stage, steps=steps)["seconds"]
            means[stage, name].append(sum(values) / len(values))
    finally:
        for side in sides:
            side.close()
    return means


def _stage_row(seconds: dict[tuple[str, str], list[float]], stage: str, name: str) -> Row:
    own, plain = summary(seconds[stage, name])["median"], summary(seconds[stage, STOCK])["median"]
    return {
        "stage": stage,
        "side": name,
        "images_per_second": summary([1 / value for value in seconds[stage, name]]),
        "ms_per_image": 1e3 * own,
        "times_plain": plain / own,
    }


def _training(model: str, size: int, rounds: int, quick: bool) -> Part:
    size, count, batch, rounds, steps, settle = (64, 6, 2, 1, 1, 1) if quick else (size, 96, 16, rounds, 8, 4)
    precision = native_precisions()[-1]
    with tempfile.TemporaryDirectory(prefix="benchmark-data-") as folder:
        data = {"folder": str(write_photographs(Path(folder), count)), "model": model, "size": size}
        common: dict[str, Any] = {**data, "batch_size": batch, "precision": precision, "keep": 0, "as_tool": True}
        sides = [
            Side("memory", f"{MODULE}:train", {**common, "cache": "ram", "keep": 4}),
            Side("files", f"{MODULE}:train", {**common, "cache": "off"}),
            Side("files, cached", f"{MODULE}:train", {**common, "cache": "ram"}),
        ]
        if quick:
            sides.pop().close()
        speeds = _training_speeds(sides, batch, rounds, steps, settle, warmup=-(-count // batch))
    memory = summary(speeds["memory"])["median"]
    rows = [
        {"side": name, "images_per_second": summary(values), "share": summary(values)["median"] / memory}
        for name, values in speeds.items()
    ]
    columns = {
        "batches from": "{side}",
        "images/s": "{images_per_second[median]:.1f}",
        "p10–p90": "{images_per_second[p10]:.1f}–{images_per_second[p90]:.1f}",
        "of memory": "{share:.0%}",
    }
    settings = {**{key: common[key] for key in ("model", "size", "batch_size", "precision")}, "files": count}
    note = (
        f"{model}, precision {precision}, batch {batch}, published augmentation at one input size. Each round begins "
        f"with {settle} steps that do not count, in which the loader's queue, filled while another side ran, runs dry. "
        "'cached' is what runs by default, from the second epoch on, where the resized images take a fifth of the free "
        "memory."
    )
    return Part(rows, columns, {**settings, "rounds": rounds, "steps": steps}, [note])


def _training_speeds(
    sides: Sequence[Side], batch: int, rounds: int, steps: int, settle: int, warmup: int
) -> dict[str, list[float]]:
    """Return images/s of each round of each side."""
    speeds: dict[str, list[float]] = {side.name: [] for side in sides}
    by_name = {side.name: side for side in sides}
    try:
        for side in sides:
            side.ask(steps=warmup)
        for _, name in interleave(list(by_name), rounds):
            seconds = by_name[name].ask(steps=settle + steps)["seconds"][settle:]
            speeds[name].append(batch * steps / sum(seconds))
    finally:
        for side in sides:
            side.close()
    return speeds


if __name__ == "__main__":
    sys.exit(main())
