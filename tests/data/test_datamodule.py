from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from yolox.config import DataConfig
from yolox.data.datamodule import YoloxDataModule, build_val_loader
from yolox.errors import DataError
from yolox.structures import Batch, Size

MakeCoco = Callable[..., Path]
SIZE = Size(64, 64)


def module(root: Path, **options: Any) -> YoloxDataModule:
    config = DataConfig(data_dir=str(root), input_size=SIZE, data_num_workers=0)
    return YoloxDataModule(config, test_size=SIZE, **{"batch_size": 4, **options})


def test_facts(make_coco: MakeCoco) -> None:
    data = module(make_coco(num_train=9))
    assert data.class_names == ("a", "b")
    assert data.num_classes == 2
    assert data.batches_per_epoch == 3
    assert str(data.paths.root) in data.reason


def test_survives_pickling_with_loaders_open(make_coco: MakeCoco) -> None:
    data = module(make_coco(), seed=3)
    first = next(iter(data.train_dataloader()))
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(next(iter(copy.train_dataloader())).images, first.images)


def test_final_phase_has_no_mosaic(make_coco: MakeCoco) -> None:
    data = module(make_coco(num_train=8), final_phase_from_epoch=3)
    assert data.train_dataloader().stream.no_mosaic_from_batch == 6


def test_ranks_divide_the_batch(make_coco: MakeCoco) -> None:
    root = make_coco()
    parts = [next(iter(module(root, rank=rank, world=2).train_dataloader())) for rank in (0, 1)]
    whole = next(iter(module(root).train_dataloader()))
    assert torch.equal(torch.stack([parts[0].images, parts[1].images], 1).flatten(0, 1), whole.images)


def test_val_classes_follow_the_training_set(make_coco: MakeCoco) -> None:
    root = make_coco()
    path = root / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    categories = [{"id": 3, "name": "b"}, {"id": 7, "name": "a"}]
    path.write_text(json.dumps({**content, "categories": categories}))
    data = module(root)
    assert data.val_set.class_names == data.class_names
    path.write_text(json.dumps({**content, "categories": [{"id": 3, "name": "new"}, {"id": 7, "name": "b"}]}))
    with pytest.raises(DataError, match="category 'new'"):
        _ = module(root).val_set


def test_evaluation_alone_reads_no_training_labels(make_coco: MakeCoco) -> None:
    root = make_coco()
    (root / "annotations" / "instances_train2017.json").write_text("{")
    config = DataConfig(data_dir=str(root), data_num_workers=0)
    loader = build_val_loader(config, batch_size=2, test_size=SIZE)
    assert sum(len(batch.images) for batch in loader) == 3
    assert loader.dataset.class_names == ("a", "b")
    other = build_val_loader(config, batch_size=2, test_size=SIZE, class_names=("x", "b", "a"))
    assert other.dataset.class_names == ("x", "b", "a")


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_cache_changes_no_batch(make_coco: MakeCoco, cache_folder: Path, cache: Any) -> None:
    root = make_coco()
    plain = module(root)
    plain.config = replace(plain.config, cache="off")
    config = DataConfig(data_dir=str(root), input_size=SIZE, data_num_workers=0, cache=cache)
    cached = YoloxDataModule(config, batch_size=4, test_size=SIZE)
    for _ in range(3):
        for mine, theirs in zip(plain.train_dataloader(), cached.train_dataloader(), strict=True):
            assert torch.equal(mine.images, theirs.images)
        for mine, theirs in zip(plain.evaluation_loader(), cached.evaluation_loader(), strict=True):
            assert torch.equal(mine.images, theirs.images)


class Recorder(pl.LightningModule):
    """Trains one number and notes which images it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []

    def training_step(self, batch: Batch, _: int) -> torch.Tensor:
        self.seen.append(batch.image_ids.tolist())
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(root: Path, folder: Path, epochs: int, resume: str | None = None) -> Recorder:
    recorder = Recorder()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(recorder, datamodule=module(root), ckpt_path=resume)
    return recorder


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists:UserWarning")
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # Lightning calls what PyTorch renamed
def test_lightning_trains_and_resumes_on_the_same_stream(make_coco: MakeCoco, tmp_path: Path) -> None:
    root = make_coco(num_train=7)
    whole = fit(root, tmp_path / "whole", 4)
    assert len(whole.seen) == 8
    first = fit(root, tmp_path / "first", 2)
    assert first.seen == whole.seen[:4]
    (checkpoint,) = (tmp_path / "first").rglob("*.ckpt")
    rest = fit(root, tmp_path / "first", 4, str(checkpoint))
    assert rest.seen == whole.seen[4:]


@pytest.mark.realdata
def test_coco_mini(coco_mini: Path) -> None:
    data = YoloxDataModule(
        DataConfig(data_dir=str(coco_mini), data_num_workers=0), batch_size=16, test_size=Size(416, 416)
    )
    assert (len(data.train_set), len(data.val_set), data.num_classes) == (128, 64, 80)
    batch = next(iter(data.evaluation_loader()))
    assert batch.images.shape == (16, 3, 416, 416)
    assert batch.original_sizes[0].tolist() == [426, 640]


def test_a_machine_without_the_images_is_named(make_coco: MakeCoco) -> None:
    import shutil
    import socket

    data = module(make_coco())
    data.setup("fit")
    assert data.train_set
    shutil.rmtree(data.train_set.path(0).parent)
    there = pickle.loads(pickle.dumps(data))  # as another machine gets it
    with pytest.raises(DataError, match=f"machine '{socket.gethostname()}'.*same place"):
        there.setup("fit")
