"""Writes what all engines are given: the network with published weights, or with random ones, and images."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.engines.inputs import PROGRAM_BATCHES, Inputs
from benchmarks.protocol import REAL_DATA
from benchmarks.random_weights import set_statistics_
from yolox.checkpoint import load_model
from yolox.experiments import get_experiment
from yolox.inference.convert.folding import fold_normalisations
from yolox.inference.convert.quiet import quiet
from yolox.models.decoding import DecodedDetector, replace_focus_
from yolox.models.detector import build_detector
from yolox.structures import Size
from yolox.tools.detection_metric import DetectionMetric
from yolox.tools.inference_images import EvalImages, calibration_images, read_eval_images

CONFIDENCE, NMS_IOU = 0.01, 0.65
NUM_CALIBRATION = 64


@dataclass(frozen=True)
class Network:
    """One of the three networks.

    Args:
        experiment: Name of its experiment.
        size: Side of its square input in pixels.
    """

    experiment: str
    size: int


NETWORKS = {
    "nano": Network("yolox_nano", 416),
    "tiny": Network("yolox_tiny", 416),
    "s": Network("yolox_s", 640),
    "quick": Network("yolox_nano", 64),
}


def build_module(inputs: Inputs, model: str) -> nn.Module:
    """Return the deployed network with the weights that `write_inputs` stored."""
    module = DecodedDetector(build_detector(get_experiment(NETWORKS[model].experiment).model))
    module.load_state_dict(torch.load(inputs.weights, weights_only=True))
    return module.eval()


def write_inputs(inputs: Inputs, model: str) -> str:
    """Write all files; return a sentence that says which weights and images they hold.

    Args:
        inputs: Names of the files, in an existing folder.
        model: Key of `NETWORKS`.
    """
    torch.manual_seed(0)
    network = NETWORKS[model]
    weights = REAL_DATA / "weights" / f"{network.experiment}.pth"
    if model != "quick" and weights.exists() and (REAL_DATA / "coco_mini").exists():
        module, what = _published(inputs, network, weights)
    else:
        module, what = _random(inputs, network)
    torch.save(module.state_dict(), inputs.weights)
    with torch.inference_mode():
        boxes, scores = module(torch.from_numpy(inputs.batch(PROGRAM_BATCHES[-1])))
    np.savez(inputs.reference, boxes=boxes.numpy(), scores=scores.numpy())
    _write_programs(inputs, module)
    return what


def metric_of(inputs: Inputs) -> DetectionMetric | None:
    """Return what measures AP on the images, or None where the weights are random."""
    if not inputs.labels.exists():
        return None
    facts = json.loads(inputs.labels.read_text(encoding="utf-8"))
    for name in ("image_ids", "original_sizes"):
        facts[name] = np.array(facts[name], np.int64)
    return DetectionMetric(EvalImages(inputs.folder / "images.npy", **facts), 16, CONFIDENCE, NMS_IOU)


def average_precision(inputs: Inputs, outputs: Path) -> float | None:
    """Return the AP of outputs for all images that a side has written, or None where there are no labels."""
    metric = metric_of(inputs)
    if metric is None:
        return None
    with np.load(outputs) as found:
        boxes, scores = (torch.from_numpy(found[name]) for name in ("boxes", "scores"))
    done = 0

    def predict(images: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal done
        part = slice(done, done + len(images))
        done += len(images)
        return boxes[part], scores[part]

    return float(metric(predict).values["AP"])


def signal_to_noise(inputs: Inputs, outputs: Path) -> float:
    """Return how much stronger the network's outputs are than their difference to an engine's, in decibels.

    The lower one of boxes and scores, at most 200.
    """
    found_db = []
    with np.load(inputs.reference) as wanted, np.load(outputs) as found:
        for name in ("boxes", "scores"):
            expected = wanted[name].astype(np.float64)
            noise = np.square(found[name][: len(expected)] - expected).mean()
            found_db.append(float(10 * np.log10(expected.var() / max(noise, 1e-20 * expected.var()))))
    return min(found_db)


def _published(inputs: Inputs, network: Network, weights: Path) -> tuple[nn.Module, str]:
    experiment = get_experiment(network.experiment)
    loaded = load_model(weights, experiment)
    config = replace(experiment.data, data_dir=str(REAL_DATA / "coco_mini"))
    size = Size(network.size, network.size)
    images = read_eval_images(config, loaded, size, 512, inputs.folder / "images.npy")
    np.save(inputs.folder / "calibration.npy", _joined(calibration_images(config, size, NUM_CALIBRATION, 32)))
    facts = {name: value for name, value in asdict(images).items() if name != "path"}
    for name in ("image_ids", "original_sizes"):
        facts[name] = facts[name].tolist()
    inputs.labels.write_text(json.dumps(facts), encoding="utf-8")
    return DecodedDetector(loaded.detector).eval(), f"Published weights; AP on {len(images)} COCO images."


def _random(inputs: Inputs, network: Network) -> tuple[nn.Module, str]:
    """Random weights, the statistics of whose normalisations are those of some images."""
    coarse = torch.rand(NUM_CALIBRATION, 3, network.size // 8 + 1, network.size // 8 + 1)
    images = nn.functional.interpolate(coarse, (network.size, network.size), mode="bilinear").mul(255).round()
    np.save(inputs.folder / "images.npy", images[:16].byte().numpy())
    np.save(inputs.folder / "calibration.npy", images.byte().numpy())
    module = DecodedDetector(build_detector(get_experiment(network.experiment).model))
    set_statistics_(module, images[:8])
    return module, "Random weights and images, hence no AP."


def _joined(batches: list[NDArray[np.float32]]) -> NDArray[np.uint8]:
    return np.concatenate(batches).astype(np.uint8)


def _write_programs(inputs: Inputs, module: nn.Module) -> None:
    """Write the network for converters; it is changed."""
    replace_focus_(module)
    sample = torch.from_numpy(inputs.batch(1))
    module = fold_normalisations(module.eval(), (sample,))
    with quiet(printing=True), torch.no_grad():
        torch.jit.save(torch.jit.trace(module, (sample,)), str(inputs.traced))  # type: ignore[no-untyped-call]
        for batch in PROGRAM_BATCHES:
            images = torch.from_numpy(inputs.batch(batch))
            torch.export.save(torch.export.export(module, (images,), strict=False), inputs.program(batch))
