"""The data of an experiment as Lightning wants it."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import pytorch_lightning as pl
import torch

from yolox.config import DataConfig
from yolox.cpu.machine import read_machine
from yolox.data.cache import open_cache
from yolox.data.coco_dataset import CocoDataset
from yolox.data.dataset_paths import DatasetPaths, default_data_dir, load_split, resolve_dataset
from yolox.data.image_source import ImageSource
from yolox.data.loader import TrainLoader, ValLoader, default_num_workers
from yolox.data.mosaic import Affine
from yolox.data.report import DatasetReport, report_dataset
from yolox.data.sampling import RequestStream, WeightedImages, repeat_factors
from yolox.data.training_samples import Augmentation, TrainingSamples
from yolox.data.transforms import TrainTransform
from yolox.errors import DataError, printable
from yolox.files import mark_inputs
from yolox.structures import Size

_WORTH_A_WORKER = 512  # images that take as long to read as a worker takes to start


def build_augmentation(config: DataConfig) -> Augmentation:
    """Return the augmentation that a configuration describes."""
    return Augmentation(
        transform=TrainTransform(config.input_size, config.hsv_prob, config.flip_prob, config.max_labels),
        mosaic_prob=config.mosaic_prob,
        mixup_prob=config.mixup_prob if config.enable_mixup else 0.0,
        mixup_scales=config.mixup_scale,
        affine=Affine(config.degrees, config.translate, config.mosaic_scale, config.shear),
    )


def find_dataset(config: DataConfig) -> tuple[DatasetPaths, str]:
    """Return where the data lies, and the line that says which data and why; nothing may replace it from now on."""
    folder, reason = default_data_dir(config.data_dir)
    given = (config.train_ann, config.val_ann, config.train_images, config.val_images)
    paths = resolve_dataset(folder, *given, val_fraction=config.val_fraction)
    for split in (paths.train, paths.val):
        if split is not None:  # a run's folder may lie in the data set's root, not among its images
            mark_inputs(split.labels, *(images for images in split.image_dirs if images != paths.root))
    return paths, printable(reason)


def build_val_loader(
    config: DataConfig,
    *,
    batch_size: int,
    test_size: Size,
    class_names: Sequence[str] | None = None,
    share: tuple[int, int] = (0, 1),
) -> ValLoader:
    """Return the evaluation images alone; ``.dataset`` is their ground truth. Training labels are not read.

    Args:
        config: Which data.
        batch_size: Images per batch.
        test_size: Size of the network's input.
        class_names: Names in the order of the model's classes; labels are matched to them by name.
        share: This process and the number of processes, each of which gets every so many-th image.

    Raises:
        DataError: When the data is missing or malformed, or uses a class that the model does not know.
    """
    paths, _ = find_dataset(config)
    categories = None if class_names is None else tuple(enumerate(class_names, start=1))
    source = ImageSource(load_split(paths.require("val"), categories), test_size)
    rank, world = share
    num_workers = _num_workers(config, len(source) // world)
    return ValLoader(source, batch_size, num_workers, rank=rank, world=world)


def _num_workers(config: DataConfig, num_val_images: int | None = None) -> int:
    """Return the number of workers for training, or for the evaluation of so many images."""
    if config.data_num_workers is not None:
        return config.data_num_workers
    if num_val_images is not None and num_val_images < _WORTH_A_WORKER:
        return 0
    # a process among several computes on fewer threads than the machine has cores
    return default_num_workers(min(torch.get_num_threads(), read_machine().num_threads))


class YoloxDataModule(pl.LightningDataModule):
    """Training and evaluation data.

    Indices are read and loaders made when first asked for, so the module can be sent to other processes.

    Args:
        config: Which data and how it varies.
        batch_size: Total over all processes.
        test_size: Size of images in evaluation.
        seed: Fixes order and samples.
        rank: This process, unless a Lightning trainer knows better.
        world: Number of processes, likewise.
        final_phase_from_epoch: First epoch (from 0) without mosaic; ``None`` for never.

    Raises:
        DataError: When the data is missing or malformed.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        batch_size: int,
        test_size: Size,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        final_phase_from_epoch: int | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.batch_size = batch_size
        self.test_size = test_size
        self.seed = seed
        self.rank, self.world = rank, world
        self.final_phase_from_epoch = final_phase_from_epoch
        self.paths, self.reason = find_dataset(config)
        self._train_set: CocoDataset | None = None
        self._val_set: CocoDataset | None = None
        self._train_loader: TrainLoader | None = None
        self._val_loader: ValLoader | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "trainer": None, "_train_loader": None, "_val_loader": None}

    @property
    def train_set(self) -> CocoDataset:
        """Index of the training images."""
        if self._train_set is None:
            self._train_set = load_split(self.paths.require("train"))
        return self._train_set

    @property
    def val_set(self) -> CocoDataset:
        """Index of the evaluation images, with the class indices of the training images."""
        if self._val_set is None:
            categories = self.train_set.categories if self.paths.train else None
            self._val_set = load_split(self.paths.require("val"), categories)
        return self._val_set

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in the order of the class indices."""
        return (self.train_set if self.paths.train else self.val_set).class_names

    @property
    def num_classes(self) -> int:
        """Number of categories in the data."""
        return len(self.class_names)

    @property
    def batches_per_epoch(self) -> int:
        """Training steps of an epoch."""
        draws = len(self.train_set) if self.weighted is None else self.weighted.draws_per_pass
        return -(-draws // self.batch_size)

    @cached_property
    def weighted(self) -> WeightedImages | None:
        """What draws images with rare classes more often; None where each is drawn once."""
        threshold = self.config.repeat_threshold
        return WeightedImages(repeat_factors(self.train_set, threshold)) if threshold > 0 else None

    def report(self) -> DatasetReport:
        """Return counts of both splits and what looks wrong; a missing split is an error.

        Raises:
            DataError: When a split is missing or malformed.
        """
        self.paths.require("val")
        return report_dataset(self.train_set, self.val_set, max_labels=self.config.max_labels)

    def setup(self, stage: str) -> None:
        """Look whether this machine has the images: the index may have been read on another.

        Raises:
            DataError: When a folder is not there.
        """
        sets = [*([self.train_set] if self.paths.train else []), *([self.val_set] if self.paths.val else [])]
        for folder in {data.path(0).parent for data in sets if len(data)}:
            if not folder.is_dir():
                raise DataError(
                    f"the images' folder '{folder}' does not exist on the machine '{socket.gethostname()}'; every "
                    "machine that trains needs the data at the same place. Copy or mount it there."
                )

    def check(self, world: int) -> None:
        """Refuse before a run what would end it later.

        Args:
            world: The number of processes that will share each batch.

        Raises:
            DataError: When a split is missing, malformed or empty.
            UsageError: When the batch does not divide among the processes.
        """
        self._stream(0, world)
        _ = self.val_set

    def _stream(self, rank: int, world: int) -> RequestStream:
        final = self.final_phase_from_epoch
        return RequestStream(
            num_images=len(self.train_set),
            batch_size=self.batch_size,
            seed=self.seed,
            rank=rank,
            world=world,
            no_mosaic_from_batch=None if final is None else final * self.batches_per_epoch,
            weighted=self.weighted,
        )

    def train_dataloader(self) -> TrainLoader:
        """Return the training loader: one for the whole run, at the batch where the trainer stands."""
        if self._train_loader is None:
            stream = self._stream(*self._place())
            source = self._source(self.train_set, self.config.input_size, reduced_decode=self.config.reduced_decode)
            samples = TrainingSamples(source, build_augmentation(self.config), self.weighted)
            self._train_loader = TrainLoader(samples, stream, _num_workers(self.config))
            if self.trainer is not None:
                self._train_loader.seek(self.trainer.global_step * self.trainer.accumulate_grad_batches)
        return self._train_loader

    def evaluation_loader(self) -> ValLoader:
        """Return the evaluation images. Not `val_dataloader`: the loop is `evaluation.evaluate`, not Lightning's."""
        if self._val_loader is None:
            rank, world = self._place()
            source = self._source(self.val_set, self.test_size, reduced_decode=False)
            num_workers = _num_workers(self.config, len(source) // world)
            self._val_loader = ValLoader(source, self.batch_size // world, num_workers, rank=rank, world=world)
        return self._val_loader

    def seek(self, batch: int) -> None:
        """Go on with training batch number ``batch``, counted from the start of the run."""
        self.train_dataloader().seek(batch)

    def teardown(self, stage: str) -> None:
        """End the workers."""
        for loader in (self._train_loader, self._val_loader):
            if loader is not None:
                loader.close()

    def _source(self, dataset: CocoDataset, target: Size, *, reduced_decode: bool) -> ImageSource:
        # evaluation reads each image once: no cache unless asked for
        kind = self.config.cache or (None if dataset is self._train_set else "off")
        copies = self._place()[1]
        cache = open_cache(kind, dataset, target, reduced_decode=reduced_decode, copies=copies)
        return ImageSource(dataset, target, reduced_decode=reduced_decode, cache=cache)

    def _place(self) -> tuple[int, int]:
        trainer = self.trainer
        return (self.rank, self.world) if trainer is None else (trainer.global_rank, trainer.world_size)
