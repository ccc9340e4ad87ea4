"""The only evaluation loop: every batch is predicted by a detector made quick, filtered, timed and counted once."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from yolox.errors import DataError
from yolox.evaluation.coco_metric import CocoResult, coco_metric
from yolox.evaluation.postprocess import postprocess, rescale
from yolox.inference.convert.folding import fold_normalisations
from yolox.models.decoding import DecodedDetector
from yolox.models.detector import Detector
from yolox.precision_names import EvalPrecision
from yolox.structures import Batch, Detections, Size

Predict = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps uint8 images ``[B, 3, H, W]`` to ``boxes_xyxy`` ``[B, A, 4]`` and ``scores`` ``[B, A, C]``."""
SMALL = (64, 64)
"""Height and width of an image that shows the order of the layers."""


@dataclass
class Times:
    """Seconds spent over ``num_images`` images, of all batches.

    Args:
        loading: Waiting for the loader.
        forward: In the network, decoding included.
        nms: Filtering, suppression and scaling back.
        num_images: Images behind these sums.
    """

    loading: float = 0.0
    forward: float = 0.0
    nms: float = 0.0
    num_images: int = 0

    def per_image_ms(self) -> dict[str, float]:
        """Return mean milliseconds per image; ``total_ms`` is network and NMS, loading stands beside it."""
        scale = 1000.0 / self.num_images if self.num_images else math.nan
        return {
            "forward_ms": self.forward * scale,
            "nms_ms": self.nms * scale,
            "total_ms": (self.forward + self.nms) * scale,
            "loading_ms": self.loading * scale,
        }


@dataclass
class Share:
    """What one process found: detections by image id in original pixels, and its times."""

    detections: dict[int, Detections] = field(default_factory=dict)
    times: Times = field(default_factory=Times)


@dataclass(frozen=True)
class EvaluationResult:
    """The outcome of an evaluation.

    Args:
        coco: The twelve COCO numbers and those of each class.
        times: Sums over all processes.
        detections: Final detections by image id, in original pixels.
        num_missing: Images of the data set that the loader did not deliver; they are left out of the AP.
    """

    coco: CocoResult
    times: Times
    detections: Mapping[int, Detections]
    num_missing: int

    @property
    def metrics(self) -> Mapping[str, float]:
        """``AP``, ``AP50``, ... ``ARl``, 0...1; NaN where nothing is labelled."""
        return self.coco.metrics

    def as_json(self) -> dict[str, Any]:
        """Return the numbers as plain values; NaN becomes None."""
        numbers = {**self.metrics, **self.times.per_image_ms()}
        per_class = [
            {"name": row.name, "AP": _or_none(row.ap), "AR": _or_none(row.ar), "objects": row.num_objects}
            for row in self.coco.per_class
        ]
        return {
            **{key: _or_none(value) for key, value in numbers.items()},
            "images": self.coco.num_images,
            "images_missing": self.num_missing,
            "objects": self.coco.num_objects,
            "detections": self.coco.num_detections,
            "per_class": per_class,
        }


def evaluate(
    predict: Predict,
    batches: Iterable[Batch],
    ground_truth: Mapping[str, Any],
    *,
    confidence: float,
    nms_iou: float,
    on_batch: Callable[[int], None] | None = None,
    gather: Callable[[Share], Sequence[Share]] | None = None,
) -> EvaluationResult:
    """Return COCO AP and times of ``predict`` on all ``batches``.

    Args:
        predict: The network with its decoding, in evaluation mode.
        batches: Letterboxed images; with several processes, this process's share of them.
        ground_truth: The data set as a COCO dict, the same in every process.
        confidence: Lowest score to keep.
        nms_iou: Threshold of the class-aware suppression.
        on_batch: Called after each batch with the number of images done here.
        gather: Returns the shares of all processes, in each of them. Images that several processes saw (samplers pad
            their shares) count once, so the AP is that of a single process. None for one process.

    Raises:
        DataError: When no image came from the loader.
    """
    share = predict_share(predict, batches, confidence=confidence, nms_iou=nms_iou, on_batch=on_batch)
    return merge_shares([share] if gather is None else gather(share), ground_truth)


def merge_shares(shares: Sequence[Share], ground_truth: Mapping[str, Any]) -> EvaluationResult:
    """Return COCO AP and times of what all processes found; an image that several of them saw counts once.

    Raises:
        DataError: When none of them saw an image.
    """
    detections: dict[int, Detections] = {}
    times = Times()
    for part in shares:
        for image_id, found in part.detections.items():
            detections.setdefault(image_id, found)
        times.loading += part.times.loading
        times.forward += part.times.forward
        times.nms += part.times.nms
        times.num_images += part.times.num_images
    if not detections:
        raise DataError("the loader delivered no image to evaluate; expected at least one. Check the data set.")
    seen = only_images(ground_truth, set(detections))
    num_missing = len(ground_truth["images"]) - len(seen["images"])
    return EvaluationResult(coco_metric(seen, detections), times, detections, num_missing)


def predict_share(
    predict: Predict,
    batches: Iterable[Batch],
    *,
    confidence: float,
    nms_iou: float,
    multi_label: bool = False,
    on_batch: Callable[[int], None] | None = None,
) -> Share:
    """Return what ``predict`` finds in this process's batches; arguments as for `evaluate` and `postprocess`."""
    share = Share()
    times = share.times
    finished = time.perf_counter()
    with torch.inference_mode():
        for batch in batches:
            loaded = time.perf_counter()
            boxes, scores = predict(batch.images)
            predicted = time.perf_counter()
            found = postprocess(
                boxes.float().numpy(),
                scores.float().numpy(),
                confidence=confidence,
                nms_iou=nms_iou,
                multi_label=multi_label,
            )
            input_size = Size(*batch.images.shape[-2:])
            rows = zip(batch.image_ids.tolist(), batch.original_sizes.tolist(), found, strict=True)
            for image_id, original_size, detections in rows:
                share.detections[image_id] = rescale(detections, Size(*original_size), input_size)
            times.loading += loaded - finished
            finished = time.perf_counter()
            times.forward += predicted - loaded
            times.nms += finished - predicted
            times.num_images += len(found)
            if on_batch is not None:
                on_batch(times.num_images)
    return share


def only_images(ground_truth: Mapping[str, Any], image_ids: set[int]) -> dict[str, Any]:
    """Return the ground truth of some images: those that cannot be read are no misses of the detector."""
    return {
        **ground_truth,
        "images": [image for image in ground_truth["images"] if image["id"] in image_ids],
        "annotations": [row for row in ground_truth["annotations"] if row["image_id"] in image_ids],
    }


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def build_predict(detector: Detector, precision: EvalPrecision = "32") -> Predict:
    """Return a function from uint8 images ``[B, 3, H, W]`` to boxes and scores; ``detector`` stays as it is.

    Args:
        detector: The network.
        precision: ``32``, or ``bf16`` for the network; decoding is float32 in both.
    """
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    plain = DecodedDetector(copy.deepcopy(detector)).eval()
    model = fold_normalisations(plain, (torch.zeros(1, 3, *SMALL),))
    model = model.to(kind).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def predict(images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            # whole numbers up to 255 are exact in bf16
            boxes, scores = model(images.to(dtype=kind, memory_format=torch.channels_last))
        return boxes, scores

    return predict
