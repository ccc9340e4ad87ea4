"""One predictor for a checkpoint, a published name, a deployed folder, an ONNX and an OpenVINO file."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from yolox.class_names import clean_name
from yolox.errors import ModelFileError, UsageError
from yolox.inference.artifacts.manifest import MANIFEST_NAME
from yolox.inference.backends.base import run_in_chunks
from yolox.precision_names import EvalPrecision
from yolox.structures import Detections, Image, Size

if TYPE_CHECKING:
    from torch import nn

    from yolox.checkpoint import LoadedModel
    from yolox.config import Experiment
    from yolox.inference.backends.graph_file import Suppression

MAX_FACTOR, MAX_CLASSES = 4.0, 100_000
"""Largest depth, width and number of classes of a deployed detector: the published ones go up to 1.33, 1.25 and 80."""

GRAPH_SUFFIXES = (".onnx", ".xml")
"""Endings of files that hold a graph: ONNX, and OpenVINO IR with its weights in a .bin file beside it."""

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
        method: How it is run: ``checkpoint``, the method of a deployed model, ``onnx`` or ``openvino``.
        fixed_batch: The only batch the model takes, or None for any.
        suppression: The rules of a suppression that is part of the model, or None.
    """

    network: Network
    input_size: Size
    class_names: tuple[str, ...]
    source: str
    name: str
    method: str
    fixed_batch: int | None = None
    suppression: Suppression | None = None

    def check_thresholds(self, confidence: float, nms_iou: float) -> None:
        """Refuse thresholds that ask for boxes which a suppression inside the model has dropped.

        Raises:
            UsageError: With those that the model can follow.
        """
        rules = self.suppression
        if rules is not None and (confidence < rules.confidence or nms_iou > rules.nms_iou):
            raise UsageError(
                f"{self.source} was asked for scores from {confidence:g} on and an IoU of {nms_iou:g}. Give a --conf "
                f"of {rules.confidence:g} or more and an --nms of {rules.nms_iou:g} or less, or export it with others."
            )

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

        Raises:
            UsageError: When a suppression inside the model has dropped what the thresholds ask for.
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
        """Do what a call of the predictor does, with images that went through `fit`.

        Args:
            fitted: What `fit` returned, of one image or more.
            sizes: Heights and widths that the images had before.
            confidence: Lowest score to keep.
            nms_iou: IoU above which the weaker of two boxes is dropped.
            class_agnostic: Let boxes of different classes suppress one another.
            multi_label: Let a box be a detection of each class that is sure enough.
        """
        self.check_thresholds(confidence, nms_iou)
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
        boxes, scores = run_in_chunks(self.network, (batch,), self.fixed_batch, pad=True)
        return boxes, scores


def is_deployed(model: str | Path) -> bool:
    """Return whether ``model`` is a deployed folder, an ONNX or an OpenVINO file: most run without PyTorch."""
    path = Path(model)
    return path.is_dir() or path.suffix.lower() in GRAPH_SUFFIXES


def graph_of(path: Path) -> Path | None:
    """Return the file of the graph where ``path`` is one, or the folder of an exported one; else None."""
    if path.suffix.lower() in GRAPH_SUFFIXES and not path.is_dir():
        return path
    if not path.is_dir() or (path / MANIFEST_NAME).exists():
        return None
    graphs = [file for file in path.iterdir() if file.suffix.lower() in GRAPH_SUFFIXES]
    return graphs[0] if len(graphs) == 1 else None


def load_predictor(
    model: str | Path,
    *,
    precision: EvalPrecision = "32",
    input_size: int | tuple[int, int] | None = None,
    experiment: Experiment | None = None,
    trust: bool = False,
    threads: int | None = None,
) -> Predictor:
    """Return the predictor of a model; nothing in its file is executed unless ``trust`` says so.

    Args:
        model: A published name (``yolox_nano``), a checkpoint, a folder saved by the inference engine, or an ONNX or
            OpenVINO file (or its folder) of this package or of the official export.
        precision: What the network of a checkpoint computes in.
        input_size: Side, or height and width, of the network's input; None takes the model's own.
        experiment: Describes a checkpoint that does not describe itself.
        trust: Load deployed models that are programs (TorchScript, Inductor, IPEX).
        threads: Threads of the network; None takes those that the model was saved with, or one for each core.

    Raises:
        UsageError: When a deployed model is asked for another input size.
        ModelFileError: When the model cannot be read.
    """
    if not is_deployed(model):
        import torch

        from yolox.checkpoint import load_model

        if threads is not None:
            torch.set_num_threads(threads)
        return predictor_of_checkpoint(load_model(model, experiment), precision, input_size)
    if input_size is not None:
        raise UsageError("the input size of a deployed model is fixed when it is made. Leave the size out.")
    path = Path(model)
    graph = graph_of(path)
    if graph is not None:
        from yolox.prediction.graph_models import predictor_of_graph

        return predictor_of_graph(graph, threads)
    return _from_artifact(path, trust, threads)


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


def _from_artifact(folder: Path, trust: bool, threads: int | None) -> Predictor:
    """Load a model saved by the inference engine; PyTorch is imported only if its back end needs it."""
    from yolox.inference.artifacts.manifest import read_manifest
    from yolox.inference.artifacts.model import load_model

    described = read_manifest(folder)
    module = _described_detector(described.metadata, folder) if described.backend == "eager" else None
    settings = None if threads is None else replace(described.settings, threads=threads, streams=1)
    model = load_model(folder, trust=trust, module=module, settings=settings)
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
