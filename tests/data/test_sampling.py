from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolox.data.sampling import RequestStream, SampleRequest
from yolox.errors import DataError, UsageError


def drawn(stream: RequestStream, count: int, start: int = 0) -> list[list[SampleRequest]]:
    return list(islice(stream.batches(start), count))


@given(st.integers(1, 40), st.integers(1, 40))
def test_permutations_follow_each_other_without_gaps(num_images: int, batch_size: int) -> None:
    stream = RequestStream(num_images, batch_size, seed=5)
    flat = [request.index for batch in drawn(stream, 3 * num_images) for request in batch]
    for start in range(0, len(flat) - num_images + 1, num_images):
        assert sorted(flat[start : start + num_images]) == list(range(num_images))
    assert stream.batches_per_epoch == -(-num_images // batch_size)


def test_passes_differ_and_seeds_differ() -> None:
    stream = RequestStream(50, 10, seed=1)
    orders = {tuple(stream.permutation(i)) for i in range(4)}
    assert len(orders) == 4
    assert tuple(RequestStream(50, 10, seed=2).permutation(0)) not in orders
    assert tuple(RequestStream(50, 2, seed=1).permutation(0)) in orders


@given(st.integers(0, 200))
def test_a_resumed_stream_goes_on_like_the_uninterrupted_one(start: int) -> None:
    stream = RequestStream(13, 4, seed=3, no_mosaic_from_batch=9)
    assert drawn(stream, 5, start) == drawn(stream, start + 5)[start:]


@given(st.integers(1, 30), st.integers(1, 6), st.integers(1, 4))
def test_ranks_share_every_batch_out_exactly_once(num_images: int, world: int, each: int) -> None:
    total = world * each
    whole = drawn(RequestStream(num_images, total, seed=4), 9)
    parts = [drawn(RequestStream(num_images, total, seed=4, rank=rank, world=world), 9) for rank in range(world)]
    for number, batch in enumerate(whole):
        shares = [part[number] for part in parts]
        assert {len(share) for share in shares} == {each}
        assert sorted((r for share in shares for r in share), key=lambda r: r.position) == batch


def test_mosaic_ends_with_the_given_batch() -> None:
    batches = drawn(RequestStream(10, 4, no_mosaic_from_batch=3), 6)
    assert [{request.mosaic for request in batch} for batch in batches] == [{True}] * 3 + [{False}] * 3


def test_every_request_has_numbers_of_its_own() -> None:
    batch = drawn(RequestStream(10, 10, seed=7), 1)[0]
    numbers = [request.generator().random() for request in batch]
    assert len(set(numbers)) == 10
    assert numbers == [request.generator().random() for request in batch]


@pytest.mark.parametrize("kwargs", [{"world": 3}, {"rank": 2, "world": 2}, {"seed": -1}])
def test_impossible_divisions_are_usage_errors(kwargs: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        RequestStream(10, 8, **kwargs)


def test_no_images_and_no_batch() -> None:
    with pytest.raises(DataError, match="no images"):
        RequestStream(0, 8)
    with pytest.raises(UsageError, match="total batch 0"):
        RequestStream(10, 0)
