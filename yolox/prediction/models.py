"""One predictor for a checkpoint, a published name, a deployed folder and an ONNX file."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from yolox.class_names import clean_name
from yolox.errors import ModelFileError, UsageError
from yolox.precision_names import EvalPrecision
from yolox.structures import Detections, Image, Size

if TYPE_CHECKING:
    from torch import nn

    from yolox.checkpoint import LoadedModel
    from yolox.config import Experiment

MAX_FACTOR, MAX_CLASSES = 4.0, 100_000
"""Largest depth, width and number of classes of a deployed detector: the published ones go up to 1.33, 1.25 and 80."""

Network = Callable[["NDArray[np.uint8]"], tuple[Any, Any]]
"""Maps uint8 images ``[B, 3, H, W]`` to boxes ``[B, A, 4]`` (xyxy) and scores ``[B, A, C]``."""


@dataclass(frozen=True)
class Predictor:
    """Finds objects in images, whatever form the model has.

    Args:
        network: The model with its decoding.
        input_size: H and W of its input.
        class_names: In the order of the class indices.
        source: One line: what it is.
        name: Short name, for output folders.
        method: How it is run: ``checkpoint``, the method of a deployed model, ``onnx``.
        fixed_batch: The only batch the model takes, or None for any.
    """

    network: Network
    input_size: Size
    class_names: tuple[str, ...]
    source: str
    name: str
    method: str
    fixed_batch: int | None = None

    def __call__(
        self,
        images: Sequence[Image],
        confidence: float,
        nms_iou: float,
        class_agnostic: bool = True,
        multi_label: bool = False,
    ) -> tuple[list[Detections], float]:
        """Return the detections of each image in its own pixels, and the milliseconds that the batch took.

        Args:
            images: ``[H, W, 3]`` uint8 BGR, of any sizes.
            confidence: Lowest score to keep.
            nms_iou: IoU above which the weaker of two boxes is dropped.
            class_agnostic: Let boxes of different classes suppress one another, as the official demo does.
            multi_label: Let a box be a detection of each class that is sure enough; not with ``class_agnostic``.
        """
        return self.detect(
            [self.fit(image) for image in images],
            [Size(*image.shape[:2]) for image in images],
            *(confidence, nms_iou, class_agnostic, multi_label),
        )

    @property
    def usual_batch(self) -> int:
        """How many pictures go through the network together where nobody says.

        Of a deployed model so many that each core has pictures of its own. A checkpoint in PyTorch gains nothing by it.
        """
        return self.fixed_batch or (1 if self.method == "checkpoint" else 8)

    def fit(self, image: Image) -> NDArray[np.uint8]:
        """Return an image ``[H, W, 3]`` as the network reads it: letterboxed to its input, ``[3, H, W]``."""
        from yolox.data.image_ops import letterbox

        boxed, _ = letterbox(image, self.input_size)
        planes = np.empty((3, *self.input_size), np.uint8)
        for channel, plane in enumerate(planes):
            cv2.extractChannel(boxed, channel, dst=plane)  # several times as fast as NumPy's copy of a transposed array
        return planes

    def detect(
        self,
        fitted: Sequence[NDArray[np.uint8]],
        sizes: Sequence[Size],
        confidence: float,
        nms_iou: float,
        class_agnostic: bool,
        multi_label: bool,
    ) -> tuple[list[Detections], float]:
        """Return what a call returns, of images that went through `fit`.

        Args:
            fitted: One or more.
            sizes: Of the images before.
            confidence: See there, as the rest.
            nms_iou: See there.
            class_agnostic: See there.
            multi_label: See there.
        """
        from yolox.evaluation.postprocess import postprocess, rescale

        started = time.perf_counter()
        boxes, scores = self.run_batch(np.stack(fitted))
        found = postprocess(
            boxes,
            scores,
            confidence=confidence,
            nms_iou=nms_iou,
            class_agnostic=class_agnostic,
            multi_label=multi_label,
        )
        elapsed_ms = 1000.0 * (time.perf_counter() - started)
        return [rescale(one, size, self.input_size) for one, size in zip(found, sizes, strict=True)], elapsed_ms

    def run_batch(self, batch: NDArray[np.uint8]) -> tuple[Any, Any]:
        """Return boxes ``[B, A, 4]`` and scores ``[B, A, C]`` of letterboxed images ``[B, 3, H, W]``, any B."""
        if self.fixed_batch is None or self.fixed_batch == len(batch):
            return self.network(batch)
        parts = []
        for start in range(0, len(batch), self.fixed_batch):
            part = batch[start : start + self.fixed_batch]
            filled = np.concatenate((part, np.repeat(part[-1:], self.fixed_batch - len(part), axis=0)))
            boxes, scores = self.network(filled)
            parts.append((np.asarray(boxes)[: len(part)], np.asarray(scores)[: len(part)]))
        return np.concatenate([boxes for boxes, _ in parts]), np.concatenate([scores for _, scores in parts])


def is_deployed(model: str | Path) -> bool:
    """Return whether ``model`` is a deployed folder or an ONNX file: both run without PyTorch where possible."""
    path = Path(model)
    return path.is_dir() or path.suffix.lower() == ".onnx"


def load_predictor(
    model: str | Path,
    *,
    precision: EvalPrecision = "32",
    input_size: int | tuple[int, int] | None = None,
    experiment: Experiment | None = None,
    trust: bool = False,
) -> Predictor:
    """Return the predictor of a model; nothing in its file is executed unless ``trust`` says so.

    Args:
        model: A published name (``yolox_nano``), a checkpoint, a folder saved by the inference engine, or an ONNX file
            of this package or of the official export.
        precision: What the network of a checkpoint computes in.
        input_size: Side, or height and width, of the network's input; None takes the model's own.
        experiment: Describes a checkpoint that does not describe itself.
        trust: Load deployed models that are programs (TorchScript, Inductor, IPEX).

    Raises:
        UsageError: When a deployed model is asked for another input size.
        ModelFileError: When the model cannot be read.
    """
    if not is_deployed(model):
        from yolox.checkpoint import load_model

        return predictor_of_checkpoint(load_model(model, experiment), precision, input_size)
    if input_size is not None:
        raise UsageError("the input size of a deployed model is fixed when it is made. Leave the size out.")
    return _from_artifact(Path(model), trust) if Path(model).is_dir() else _from_onnx(Path(model))


def predictor_of_checkpoint(
    loaded: LoadedModel, precision: EvalPrecision, input_size: int | tuple[int, int] | None
) -> Predictor:
    """Return the predictor of a model that was read already; PyTorch runs it."""
    import torch

    from yolox.config import apply_fields
    from yolox.evaluation.loop import build_predict

    experiment = loaded.experiment
    if input_size is not None:
        experiment = apply_fields(
            experiment, {"eval.test_size": input_size if isinstance(input_size, tuple) else str(input_size)}
        )
    predict = build_predict(loaded.detector, precision)

    def network(images: NDArray[np.uint8]) -> tuple[Any, Any]:
        boxes, scores = predict(torch.from_numpy(images))
        return boxes.float().numpy(), scores.float().numpy()

    size = experiment.eval.test_size
    return Predictor(network, size, loaded.class_names, loaded.source, experiment.exp_name, "checkpoint")


def _from_artifact(folder: Path, trust: bool) -> Predictor:
    """Load a model saved by the inference engine; PyTorch is imported only if its back end needs it."""
    from yolox.inference.artifacts.manifest import read_manifest
    from yolox.inference.artifacts.model import load_model

    described = read_manifest(folder)
    module = _described_detector(described.metadata, folder) if described.backend == "eager" else None
    model = load_model(folder, trust=trust, module=module)
    manifest = model.manifest
    shape = manifest.input_shapes[0]
    if len(manifest.input_shapes) != 1 or len(shape) != 4 or manifest.num_outputs != 2:
        raise ModelFileError(
            f"'{folder}' maps {len(manifest.input_shapes)} inputs to {manifest.num_outputs} outputs; expected images "
            "to boxes and scores. Give a detector saved by yolox.tools.inference_demo."
        )
    # our 8-bit engine reads bytes as they are, unless another library computes what comes before
    reads_bytes = manifest.backend == "native" and not manifest.backend_data
    kind = np.dtype(np.uint8 if reads_bytes else manifest.input_dtypes[0])

    def network(images: NDArray[np.uint8]) -> tuple[Any, Any]:
        boxes, scores = model.run(images.astype(kind, copy=False))
        return np.asarray(boxes), np.asarray(scores)

    names = model.metadata.get("class_names", ())
    if not (isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)):
        raise ModelFileError(f"'{folder}' names its classes by something else than text. Save the model again.")
    return Predictor(
        network,
        Size(*shape[2:]),
        tuple(map(clean_name, names)),
        f"'{folder}': {manifest.method}",
        manifest.method,
        manifest.method,
        None if manifest.dynamic_batch else shape[0],
    )


def _described_detector(metadata: Mapping[str, Any], folder: Path) -> nn.Module:
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
    with torch.device("meta"):
        num_weights = sum(value.numel() for value in build_detector(config).state_dict().values())
    num_bytes = sum(path.stat().st_size for path in folder.iterdir())
    if num_bytes < num_weights:  # a byte each is less than any type takes
        raise ModelFileError(
            f"'{folder}' describes a detector of {num_weights} weights and has {num_bytes} bytes. It is damaged."
        )
    with torch.random.fork_rng(devices=[]):
        return DecodedDetector(build_detector(config)).eval()


def _from_onnx(path: Path) -> Predictor:
    """Load an ONNX file with ONNX Runtime: boxes and scores, or the one output of official exports."""
    from yolox.cpu.machine import read_machine
    from yolox.inference.artifacts.manifest import MAX_NUMBERS
    from yolox.inference.backends.base import as_model_error, memory_for
    from yolox.inference.backends.onnxruntime import read_onnx
    from yolox.prediction.official_output import boxes_and_scores, class_names_of, input_size_of

    model = read_onnx(path, read_machine().num_threads)
    batch, channels, height, width = model.input_shape if len(model.input_shape) == 4 else (None, 0, None, None)
    size = input_size_of(model.metadata) if height is None and width is None else Size(height or 0, width or 0)
    largest = 0 if size is None else (batch or 1) * 3 * size.height * size.width
    if channels != 3 or size is None or not 0 < largest <= MAX_NUMBERS or model.num_outputs not in (1, 2):
        raise ModelFileError(
            f"'{path}' takes {list(model.input_shape)} and gives {model.num_outputs} outputs; expected images "
            "[B, 3, H, W] of a fixed height and width (or of those in its metadata, input_size), and one or two "
            "outputs. Export it with yolox.tools.export."
        )

    def network(images: NDArray[np.uint8]) -> tuple[Any, Any]:
        with as_model_error(path):
            return boxes_and_scores(model.runner(images), size, path)

    with as_model_error(path, memory_for(path, largest)):
        _, scores = network(np.full((batch or 1, 3, *size), 114, np.uint8))
    names = class_names_of(model.metadata, scores.shape[2])
    return Predictor(network, size, names, f"'{path}': ONNX file", path.stem, "onnx", batch)
