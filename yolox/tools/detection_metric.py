"""What the inference engine needs to know of a detector: images to measure on, and AP as its metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from yolox.config import DataConfig
from yolox.errors import DataError
from yolox.structures import Batch, Size

if TYPE_CHECKING:
    from yolox.checkpoint import LoadedModel
    from yolox.data.coco import CocoDataset

__all__ = ["DetectionMetric", "EvalImages", "calibration_images", "read_eval_images"]


@dataclass(frozen=True)
class EvalImages:
    """Letterboxed images in a file that every process maps, so that they are decoded once.

    Args:
        path: ``.npy`` file, uint8 ``[N, 3, H, W]``.
        image_ids: ``[N]``.
        original_sizes: Height and width of each image, ``[N, 2]``.
        ground_truth: The data set as a COCO dict.
        source: One line: which data.
    """

    path: Path
    image_ids: NDArray[np.int64]
    original_sizes: NDArray[np.int64]
    ground_truth: Mapping[str, Any]
    source: str

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def has_labels(self) -> bool:
        """Whether any object is labelled."""
        return bool(self.ground_truth["annotations"])

    def batch(self, size: int) -> NDArray[np.float32]:
        """Return a batch of ``size`` images as the network takes them; few images come several times."""
        images = np.load(self.path, mmap_mode="r")
        return np.asarray(images[np.arange(size) % len(images)], dtype=np.float32)

    def batches(self, size: int) -> Iterator[Batch]:
        """Yield all images in batches, as an evaluation loader does."""
        import torch

        from yolox.structures import Targets

        images = np.load(self.path, mmap_mode="c")
        nothing = Targets(torch.zeros(0, 0, 4), torch.zeros(0, 0, dtype=torch.int64), torch.zeros(0, 0).bool())
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            yield Batch(
                torch.from_numpy(images[part]),
                nothing,
                torch.from_numpy(self.image_ids[part]),
                torch.from_numpy(self.original_sizes[part]),
            )


@dataclass(frozen=True)
class DetectionMetric:
    """``metric(model)``: AP and AP50 of anything that maps float images to boxes and scores.

    Args:
        images: The evaluation images.
        batch_size: Images per call.
        confidence: Lowest score to keep.
        nms_iou: Threshold of the suppression.
    """

    images: EvalImages
    batch_size: int
    confidence: float
    nms_iou: float

    def __call__(self, model: Callable[..., Any]) -> dict[str, float]:
        """Return ``AP`` (0.50:0.95) and ``AP50``, 0...1."""
        import torch

        from yolox.evaluation.loop import evaluate

        def predict(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            boxes, scores = model(images.float())
            return boxes, scores

        result = evaluate(
            predict,
            self.images.batches(self.batch_size),
            self.images.ground_truth,
            confidence=self.confidence,
            nms_iou=self.nms_iou,
        )
        return {name: result.metrics[name] for name in ("AP", "AP50")}


def read_eval_images(config: DataConfig, loaded: LoadedModel, size: Size, limit: int, path: Path) -> EvalImages:
    """Read at most ``limit`` evaluation images and write them to ``path``.

    Raises:
        DataError: When the data is missing, or labelled with classes that the model does not know.
    """
    from yolox.data.datamodule import find_dataset
    from yolox.data.dataset_paths import load_split

    split = find_dataset(config)[0].require("val")
    dataset = load_split(split)
    if dataset.class_names != loaded.class_names:
        try:
            dataset = load_split(split, tuple(enumerate(loaded.class_names, start=1)))
        except DataError:
            if loaded.has_own_names or len(loaded.class_names) != len(dataset.class_names):
                raise
    images, indices = _letterboxed(dataset, size, limit)
    np.save(path, images, allow_pickle=False)
    truth = dataset.ground_truth_json()
    ids = np.array([truth["images"][index]["id"] for index in indices], dtype=np.int64)
    sizes = np.array([dataset.size(index) for index in indices], dtype=np.int64).reshape(-1, 2)
    kept = set(ids.tolist())
    truth["images"] = [image for image in truth["images"] if image["id"] in kept]
    truth["annotations"] = [row for row in truth["annotations"] if row["image_id"] in kept]
    return EvalImages(path, ids, sizes, truth, f"{dataset.source}, {len(ids)} of {len(dataset)} images")


def calibration_images(config: DataConfig, size: Size, limit: int, batch_size: int) -> list[NDArray[np.float32]]:
    """Return batches of training images, or none when there is no training split."""
    from yolox.data.datamodule import find_dataset
    from yolox.data.dataset_paths import load_split

    try:
        dataset = load_split(find_dataset(config)[0].require("train"))
    except DataError:
        return []
    images, _ = _letterboxed(dataset, size, limit)
    return [images[start : start + batch_size].astype(np.float32) for start in range(0, len(images), batch_size)]


def _letterboxed(dataset: CocoDataset, size: Size, limit: int) -> tuple[NDArray[np.uint8], list[int]]:
    """Return readable images ``[N, 3, H, W]`` and their indices.

    Raises:
        DataError: When none is readable.
    """
    from yolox.data.image_ops import letterbox
    from yolox.data.image_source import ImageSource

    source = ImageSource(dataset, size)
    images: list[NDArray[np.uint8]] = []
    indices: list[int] = []
    for index in range(len(dataset)):
        if len(images) == limit:
            break
        image = source.image(index)
        if image is not None:
            images.append(letterbox(image, size)[0].transpose(2, 0, 1))
            indices.append(index)
    if not images:
        raise DataError(f"{dataset.source} has no readable image; expected at least one. Check the data set.")
    return np.stack(images), indices
