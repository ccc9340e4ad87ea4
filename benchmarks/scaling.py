"""``python -m benchmarks.scaling``: how the cost grows with processes, batch, image, model and data set."""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.protocol import MakePart, Part, Row, native_precisions, run_benchmark, summary
from benchmarks.side_process import Side, measure_sides
from yolox.cpu.machine import pretend_machine, read_machine
from yolox.inference.search.latency import interleave
from yolox.trainer.plan import Request, make_plan

ABOUT = "How the cost of training grows: processes and threads, batch, image size, network, images in the data set."
BIG = {"2 x 28 cores": pretend_machine(2, 28), "4 x 56 cores": pretend_machine(4, 56)}
BANDWIDTH = 5e9
"""Assumed bytes a second at which the processes of one machine sum up gradients."""
PARAMETERS = 0.91e6
"""Number of parameters of the nano network."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    precision = native_precisions()[-1]
    nano = {"model": "yolox_nano", "size": 416, "batch_size": 16, "precision": precision, "as_tool": True}
    parts: dict[str, MakePart] = {
        "processes": _processes,
        "batch": partial(_growth, nano, "batch_size", (16, 32, 64, 128)),
        "image-size": partial(_growth, nano, "size", (224, 320, 416, 640)),
        "network": partial(_growth, nano, "model", ("yolox_nano", "yolox_tiny", "yolox_s")),
        "index": _index,
    }
    return run_benchmark("scaling", ABOUT, parts, argv)


def _processes(quick: bool) -> Part:
    size, batch, rounds, steps = (64, 2, 1, 1) if quick else (416, 64, 2, 3)
    first = read_machine().cores[0][0].number
    common: dict[str, Any] = {"model": "yolox_nano", "size": size, "batch_size": batch, "cpus": None, "as_tool": True}
    common["precision"] = native_precisions()[-1]
    chosen: dict[str, dict[str, Any]] = {
        "1 process": {**common, "processes": 1},
        "2 processes": {**common, "processes": 2},
        "1 process, 1 core": {**common, "processes": 1, "cpus": [[first]]},
    }
    sides = {name: Side(name, "benchmarks.scaling_sides:processes", settings) for name, settings in chosen.items()}
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    threads: dict[str, list[int]] = {}
    try:
        for _, name in interleave(list(sides), rounds):
            answer = sides[name].ask(steps=steps)
            speeds[name].append(answer["images_per_second"])
            threads[name] = answer["threads"]
    finally:
        for side in sides.values():
            side.close()
    rows: list[Row] = [
        {"side": name, "threads": " + ".join(map(str, threads[name])), "images_per_second": summary(values)}
        for name, values in speeds.items()
    ]
    one, many = summary(speeds["1 process, 1 core"])["median"], summary(speeds["1 process"])["median"]
    serial = serial_share(one, many, threads["1 process"][0])
    rows += projected(one, serial)
    columns = {
        "side": "{side}",
        "threads": "{threads}",
        "images/s": "{images_per_second[median]:.1f}",
        "p10–p90": "{images_per_second[p10]:.1f}–{images_per_second[p90]:.1f}",
    }
    notes = [
        f"nano, {size} pixels, precision {common['precision']}, batch {batch}, through our trainer, data in memory.",
        f"Rows with cores in their name are projections, not measurements: {one:.1f} images/s of one core, a serial "
        f"share of {serial:.1%} (Amdahl's law through 1 core and {threads['1 process'][0]} threads), gradients "
        f"summed at {BANDWIDTH / 1e9:.0f} GB/s, 8 images a core and step. They ignore the bandwidth of memory and "
        "falling clock rates: upper bounds.",
    ]
    notes += [f"The plan there:\n\n```\n{plan}\n```" for plan in _plans()]
    return Part(rows, columns, {**common, "rounds": rounds, "steps": steps}, notes)


def serial_share(one_core: float, all_cores: float, threads: int) -> float:
    """Return the share of a step that does not get faster with threads, by Amdahl's law, 0...1."""
    if threads < 2:
        return 0.0
    return min(1.0, max(0.0, (threads * one_core / all_cores - 1) / (threads - 1)))


def projected(one_core: float, serial: float) -> list[Row]:
    """Return projected images/s of large machines for several numbers of processes.

    Args:
        one_core: Images/s of one core.
        serial: Share of a step that threads do not speed up.
    """
    rows: list[Row] = []
    for name, machine in BIG.items():
        for processes in (1, machine.num_nodes, machine.num_cores // 14, machine.num_cores // 4):
            plan = make_plan(Request(processes, precision="bf16"), machine)
            threads = plan.slots[0].threads
            step = 8 * threads * (serial + (1 - serial) / threads) / one_core
            exchange = 2 * 4 * PARAMETERS * (processes - 1) / processes / BANDWIDTH
            speed = 8 * threads * processes / (step + exchange)
            side = f"{name}: {processes} process{'es' if processes > 1 else ''} (projected)"
            rows.append({"side": side, "threads": str(threads), "images_per_second": {"median": speed}})
    return rows


def _plans() -> list[str]:
    """Return what the trainer would do on the large machines with one process a node's half."""
    return [make_plan(Request(m.num_cores // 14, precision="bf16"), m).describe() for m in BIG.values()]


def _growth(common: dict[str, Any], key: str, values: Sequence[Any], quick: bool) -> Part:
    """Train with each value of one setting, in turn."""
    if quick:
        common = {**common, "size": 64, "batch_size": 2}
        values = {"batch_size": (1, 2), "size": (64, 96), "model": ("yolox_nano", "yolox_tiny")}[key]
    chosen = {str(value): {**common, key: value} for value in values}
    sides = [Side(name, "benchmarks.training_sides:ours", settings) for name, settings in chosen.items()]
    found = measure_sides(sides, rounds=1 if quick else 3, steps=1 if quick else 2, warmup=1 if quick else 2)
    rows: list[Row] = []
    for name, result in found.items():
        batch = chosen[name]["batch_size"]
        milliseconds = summary([1e3 * seconds / batch for seconds in result["seconds"]])
        giga = _gflops(chosen[name])
        rows.append(
            {
                key: chosen[name][key],
                "ms_per_image": milliseconds,
                "ms_per_gflop": milliseconds["median"] / giga,
                "peak_memory_mb": result["peak_memory_mb"],
                "times_first": 1.0,
            }
        )
        rows[-1]["times_first"] = milliseconds["median"] / rows[0]["ms_per_image"]["median"]
    columns = {
        key.replace("_", " "): "{" + key + "}",
        "ms/image": "{ms_per_image[median]:.1f}",
        "p10–p90": "{ms_per_image[p10]:.1f}–{ms_per_image[p90]:.1f}",
        "times the first": "{times_first:.2f}",
        "ms a forward GFLOP": "{ms_per_gflop:.1f}",
        "peak MB": "{peak_memory_mb:.0f}",
    }
    rest = ", ".join(f"{name} {value}" for name, value in common.items() if name not in (key, "as_tool"))
    return Part(rows, columns, {**common, key: list(values)}, [f"Training steps, data in memory: {rest}."])


def _gflops(settings: dict[str, Any]) -> float:
    from yolox.experiments import get_experiment
    from yolox.models.detector import summarize
    from yolox.structures import Size

    return summarize(get_experiment(settings["model"]).model, Size(settings["size"], settings["size"])).gflops


def _index(quick: bool) -> Part:
    rows = [_index_row(count) for count in ((8, 32) if quick else (128, 1000, 10_000, 100_000))]
    columns = {
        "images": "{images}",
        "bytes/image": "{bytes_per_image:.0f}",
        "index made, µs/image": "{make_us:.1f}",
        "one image's objects, µs": "{objects_us[median]:.1f}",
        "a batch of 64 requests, µs/image": "{requests_us[median]:.2f}",
    }
    note = "Synthetic labels, 7 objects an image. The index is all that a process keeps of the data set."
    return Part(rows, columns, {"objects_per_image": 7}, [note])


def _index_row(count: int) -> Row:
    """Measure the index of a data set of ``count`` images."""
    import numpy as np

    from yolox.data.formats.checks import check_split
    from yolox.data.formats.coco_json import describe_coco
    from yolox.data.sampling import RequestStream

    content = _labels(count)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / content["images"][0]["file_name"]).touch()
        gc.collect()
        start = time.perf_counter()
        dataset = check_split(describe_coco(content, "synthetic labels", [Path(folder)]))
        make = time.perf_counter() - start
    del content
    chosen = np.random.default_rng(0).integers(0, count, 2000).tolist()
    reads = []
    for index in chosen:
        start = time.perf_counter()
        dataset.objects(index)
        reads.append(1e6 * (time.perf_counter() - start))
    batches = RequestStream(count, 64).batches()
    next(batches)
    requests = []
    for _ in range(50):
        start = time.perf_counter()
        next(batches)
        requests.append(1e6 * (time.perf_counter() - start) / 64)
    return {
        "images": count,
        "bytes_per_image": dataset.nbytes / count,
        "make_us": 1e6 * make / count,
        "objects_us": summary(reads),
        "requests_us": summary(requests),
    }


def _labels(count: int) -> dict[str, Any]:
    images = [{"id": n, "file_name": f"{n:012d}.jpg", "height": 480, "width": 640} for n in range(1, count + 1)]
    box = [10.0, 20.0, 100.0, 50.0]
    annotations = [
        {"id": n, "image_id": n // 7 + 1, "category_id": n % 80 + 1, "bbox": box, "area": 5000.0, "iscrowd": 0}
        for n in range(7 * count)
    ]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": n + 1, "name": f"class {n}"} for n in range(80)],
    }


if __name__ == "__main__":
    sys.exit(main())
