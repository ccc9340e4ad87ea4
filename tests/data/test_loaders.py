"""Loaders: the same batches whatever the workers, endless epochs, resuming, bad images."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing.synchronize
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from process_state import alive, left

from yolox.data.coco_dataset import CocoDataset
from yolox.data.dataset_paths import load_split, resolve_dataset
from yolox.data.image_source import ImageSource
from yolox.data.loader import TrainLoader, ValLoader, default_num_workers
from yolox.data.sampling import RequestStream
from yolox.data.training_samples import Augmentation, TrainingSamples
from yolox.data.transforms import TrainTransform
from yolox.errors import DataError
from yolox.structures import Batch, Size

MakeCoco = Callable[..., Path]
TARGET = Size(64, 64)


def train_set(root: Path) -> CocoDataset:
    return load_split(resolve_dataset(root).require("train"))


def train_loader(
    dataset: CocoDataset, num_workers: int = 0, start_method: str | None = None, **stream: int
) -> TrainLoader:
    augmentation = Augmentation(TrainTransform(TARGET), mosaic_prob=0.7)
    samples = TrainingSamples(ImageSource(dataset, TARGET), augmentation)
    settings: dict[str, Any] = {"batch_size": 3, "seed": 11, **stream}
    return TrainLoader(samples, RequestStream(len(dataset), **settings), num_workers, start_method)


def endless(loader: TrainLoader) -> Iterator[Batch]:
    while True:
        yield from loader


def assert_same(one: Batch, other: Batch) -> None:
    assert torch.equal(one.images, other.images)
    for mine, theirs in zip((*one.targets, *one[2:]), (*other.targets, *other[2:]), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.processes
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # the risk of fork, from 3.12
@pytest.mark.parametrize(("num_workers", "method"), [(1, None), (2, None), (1, "fork"), (1, "spawn")])
def test_workers_change_nothing(make_coco: MakeCoco, num_workers: int, method: str | None) -> None:
    dataset = train_set(make_coco())
    state = torch.get_rng_state()
    alone, together = train_loader(dataset), train_loader(dataset, num_workers, method)
    for mine, theirs in zip(islice(endless(alone), 7), islice(endless(together), 7), strict=True):
        assert_same(mine, theirs)
    together.close()
    assert torch.equal(state, torch.get_rng_state())


def test_an_epoch_is_its_batches_and_the_next_goes_on(make_coco: MakeCoco) -> None:
    dataset = train_set(make_coco(num_train=8))
    loader = train_loader(dataset, batch_size=3)
    assert len(loader) == 3
    epochs = [list(loader) for _ in range(2)]
    assert [len(epoch) for epoch in epochs] == [3, 3]
    assert loader.next_batch == 6
    ids = torch.cat([batch.image_ids for epoch in epochs for batch in epoch]).tolist()
    assert sorted(ids[:8]) == sorted(ids[8:16]) == list(range(1, 9))
    assert ids[:8] != ids[8:16]


@pytest.mark.processes
def test_seek_resumes_exactly(make_coco: MakeCoco) -> None:
    dataset = train_set(make_coco())
    expected = list(islice(endless(train_loader(dataset)), 9))
    for num_workers in (0, 1):
        loader = train_loader(dataset, num_workers)
        loader.seek(4)
        for mine, theirs in zip(expected[4:], islice(endless(loader), 5), strict=True):
            assert_same(mine, theirs)
        loader.seek(2)
        assert_same(next(iter(loader)), expected[2])
        loader.close()


def test_ranks_partition_the_samples(make_coco: MakeCoco) -> None:
    dataset = train_set(make_coco())
    whole = next(iter(train_loader(dataset, batch_size=6)))
    parts = [next(iter(train_loader(dataset, batch_size=6, rank=rank, world=2))) for rank in (0, 1)]
    for rank, part in enumerate(parts):
        assert torch.equal(part.images, whole.images[rank::2])
        assert torch.equal(part.image_ids, whole.image_ids[rank::2])


@pytest.mark.parametrize("num_train", [1, 2, 3])
def test_fewer_images_than_a_batch(make_coco: MakeCoco, num_train: int) -> None:
    loader = train_loader(train_set(make_coco(num_train=num_train)), batch_size=8)
    batch = next(iter(loader))
    assert len(loader) == 1
    assert batch.images.shape == (8, 3, *TARGET)
    assert set(batch.image_ids.tolist()) == set(range(1, num_train + 1))


def test_a_set_without_any_label(make_coco: MakeCoco) -> None:
    root = make_coco()
    path = root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "annotations": []}))
    batch = next(iter(train_loader(train_set(root))))
    assert batch.targets.boxes_cxcywh.shape == (3, 0, 4)


def test_boxes_fit_the_input(make_coco: MakeCoco) -> None:
    for batch in islice(endless(train_loader(train_set(make_coco()))), 12):
        boxes = batch.targets.boxes_cxcywh[batch.targets.valid]
        assert (boxes[:, 2:] > 1).all()
        assert (boxes[:, :2] - boxes[:, 2:] / 2 >= -1e-4).all()
        assert (boxes[:, :2] + boxes[:, 2:] / 2 <= 64 + 1e-4).all()


@pytest.mark.processes
@pytest.mark.parametrize("num_workers", [0, 1])
def test_one_bad_image_is_named_counted_and_replaced(
    make_coco: MakeCoco, caplog: pytest.LogCaptureFixture, num_workers: int
) -> None:
    root = make_coco(num_train=24)
    bad = root / "train2017" / "007.jpg"
    bad.write_bytes(bad.read_bytes()[:200])
    dataset = train_set(root)
    with caplog.at_level(logging.WARNING):
        loader = train_loader(dataset, num_workers, batch_size=8)
        batches = [batch for _ in range(3) for batch in loader]
    loader.close()
    assert len(batches) == 9
    assert 7 not in torch.cat([batch.image_ids for batch in batches])
    named = [record for record in caplog.records if "007.jpg" in record.getMessage()]
    assert len(named) == 1
    assert "1 of 24 images" in named[0].getMessage()


@pytest.mark.processes
@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("num_bad", [5, 24])
def test_too_many_bad_images_end_the_run(make_coco: MakeCoco, num_workers: int, num_bad: int) -> None:
    root = make_coco(num_train=24)
    for path in sorted((root / "train2017").iterdir())[:num_bad]:
        path.write_bytes(b"")
    loader = train_loader(train_set(root), num_workers, batch_size=8)
    with pytest.raises(DataError, match=r"of the \d+ images read"):
        for _ in range(4):
            list(loader)
    loader.close()


@pytest.mark.processes
@pytest.mark.parametrize("num_workers", [0, 2])
def test_val_loader_gives_every_image_in_order(make_coco: MakeCoco, num_workers: int) -> None:
    root = make_coco(num_val=5)
    dataset = load_split(resolve_dataset(root).require("val"))
    loader = ValLoader(ImageSource(dataset, TARGET), 2, num_workers)
    for _ in range(2):
        batches = list(loader)
        assert len(loader) == 3
        assert [len(batch.images) for batch in batches] == [2, 2, 1]
        assert torch.cat([batch.image_ids for batch in batches]).tolist() == list(range(501, 506))
        assert batches[0].original_sizes.tolist() == [[60, 80], [100, 70]]
        assert batches[0].targets.boxes_cxcywh.shape == (2, 0, 4)
        assert (batches[0].images[0, :, 48:] == 114).all()
    loader.close()


def test_val_ranks_partition_the_images(make_coco: MakeCoco) -> None:
    dataset = load_split(resolve_dataset(make_coco(num_val=5)).require("val"))
    ids = [
        torch.cat([b.image_ids for b in ValLoader(ImageSource(dataset, TARGET), 2, 0, rank=rank, world=2)]).tolist()
        for rank in (0, 1)
    ]
    assert ids == [[501, 503, 505], [502, 504]]


def test_val_loader_skips_a_bad_image_and_goes_on(make_coco: MakeCoco, caplog: pytest.LogCaptureFixture) -> None:
    root = make_coco(num_val=30)
    (root / "val2017" / "503.jpg").unlink()
    dataset = load_split(resolve_dataset(root).require("val"))
    batches = list(ValLoader(ImageSource(dataset, TARGET), 1, 0))
    assert len(batches) == 29
    assert "503.jpg" in caplog.text


def test_val_loader_stops_when_all_images_are_bad(make_coco: MakeCoco) -> None:
    root = make_coco()
    for path in (root / "val2017").iterdir():
        path.write_bytes(b"x")
    dataset = load_split(resolve_dataset(root).require("val"))
    with pytest.raises(DataError, match="missing, unreadable or truncated"):
        list(ValLoader(ImageSource(dataset, TARGET), 1, 0))


def test_pixels_of_another_size_are_brought_to_what_the_labels_describe(make_coco: MakeCoco) -> None:
    root = make_coco()
    dataset = train_set(root)
    import cv2

    path = dataset.path(0)
    reference = ImageSource(dataset, TARGET).sample(0)
    image = cv2.imread(str(path))
    assert image is not None
    cv2.imwrite(str(path), cv2.resize(image, (160, 120)))
    other = ImageSource(dataset, TARGET).sample(0)
    assert reference is not None
    assert other is not None
    assert other.image.shape == reference.image.shape
    assert other.original_size == Size(60, 80)
    np.testing.assert_array_equal(other.boxes_xyxy, reference.boxes_xyxy)


def test_number_of_workers_grows_with_the_machine() -> None:
    numbers = [default_num_workers(cores) for cores in (1, 2, 8, 56, 224)]
    assert numbers == sorted(numbers)
    assert numbers[0] == 1


SCRIPT = """
import sys
sys.path[:0] = {tests!r}
from pathlib import Path
import test_loaders as t
loader = t.train_loader(t.train_set(Path({root!r})), 2, {method!r})
next(iter(loader))
import multiprocessing
print(*[p.pid for p in multiprocessing.active_children()], flush=True)
sys.stdin.read()
"""


@pytest.mark.processes
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("method", ["forkserver", "fork"])
def test_workers_die_with_a_killed_parent(make_coco: MakeCoco, method: str) -> None:
    # the script has no __main__ guard, on purpose
    script = SCRIPT.format(tests=sys.path, root=str(make_coco()), method=method)
    path = make_coco(name="script") / "script.py"
    path.write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    parent = subprocess.Popen(
        [sys.executable, str(path)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, env=environment
    )
    assert parent.stdout is not None
    assert parent.stdin is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 2
    assert all(map(alive, pids))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdin.close()
    parent.stdout.close()
    assert not left(pids, seconds=10)


DEAF = """
import signal
from yolox.data.loader import worker_context
with worker_context("forkserver").Pool(1) as pool:
    print(signal.SIGINT in pool.apply(signal.pthread_sigmask, (signal.SIG_BLOCK, ())))
print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""


@pytest.mark.processes
def test_ctrl_c_of_a_terminal_is_for_the_process_that_trains_alone() -> None:
    answer = subprocess.run([sys.executable, "-c", DEAF], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["True", "False"]


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.processes)])
def test_objects_left_out_of_mosaics_are_told_once(
    make_coco: MakeCoco, caplog: pytest.LogCaptureFixture, num_workers: int
) -> None:
    """No image has more than two objects, but four images and the MixUp partner together have."""
    dataset = train_set(make_coco())
    loaders = []
    for limit in (1000, 2):
        augmentation = Augmentation(TrainTransform(TARGET, max_labels=limit))
        samples = TrainingSamples(ImageSource(dataset, TARGET), augmentation)
        loaders.append(TrainLoader(samples, RequestStream(len(dataset), batch_size=4, seed=11), num_workers))
    whole, cut = (list(loader) for loader in loaders)
    lost = [one.targets.valid.sum(1) - two.targets.valid.sum(1) for one, two in zip(whole, cut, strict=True)]
    assert torch.equal(torch.cat(lost), torch.cat([batch.num_cut for batch in cut]))
    assert not any(bool(batch.num_cut.any()) for batch in whole)
    list(loaders[1])
    for loader in loaders:
        loader.close()
    counts = torch.cat(lost)
    (told,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert told.startswith(f"{int((counts > 0).sum())} training samples of this epoch")
    assert f"had more than 2 objects; {int(counts.sum())} objects were left out" in told
    assert f"'max_labels {2 + int(counts.max())}' would have taken all" in told


@pytest.mark.parametrize("room", [0, 5])
def test_without_semaphores_the_images_are_read_here(
    room: int, make_coco: MakeCoco, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where /dev/shm is full, nearly full or read-only: a training ended with an error that named no file."""
    made: list[object] = []
    make = multiprocessing.synchronize.SemLock.__init__

    def refuse(self: Any, *arguments: Any, **options: Any) -> None:
        if len(made) == room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        made.append(self)
        make(self, *arguments, **options)

    dataset = train_set(make_coco())
    expected = list(train_loader(dataset))
    monkeypatch.setattr(multiprocessing.synchronize.SemLock, "__init__", refuse)
    loader = train_loader(dataset, num_workers=2)
    for mine, theirs in zip(loader, expected, strict=True):
        assert_same(mine, theirs)
    assert "no loader processes: /dev/shm" in caplog.text
    assert "No space left on device" in caplog.text
