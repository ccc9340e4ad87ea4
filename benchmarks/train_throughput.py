"""``python -m benchmarks.train_throughput``: a training step of ours against the stock loop and against IPEX."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.protocol import MakePart, Part, Row, native_precisions, run_benchmark, summary
from benchmarks.side_process import Side, measure_sides
from yolox.cpu.ipex_location import locate_ipex

ABOUT = "Training steps, data in memory: the trainer of yolox.tools.train against PyTorch, stock and tuned, and IPEX."
COLUMNS = {
    "side": "{side}",
    "images/s": "{images_per_second[median]:.1f}",
    "p10–p90": "{images_per_second[p10]:.1f}–{images_per_second[p90]:.1f}",
    "s/step": "{seconds_per_step[median]:.3f}",
    "peak MB": "{peak_memory_mb:.0f}",
    "times stock": "{times_stock:.2f}",
    "times tuned": "{times_tuned}",
}
STOCK = "stock fp32"


@dataclass(frozen=True)
class Setting:
    """One comparison.

    Args:
        model: Name of the experiment.
        size: Side of the input.
        batch_size: Images of a step.
        rounds: Rounds of each side.
        steps: Steps of a round.
        warmup: Untimed steps before.
        ipex: Whether IPEX takes part.
        sharing: Whether a side gives its memory back while it waits.
    """

    model: str
    size: int
    batch_size: int
    rounds: int
    steps: int
    warmup: int = 3
    ipex: bool = False
    sharing: bool = False


SETTINGS = {
    "nano-b16": Setting("yolox_nano", 416, 16, rounds=5, steps=4, warmup=4, ipex=True),
    "nano-b64": Setting("yolox_nano", 416, 64, rounds=3, steps=1, warmup=1, sharing=True),
    "s-b16": Setting("yolox_s", 640, 16, rounds=2, steps=1, warmup=1),
    "resnet18-b16": Setting("resnet18", 224, 16, rounds=5, steps=3, warmup=4),
    "mobilenet_v2-b16": Setting("mobilenet_v2", 224, 16, rounds=5, steps=3, warmup=4),
    "unet-b8": Setting("unet", 256, 8, rounds=5, steps=3, warmup=4),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    parts: dict[str, MakePart] = {name: partial(_measure, setting) for name, setting in SETTINGS.items()}
    return run_benchmark("train_throughput", ABOUT, parts, argv)


def _sides(setting: Setting) -> list[Side]:
    common = {"model": setting.model, "size": setting.size, "batch_size": setting.batch_size}
    module = "benchmarks.training_sides" if setting.model.startswith("yolox") else "benchmarks.common_training"
    sides = [Side(STOCK, f"{module}:stock", common, our_allocator=False)]
    sides += [Side(f"tuned {name}", f"{module}:tuned", {**common, "precision": name}) for name in native_precisions()]
    sides += [
        Side(f"ours {name}", f"{module}:ours", {**common, "precision": name, "as_tool": True})
        for name in native_precisions()
    ]
    with_ipex = setting.ipex and "bf16" in native_precisions()
    location = locate_ipex(look_here=False) if with_ipex else None
    if location is not None and location.interpreter is not None:
        for name, allocator in (("IPEX bf16", False), ("IPEX bf16, our allocator", True)):
            settings = {**common, "allocator": allocator}
            python = str(location.interpreter)
            sides.append(Side(name, f"{module}:ipex", settings, our_allocator=allocator, interpreter=python))
    return sides


def _measure(setting: Setting, quick: bool) -> Part:
    if quick:
        setting = Setting(setting.model, 64, 2, rounds=1, steps=1, warmup=1)
    found = measure_sides(
        _sides(setting),
        rounds=setting.rounds,
        steps=setting.steps,
        warmup=setting.warmup,
        explain=not setting.sharing,
        sharing=setting.sharing,
    )
    rows = [_row(name, result, setting.batch_size) for name, result in found.items()]
    for row in rows:
        row["times_stock"] = row["images_per_second"]["median"] / rows[0]["images_per_second"]["median"]
        row["times_tuned"] = _times_tuned(row, rows)
    return Part(rows, COLUMNS, vars(setting), [_where(row) for row in rows if row["share_of_time"]])


def _times_tuned(row: Row, rows: list[Row]) -> str:
    """Return how many times as fast as tuned PyTorch in its precision a side of ours is; nothing for other sides."""
    kind, _, precision = row["side"].partition(" ")
    medians = {other["side"]: other["images_per_second"]["median"] for other in rows}
    other = medians.get(f"tuned {precision}") if kind == "ours" else None
    return "" if other is None else f"{medians[row['side']] / other:.2f}"


def _row(name: str, result: dict[str, Any], batch_size: int) -> Row:
    seconds = result["seconds"]
    return {
        "side": name,
        "images_per_second": summary([batch_size / value for value in seconds]),
        "seconds_per_step": summary(seconds),
        "peak_memory_mb": result["peak_memory_mb"],
        "share_of_time": result.get("groups", {}),
    }


def _where(row: Row) -> str:
    shares = ", ".join(f"{name} {share:.0%}" for name, share in row["share_of_time"].items() if share >= 0.01)
    return f"Where a step of {row['side']} goes: {shares}."


if __name__ == "__main__":
    sys.exit(main())
