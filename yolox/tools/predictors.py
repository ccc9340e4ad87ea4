"""One function from an image to detections, whether a checkpoint or a deployed model stands behind it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolox.config import apply_fields
from yolox.errors import ModelFileError, UsageError
from yolox.structures import Detections, Image, Size
from yolox.tools.arguments import apply_arguments, asked_experiment, prepare_cpu

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

__all__ = ["Predictor", "load_predictor"]

MAX_FACTOR, MAX_CLASSES = 4.0, 100_000
"""Largest depth, width and number of classes of a deployed detector: the published ones go up to 1.33, 1.25 and 80."""

Network = Callable[["NDArray[np.uint8]"], tuple[Any, Any]]


@dataclass(frozen=True)
class Predictor:
    """Finds objects in single images.

    Args:
        network: Maps uint8 ``[1, 3, H, W]`` to boxes ``[1, A, 4]`` and scores ``[1, A, C]``.
        input_size: H and W.
        class_names: In the order of the class indices.
        source: One line: what it is.
        experiment_name: Name of the output sub-folder.
    """

    network: Network
    input_size: Size
    class_names: tuple[str, ...]
    source: str
    experiment_name: str

    def __call__(self, image: Image, confidence: float, nms_iou: float) -> tuple[Detections, float]:
        """Return the detections in pixels of ``image`` and the milliseconds that network and suppression took.

        Boxes of different classes suppress one another, as in the official demo.
        """
        import numpy as np

        from yolox.data.image_ops import letterbox
        from yolox.evaluation.postprocess import postprocess, rescale

        boxed, _ = letterbox(image, self.input_size)
        batch = np.ascontiguousarray(boxed.transpose(2, 0, 1)[None])
        started = time.perf_counter()
        boxes, scores = self.network(batch)
        (found,) = postprocess(boxes, scores, confidence=confidence, nms_iou=nms_iou, class_agnostic=True)
        elapsed_ms = 1000.0 * (time.perf_counter() - started)
        height, width = image.shape[:2]
        return rescale(found, Size(height, width), self.input_size), elapsed_ms


def load_predictor(args: argparse.Namespace) -> Predictor:
    """Return the predictor of ``--model DIR`` or of a checkpoint (``-c``, with ``-n`` or ``-f`` where needed).

    Raises:
        UsageError: When neither or both are given.
        ModelFileError: When the model cannot be read.
    """
    if args.model is not None:
        if args.ckpt is not None:
            raise UsageError("both --model and -c were given; expected one of them. Leave one out.")
        if args.tsize is not None:
            raise UsageError("--tsize cannot change a deployed model, whose input size is fixed. Leave it out.")
        prepare_cpu(with_torch=False)
        return _from_artifact(args.model, trust=args.trust)
    if args.ckpt is None:
        raise UsageError("no model given; expected -c FILE (a checkpoint) or --model DIR (a deployed model).")
    prepare_cpu()
    return _from_checkpoint(args)


def _from_checkpoint(args: argparse.Namespace) -> Predictor:
    import torch

    from yolox.checkpoint import load_model
    from yolox.evaluation.predictor import build_predict

    loaded = load_model(args.ckpt, asked_experiment(args))
    experiment = apply_arguments(loaded.experiment, args)
    if args.tsize is not None:
        experiment = apply_fields(experiment, {"eval.test_size": str(args.tsize)})
    predict = build_predict(loaded.detector, args.precision)

    def network(images: NDArray[np.uint8]) -> tuple[Any, Any]:
        boxes, scores = predict(torch.from_numpy(images))
        return boxes.numpy(), scores.numpy()

    return Predictor(network, experiment.eval.test_size, loaded.class_names, loaded.source, experiment.exp_name)


def _from_artifact(folder: str, *, trust: bool) -> Predictor:
    """Load a model saved by the inference engine; PyTorch is imported only if its back end needs it."""
    import numpy as np

    from yolox.inference.artifacts.manifest import read_manifest
    from yolox.inference.artifacts.model import load_model

    described = read_manifest(Path(folder))
    module = _detector_of(described.metadata, folder) if described.backend == "eager" else None
    model = load_model(folder, trust=trust, module=module)
    manifest = model.manifest
    shape = manifest.input_shapes[0]
    if len(manifest.input_shapes) != 1 or len(shape) != 4 or manifest.num_outputs != 2:
        raise ModelFileError(
            f"'{folder}' maps {len(manifest.input_shapes)} inputs to {manifest.num_outputs} outputs; expected images "
            "to boxes and scores. Give a detector saved by yolox.tools.inference_demo."
        )
    kind = np.dtype(manifest.input_dtypes[0])
    fixed_batch = None if manifest.dynamic_batch else shape[0]

    def network(images: NDArray[np.uint8]) -> tuple[Any, Any]:
        given = images if fixed_batch is None else np.repeat(images, fixed_batch, axis=0)
        boxes, scores = model.run(given.astype(kind))
        return np.asarray(boxes)[: len(images)], np.asarray(scores)[: len(images)]

    # names come from a file that others may have written: nothing in them may steer a terminal
    names = tuple("".join(filter(str.isprintable, str(name))) for name in model.metadata.get("class_names", ()))
    return Predictor(network, Size(*shape[2:]), names, f"'{folder}': {manifest.method}", manifest.method)


def _detector_of(metadata: Mapping[str, Any], folder: str) -> nn.Module:
    """Return a detector as the artifact describes it, with weights still to come: built by our code, not by the file's.

    Raises:
        ModelFileError: When it describes none, or one of absurd size.
    """
    import torch

    from yolox.config import experiment_from_dict
    from yolox.models.decoding import DecodedDetector
    from yolox.models.detector import build_detector

    try:
        config = experiment_from_dict({"exp_name": "deployed", "model": metadata["network"]}).model
    except (KeyError, UsageError) as error:
        raise ModelFileError(f"'{folder}' does not say which detector its weights are of. Save it again.") from error
    if not (0 < config.depth <= MAX_FACTOR and 0 < config.width <= MAX_FACTOR and config.num_classes <= MAX_CLASSES):
        raise ModelFileError(
            f"'{folder}' describes a detector of depth {config.depth:g}, width {config.width:g} and "
            f"{config.num_classes} classes; expected at most {MAX_FACTOR:g}, {MAX_FACTOR:g} and {MAX_CLASSES}."
        )
    with torch.random.fork_rng(devices=[]):
        return DecodedDetector(build_detector(config)).eval()
