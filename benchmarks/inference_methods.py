"""``python -m benchmarks.inference_methods``: the table of ``yolox.tools.inference_demo`` for three networks."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.protocol import REAL_DATA, MakePart, Part, Row, native_precisions, run_benchmark
from yolox.inference.search.results import MethodResult, OptimizationReport

ABOUT = "One network run in several ways: latency, memory and, where real weights and images are at hand, AP."
SIZES = {"nano": ("yolox_nano", 416), "tiny": ("yolox_tiny", 416), "s": ("yolox_s", 640)}
BATCHES = (1, 8, 64)
METHODS = (
    *("fp32_channels_last", "inductor_bf16", "onnxruntime_fp32"),
    *("openvino_fp32", "openvino_bf16", "native_int8"),
)
FEW = ("openvino_bf16", "native_int8")
"""For the larger networks, whose weights are not at hand: that they run, and how fast, needs no more."""


@dataclass(frozen=True)
class Setting:
    """One table.

    Args:
        model: Name of the experiment.
        size: Side of the input.
        batch: Images of a run.
        methods: Its rows, besides the original.
        rounds: Interleaved rounds.
        budget: Seconds in all.
    """

    model: str
    size: int
    batch: int
    methods: Sequence[str] = METHODS
    rounds: int = 5
    budget: float = 200.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    settings = {f"{key}-b{batch}": _setting(key, batch) for key in SIZES for batch in BATCHES}
    if "bf16" not in native_precisions():
        settings = {key: replace(setting, methods=_without_bf16(setting)) for key, setting in settings.items()}
    parts: dict[str, MakePart] = {name: partial(_measure, setting) for name, setting in settings.items()}
    return run_benchmark("inference_methods", ABOUT, parts, argv)


def _setting(key: str, batch: int) -> Setting:
    """Return one table; all of them together take a third of the half hour of `make bench`."""
    if key == "nano":
        return Setting(*SIZES[key], batch)
    return Setting(*SIZES[key], batch, methods=FEW, rounds=1 if batch == 64 else 3)  # seconds a run


def _without_bf16(setting: Setting) -> Sequence[str]:
    """Return its rows but those that this processor would compute in software."""
    return [name for name in setting.methods if "bf16" not in name]


def _measure(setting: Setting, quick: bool) -> Part:
    if quick:
        setting = Setting(setting.model, 64, 1, ("fp32_channels_last",), rounds=1)
    with tempfile.TemporaryDirectory(prefix="benchmark-inference-") as folder:
        model, options, what = _inputs(setting, Path(folder), quick)
        report = _optimize(Path(folder), model, options, setting)
    rows = [_row(result, report) for result in report]
    columns = {
        "method": "{method}",
        "status": "{status}",
        "ms": "{milliseconds:.1f}",
        "quartiles apart": "{spread_ms:.1f}",
        "p90": "{p90_ms:.1f}",
        "images/s": "{images_per_second:.1f}",
        "peak MB": "{peak_memory_mb:.0f}",
        "AP": "{AP:.4f}",
        "times stock": "{times_stock:.2f}",
    }
    note = f"{what} 'original' is stock eager fp32, contiguous, with the default allocator."
    return Part(rows, columns, vars(setting), [note])


def _inputs(setting: Setting, folder: Path, quick: bool) -> tuple[Any, dict[str, Any], str]:
    """Return the network, what ``optimize`` is to measure it on, and a sentence that says which."""
    import torch

    from yolox.checkpoint import load_model
    from yolox.experiments import get_experiment
    from yolox.models.detector import build_detector
    from yolox.structures import Size
    from yolox.tools.detection_metric import DetectionMetric
    from yolox.tools.inference_images import calibration_images, read_eval_images

    experiment = get_experiment(setting.model)
    weights = REAL_DATA / "weights" / f"{setting.model}.pth"
    if quick or not (weights.exists() and (REAL_DATA / "coco_mini").exists()):
        torch.manual_seed(0)
        images = torch.randint(0, 256, (max(setting.batch, 32), 3, setting.size, setting.size)).float()
        data: dict[str, Any] = {"training_data": [images[:32]], "input_sample": images[: setting.batch]}
        what = "Random weights and images, hence no AP."
        return build_detector(experiment.model).eval(), data, what
    loaded = load_model(weights, experiment)
    config = replace(experiment.data, data_dir=str(REAL_DATA / "coco_mini"))
    size = Size(setting.size, setting.size)
    images_file = read_eval_images(config, loaded, size, 512, folder / "images.npy")
    data = {
        "training_data": calibration_images(config, size, 128, 32),
        "input_sample": images_file.batch(setting.batch),
        "metric": DetectionMetric(images_file, min(max(setting.batch, 16), 64), 0.01, 0.65),
    }
    return loaded.detector, data, f"Published weights; AP on {len(images_file)} COCO images."


def _optimize(folder: Path, detector: Any, data: dict[str, Any], setting: Setting) -> OptimizationReport:
    from yolox.inference.optimizer import InferenceOptimizer
    from yolox.inference.search.protocol import Limits
    from yolox.inference.search.run import Listener
    from yolox.models.decoding import DecodedDetector

    limits = Limits(time_budget=setting.budget, rounds=setting.rounds)
    optimizer = InferenceOptimizer(folder, Listener())
    return optimizer.optimize(DecodedDetector(detector), methods=tuple(setting.methods), limits=limits, **data)


def _row(result: MethodResult, report: OptimizationReport) -> Row:
    row: Row = {"method": result.name, "status": result.status.value, "reason": result.reason}
    row.update(peak_memory_mb=result.peak_memory_mb, **result.metrics)
    if result.latency is not None:
        row.update(
            milliseconds=result.latency.median_ms,
            spread_ms=result.latency.spread_ms,
            p90_ms=result.latency.p90_ms,
            images_per_second=result.latency.images_per_second,
            num_samples=len(result.latency.samples_ms),
            times_stock=report.speedup(result),
        )
    return row


if __name__ == "__main__":
    sys.exit(main())
