from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

from yolox.errors import UsageError
from yolox.trainer.sharded_batch_sampler import shard_loader


def numbers(count: int) -> TensorDataset:
    return TensorDataset(torch.arange(count))


def seen(loader: Any) -> list[list[int]]:
    return [batch[0].tolist() for batch in loader]


@given(st.integers(1, 40), st.integers(2, 6), st.integers(1, 3), st.booleans())
def test_ranks_share_every_batch(count: int, world: int, each: int, shuffle: bool) -> None:
    """Equally many items for each; all of the batch, and where it does not divide its first items again."""
    loader = DataLoader(numbers(count), batch_size=world * each, shuffle=shuffle)
    shares = [shard_loader(loader, rank, world, seed=1) for rank in range(world)]
    for _ in range(2):  # epochs
        batches = list(zip(*(seen(share) for share in shares), strict=True))
        assert all(len({len(part) for part in batch}) == 1 for batch in batches)
        whole = [[item for row in zip(*batch, strict=True) for item in row] for batch in batches]
        sizes = [world * each] * (count // (world * each)) + [count % (world * each)] * (count % (world * each) > 0)
        items = [item for batch, size in zip(whole, sizes, strict=True) for item in batch[:size]]
        assert sorted(items) == list(range(count))
        assert shuffle or items == list(range(count))
        for batch, size in zip(whole, sizes, strict=True):
            assert set(batch[size:]) <= set(batch[:size])


def test_shuffling_differs_between_epochs_but_not_between_ranks() -> None:
    loader = DataLoader(numbers(64), batch_size=64, shuffle=True)
    one = shard_loader(loader, 0, 2, seed=1)
    other = shard_loader(loader, 0, 2, seed=1)
    first, second = seen(one), seen(one)
    assert first != second
    assert [first, second] == [seen(other), seen(other)]


def test_distributed_and_foreign_loaders_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    sampler: DistributedSampler[Any] = DistributedSampler(numbers(8), num_replicas=2, rank=0)
    loader = DataLoader(numbers(8), batch_size=4, sampler=sampler)
    assert shard_loader(loader, 0, 2, seed=1) is loader
    assert shard_loader([1, 2], 0, 2, seed=1) == [1, 2]
    shared = shard_loader(DataLoader(numbers(8), batch_size=4), 0, 2, seed=1)
    assert shard_loader(shared, 0, 2, seed=1) is shared

    class Stream(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(4))

    stream = DataLoader(Stream(), batch_size=2)
    assert shard_loader(stream, 0, 2, seed=1) is stream
    assert "cannot be divided" in caplog.text


def test_batches_smaller_than_the_world_are_refused() -> None:
    with pytest.raises(UsageError, match="a batch of 2 cannot be shared by 4"):
        shard_loader(DataLoader(numbers(8), batch_size=2), 0, 4, seed=1)


def test_settings_of_the_loader_stay() -> None:
    def collate(items: list[Any]) -> list[int]:
        return [int(item[0]) for item in items]

    loader = DataLoader(numbers(8), batch_size=4, collate_fn=collate, timeout=0)
    shared = shard_loader(loader, 1, 2, seed=1)
    assert isinstance(shared, DataLoader)
    assert list(shared) == [[1, 3], [5, 7]]
