"""Shard the batches of an ordinary DataLoader over the ranks: N processes see together what one would see alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, RandomSampler, Sampler

from yolox.errors import UsageError

_log = logging.getLogger(__name__)


class ShardedBatchSampler(Sampler[list[Any]]):
    """This rank's part of every batch: items ``rank``, ``rank + world`` and so on.

    Every rank gets equally many items, so that the mean over ranks is the mean over the batch. A last batch that does
    not divide is filled up with its own first items.

    Args:
        batches: The batches of the whole run, the same on every rank.
        rank: This process.
        world: Number of processes.
    """

    def __init__(self, batches: Any, rank: int, world: int) -> None:
        self.batches = batches
        self.rank = rank
        self.world = world

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Any]]:
        for batch in self.batches:
            items = list(batch)
            while len(items) % self.world:
                items += items[: self.world - len(items) % self.world]
            yield items[self.rank :: self.world]

    def set_epoch(self, epoch: int) -> None:
        """Tell the sampler below which epoch it is, where it wants to know."""
        for sampler in (self.batches, getattr(self.batches, "sampler", None)):
            tell = getattr(sampler, "set_epoch", None)
            if tell is not None:
                tell(epoch)


def shard_loader(loader: object, rank: int, world: int, seed: int) -> object:
    """Return a loader of this rank's share; a loader that is distributed already, or is no DataLoader, as it is.

    Args:
        loader: What the user gave; its batch size is the total over all ranks.
        rank: This process.
        world: Number of processes.
        seed: For a shuffling sampler without a generator of its own: the same on every rank.

    Raises:
        UsageError: When its batches are smaller than the number of processes.
    """
    if world == 1 or not isinstance(loader, DataLoader) or isinstance(loader.sampler, DistributedSampler):
        return loader
    if isinstance(loader.batch_sampler, ShardedBatchSampler):
        return loader
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        _log.warning("the data of %s cannot be divided from outside: every rank reads all of it", type(loader).__name__)
        return loader
    size = getattr(loader.batch_sampler, "batch_size", None)
    if isinstance(size, int) and size < world:
        raise UsageError(f"a batch of {size} cannot be shared by {world} processes; expected at least {world}.")
    shares = ShardedBatchSampler(_with_own_generator(loader.batch_sampler, seed), rank, world)
    workers: dict[str, Any] = {}
    if loader.num_workers:
        workers = {
            "prefetch_factor": loader.prefetch_factor,
            "persistent_workers": loader.persistent_workers,
            "multiprocessing_context": loader.multiprocessing_context,
        }
    return DataLoader(
        loader.dataset,
        batch_sampler=shares,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        generator=loader.generator,
        **workers,
    )


def _with_own_generator(batches: Any, seed: int) -> Any:
    """Return a batch sampler whose random order is the same on every rank."""
    sampler = getattr(batches, "sampler", None)
    if type(sampler) is not RandomSampler or sampler.generator is not None or type(batches) is not BatchSampler:
        return batches
    generator = torch.Generator().manual_seed(seed)
    same = RandomSampler(sampler.data_source, sampler.replacement, sampler.num_samples, generator)
    return BatchSampler(same, batches.batch_size, batches.drop_last)
