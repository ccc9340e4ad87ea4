"""The rows of ``yolox.inference``: PyTorch, OpenVINO and ONNX Runtime as our optimizer runs them, and native_int8."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines.inputs import PROGRAM_BATCHES, Inputs
from yolox.inference.backends.base import PrepareContext, Runner


def prepare(inputs: Inputs, folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Convert and save; with ``original_accuracy`` layers stay in float until the accuracy holds.

    Args:
        inputs: The network and its images.
        folder: An empty folder for the artifact.
        options: ``method``, ``model``, ``threads`` and ``original_accuracy``.
    """
    from benchmarks.engines.sources import build_module, metric_of
    from yolox.inference.artifacts.model import save_model
    from yolox.inference.convert.prepare import OutputFacts, prepare_model
    from yolox.inference.methods import get_method

    metric = metric_of(inputs) if options.get("original_accuracy") is not None else None

    def accuracy(predict: Any) -> float:
        assert metric is not None
        return float(metric(predict).values["AP"])

    with tempfile.TemporaryDirectory(prefix="engine-") as parent:
        work_dir = Path(parent) / "work"
        work_dir.mkdir()
        images = inputs.calibration
        context = PrepareContext(
            sample=(inputs.batch(PROGRAM_BATCHES[-1]),),
            calibration=[(images[start : start + 32].astype(np.float32),) for start in range(0, len(images), 32)],
            threads=options["threads"],
            work_dir=work_dir,
            accuracy=None if metric is None else accuracy,
            original_accuracy=options.get("original_accuracy"),
        )
        method = get_method(options["method"])
        model = prepare_model(build_module(inputs, options["model"]), method, context, OutputFacts(count=2))
        save_model(model, folder)
    return {"int8_share": model.runner.int8_share}


def load(inputs: Inputs, folder: Path, options: Mapping[str, Any]) -> Runner:
    """Load the artifact; plain PyTorch needs the module beside it."""
    from yolox.inference.artifacts.model import load_model

    module = None
    if options.get("needs_module"):
        from benchmarks.engines.sources import build_module

        module = build_module(inputs, options["model"])
    return load_model(folder, trust=True, module=module).runner
