"""The images that the inference table measures, calibrates and evaluates on: a labelled data set, or what there is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from yolox.config import DataConfig
from yolox.errors import DataError
from yolox.structures import Batch, Size
from yolox.tables import shortened

if TYPE_CHECKING:
    from yolox.checkpoint import LoadedModel
    from yolox.data.coco_dataset import CocoDataset

CALIBRATION_BATCH = 32
_SPLITS: tuple[Literal["val", "train"], ...] = ("val", "train")


@dataclass(frozen=True)
class EvalImages:
    """Letterboxed images in a file that every process maps, so that they are decoded once.

    Args:
        path: ``.npy`` file, uint8 ``[N, 3, H, W]``.
        image_ids: ``[N]``.
        original_sizes: Height and width of each image, ``[N, 2]``.
        ground_truth: The data set as a COCO dict; without annotations when there are no labels to evaluate by.
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
    def num_objects(self) -> int:
        """How many labelled objects count for AP: crowd regions do not."""
        return sum(not row.get("iscrowd", 0) for row in self.ground_truth["annotations"])

    @property
    def has_labels(self) -> bool:
        """Whether any object counts."""
        return self.num_objects > 0

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
                torch.zeros(len(images[part]), dtype=torch.int64),
            )


@dataclass(frozen=True)
class InferenceImages:
    """All images of one run of the table.

    Args:
        evaluation: What latency is measured on and, when it has labels, AP.
        calibration: Batches of float32 ``[B, 3, H, W]`` for int8 methods.
        notes: Lines that a user should see: what was not found, and how to get it.
    """

    evaluation: EvalImages
    calibration: Sequence[NDArray[np.float32]]
    notes: tuple[str, ...] = ()


def read_inference_images(
    config: DataConfig, loaded: LoadedModel, size: Size, limits: tuple[int, int], path: Path, calib: Path | None = None
) -> InferenceImages:
    """Read the images to measure, evaluate and calibrate on.

    A data set that the user named must fit the model. The one found without being named (the default place, or the
    built-in sample set) need not: its images are used, and AP is not measured.

    Args:
        config: Which data set.
        loaded: The model, whose classes the labels are matched to by name.
        size: Height and width of the network's input.
        limits: Numbers of images for AP and for calibration, at most.
        path: The ``.npy`` file for the evaluation images.
        calib: A folder of pictures to calibrate on instead of the data set's training images.

    Raises:
        DataError: When the named data set is missing or does not fit, or a folder holds no readable picture.
    """
    num_images, num_calibration = limits
    pictures = None if calib is None else read_pictures(calib, size, max(num_images, num_calibration))
    notes: list[str] = []
    try:
        evaluation = read_eval_images(config, loaded, size, num_images, path)
        if not evaluation.has_labels:
            notes.append(_without_ap(f"{evaluation.source} has no labels that count"))
    except DataError as error:
        if _was_named(config, loaded.experiment.data):
            raise
        notes.append(_without_ap(str(error)))
        found, source = (pictures, str(calib)) if pictures is not None else _any_images(config, size, num_images)
        evaluation = _unlabelled(found[:num_images], path, source)
    if pictures is not None:
        calibration = _in_batches(pictures[:num_calibration])
    else:
        calibration = calibration_images(config, size, num_calibration, CALIBRATION_BATCH)
    if not calibration:
        notes.append("no training images: int8 rows are calibrated on the evaluation images")
        calibration = [evaluation.batch(min(len(evaluation), num_calibration))]
    return InferenceImages(evaluation, calibration, tuple(notes))


def read_eval_images(config: DataConfig, loaded: LoadedModel, size: Size, limit: int, path: Path) -> EvalImages:
    """Read at most ``limit`` evaluation images and write them to ``path``.

    Raises:
        DataError: When the data is missing, or labelled with classes that the model does not know.
    """
    from yolox.data.datamodule import find_dataset
    from yolox.data.dataset_paths import load_split
    from yolox.evaluation.loop import only_images

    split = find_dataset(config)[0].require("val")
    dataset = load_split(split)
    if dataset.class_names != loaded.class_names:
        try:
            dataset = load_split(split, tuple(enumerate(loaded.class_names, start=1)))
        except DataError as error:
            if loaded.has_own_names or len(loaded.class_names) != len(dataset.class_names):
                raise DataError(
                    f"'{dataset.source}' labels {shortened(dataset.class_names, 6)}; the model knows "
                    f"{shortened(loaded.class_names, 6)}. Check --data_dir."
                ) from error
    images, indices = _images_of(dataset, size, limit)
    np.save(path, images, allow_pickle=False)
    truth = dataset.ground_truth_json()
    ids = np.array([truth["images"][index]["id"] for index in indices], dtype=np.int64)
    sizes = np.array([dataset.size(index) for index in indices], dtype=np.int64).reshape(-1, 2)
    truth = only_images(truth, set(ids.tolist()))
    return EvalImages(path, ids, sizes, truth, f"{dataset.source}, {len(ids)} of {len(dataset)} images")


def calibration_images(config: DataConfig, size: Size, limit: int, batch_size: int) -> list[NDArray[np.float32]]:
    """Return batches of training images, or none when there is no training split."""
    try:
        images, _ = _images_of(_load_split(config, "train"), size, limit)
    except DataError:
        return []
    return _in_batches(images, batch_size)


def read_pictures(folder: Path, size: Size, limit: int) -> NDArray[np.uint8]:
    """Return the first readable pictures of a folder and its sub-folders, letterboxed, ``[N, 3, H, W]``.

    Raises:
        DataError: When there is none.
    """
    from yolox.data.image_files import IMAGE_SUFFIXES, list_images
    from yolox.prediction.sources import ImageFile

    if not folder.is_dir():
        raise DataError(f"'{folder}' is not a folder; expected a folder of pictures to calibrate on. Check --calib.")
    pictures = (ImageFile(file.parent, file.name).read() for file in list_images(folder)[0])
    wanted = f"'{folder}' holds no readable picture; expected files ending in {', '.join(sorted(IMAGE_SUFFIXES))}."
    return _letterboxed(pictures, size, limit, wanted)[0]


def _without_ap(reason: str) -> str:
    return (
        f"AP is not measured, so no row can be called accurate ({reason.rstrip('.')}). To get AP: --data_dir DIR, a "
        "data set labelled with the model's classes."
    )


def _was_named(config: DataConfig, stored: DataConfig) -> bool:
    """Whether the user named the data in this command; what a checkpoint remembers of its training does not count."""
    fields = ("data_dir", "val_ann", "val_images")
    return any(getattr(config, name) not in (None, getattr(stored, name)) for name in fields)


def _any_images(config: DataConfig, size: Size, limit: int) -> tuple[NDArray[np.uint8], str]:
    """Return images of the data set whatever its labels say, or of the built-in sample set, and where they lie."""
    anything = replace(config, data_dir=None, train_ann=None, val_ann=None, train_images=None, val_images=None)
    failure: DataError | None = None
    for candidate in (config, anything):
        for split in _SPLITS:
            try:
                dataset = _load_split(candidate, split)
                return _images_of(dataset, size, limit)[0], dataset.source
            except DataError as error:
                failure = error
    assert failure is not None
    raise failure


def _load_split(config: DataConfig, split: Literal["train", "val"]) -> CocoDataset:
    from yolox.data.datamodule import find_dataset
    from yolox.data.dataset_paths import load_split

    return load_split(find_dataset(config)[0].require(split))


def _unlabelled(images: NDArray[np.uint8], path: Path, source: str) -> EvalImages:
    np.save(path, images, allow_pickle=False)
    sizes = np.full((len(images), 2), images.shape[2:], dtype=np.int64)
    nothing: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    return EvalImages(path, np.arange(len(images)), sizes, nothing, f"{source}, {len(images)} images without labels")


def _images_of(dataset: CocoDataset, size: Size, limit: int) -> tuple[NDArray[np.uint8], list[int]]:
    """Return readable images ``[N, 3, H, W]`` of a data set and their indices.

    Raises:
        DataError: When none is readable.
    """
    from yolox.data.image_source import ImageSource

    source = ImageSource(dataset, size)
    wanted = f"{dataset.source} has no readable image; expected at least one. Check the data set."
    return _letterboxed(map(source.image, range(len(dataset))), size, limit, wanted)


def _letterboxed(
    pictures: Iterable[NDArray[np.uint8] | None], size: Size, limit: int, wanted: str
) -> tuple[NDArray[np.uint8], list[int]]:
    """Return the first ``limit`` readable pictures ``[N, 3, H, W]`` and their places; where there are none, refuse."""
    from yolox.data.image_ops import letterbox

    readable = ((index, picture) for index, picture in enumerate(pictures) if picture is not None)
    found = {index: letterbox(picture, size)[0].transpose(2, 0, 1) for index, picture in islice(readable, limit)}
    if not found:
        raise DataError(wanted)
    return np.stack(list(found.values())), list(found)


def _in_batches(images: NDArray[np.uint8], size: int = CALIBRATION_BATCH) -> list[NDArray[np.float32]]:
    return [images[start : start + size].astype(np.float32) for start in range(0, len(images), size)]
