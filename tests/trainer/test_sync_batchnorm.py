"""Batch normalisation shared by two ranks equals the plain one over the whole batch, whichever kernels compute it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from yolox.kernels.library import kernels
from yolox.trainer.launchers.base import Slot, Worker
from yolox.trainer.launchers.popen import PopenLauncher

pytestmark = pytest.mark.processes
CASES = (  # shape of the whole batch, type, affine, tolerance
    ((6, 5, 8, 4), torch.float64, True, 1e-10),
    ((6, 5, 8, 4), torch.float32, False, 1e-5),
    ((6, 16, 8, 4), torch.bfloat16, True, 4e-2),
    ((6, 5), torch.float32, True, 1e-5),
)


def _batch(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, grad = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    values = [(3 + 2 * x).to(dtype), grad.to(dtype)]
    if len(shape) == 4:
        values = [value.contiguous(memory_format=torch.channels_last) for value in values]
    return values[0], values[1]


def _layer(shape: tuple[int, ...], dtype: torch.dtype, affine: bool) -> nn.Module:
    layer = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(shape[1], affine=affine)
    if affine:
        nn.init.uniform_(layer.weight, 0.5, 1.5, torch.Generator().manual_seed(2))
    return layer.double() if dtype == torch.float64 else layer


def _step(layer: nn.Module, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(x)
    y.backward(grad)
    assert x.grad is not None
    result = {"y": y.detach(), "dx": x.grad}
    return {**result, **{f"d{name}": value.grad for name, value in layer.named_parameters() if value.grad is not None}}


def _run_two_ranks(work: Any) -> list[Any]:
    return PopenLauncher().run(work, [Slot(0, 2), Slot(1, 2)])


def _assert_as_one(expected: dict[str, Tensor], ranks: list[dict[str, Tensor]], tolerance: float) -> None:
    first, second = ranks
    for name, value in expected.items():
        joined = torch.cat([first[name], second[name]]) if name in {"y", "dx"} else first[name] + second[name]
        torch.testing.assert_close(joined.double(), value.double(), rtol=tolerance, atol=tolerance, msg=name)


def test_two_ranks_normalise_as_one() -> None:
    batch, layer_of, step, cases = _batch, _layer, _step, CASES  # as values: workers cannot import this file

    def work(worker: Worker) -> list[Any]:
        import torch.distributed as dist

        from yolox.trainer.sync_batchnorm import SyncBatchNormLayers

        dist.init_process_group(
            "gloo", init_method=worker.rendezvous, rank=worker.slot.rank, world_size=worker.slot.world
        )
        part = slice(0, 2) if worker.slot.rank == 0 else slice(2, 6)  # unequal shares
        results = []
        for shape, dtype, affine, _ in cases:
            x, grad = batch(shape, dtype)
            layer = SyncBatchNormLayers().apply(nn.Sequential(layer_of(shape, dtype, affine)))[0]  # type: ignore[index]
            results.append((step(layer, x[part], grad[part]), dict(layer.named_buffers())))
        dist.destroy_process_group()
        return results

    ranks = _run_two_ranks(work)
    for number, (shape, dtype, affine, tolerance) in enumerate(CASES):
        plain = _layer(shape, dtype, affine)
        expected = _step(plain, *_batch(shape, dtype))
        (first, buffers), (second, _) = ranks[0][number], ranks[1][number]
        assert first["y"].dtype == dtype
        _assert_as_one(expected, [first, second], tolerance)
        for name, value in plain.named_buffers():
            torch.testing.assert_close(buffers[name].double(), value.double(), rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("compiled", [{0, 1}, {0}], ids=["both ranks", "one rank"])
def test_compiled_kernels_take_part(compiled: set[int]) -> None:
    if kernels() is None:
        pytest.skip("no C++ compiler, or YOLOX_KERNELS=0")
    shape, dtype = (6, 16, 8, 4), torch.float32
    batch, layer_of, step = _batch, _layer, _step

    def work(worker: Worker) -> Any:
        import torch.distributed as dist

        from yolox.kernels.training.acceleration import accelerate, table
        from yolox.trainer.sync_batchnorm import SyncBatchNormLayers

        dist.init_process_group(
            "gloo", init_method=worker.rendezvous, rank=worker.slot.rank, world_size=worker.slot.world
        )
        layers = SyncBatchNormLayers().apply(nn.Sequential(layer_of(shape, dtype, True), nn.SiLU()))
        x, grad = batch(shape, dtype)
        part = slice(0, 2) if worker.slot.rank == 0 else slice(2, 6)
        if worker.slot.rank in compiled:
            accelerate(layers)
        results = step(layers, x[part], grad[part]), dict(layers.named_buffers())
        assert [row.kernel for row in table(layers)] == ["normalisation and activation"] * (
            worker.slot.rank in compiled
        )
        dist.destroy_process_group()
        return results

    ranks = _run_two_ranks(work)
    plain = _layer(shape, dtype, True)
    plain = nn.Sequential(plain, nn.SiLU())
    expected = _step(plain, *_batch(shape, dtype))
    _assert_as_one(expected, [ranks[0][0], ranks[1][0]], 1e-5)
    for name, value in plain.named_buffers():
        torch.testing.assert_close(ranks[0][1][name].double(), value.double(), rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.usefixtures("bf16_products")
def test_convolutions_share_the_normalisations_they_leave_to_readers() -> None:
    shape, batch, step, block_of = (6, 16, 8, 4), _batch, _step, _separable

    def work(worker: Worker) -> Any:
        import torch.distributed as dist

        from yolox.kernels.training.acceleration import accelerate, table
        from yolox.trainer.sync_batchnorm import SyncBatchNormLayers

        dist.init_process_group(
            "gloo", init_method=worker.rendezvous, rank=worker.slot.rank, world_size=worker.slot.world
        )
        block = accelerate(SyncBatchNormLayers().apply(block_of()))
        x, grad = batch(shape, torch.bfloat16)
        part = slice(0, 2) if worker.slot.rank == 0 else slice(2, 6)
        with torch.autocast("cpu", torch.bfloat16):
            tensors = step(block, x[part], grad[part])
        buffers = {name: value.clone() for name, value in block.named_buffers()}
        results = tensors, buffers, [row.kernel for row in table(block)]
        dist.destroy_process_group()
        return results

    first, second = _run_two_ranks(work)
    assert first[2] == ["depthwise 3x3 convolution; readers normalise", "1x1 convolution"]
    plain = _separable()
    with torch.autocast("cpu", torch.bfloat16):
        expected = _step(plain, *_batch(shape, torch.bfloat16))
    for name, value in expected.items():
        joined = (
            torch.cat([first[0][name], second[0][name]]) if name in {"y", "dx"} else first[0][name] + second[0][name]
        )
        error = (joined.double() - value.double()).abs().max() / value.double().abs().max()
        assert float(error) < 2e-2, name
    for name, value in plain.named_buffers():
        torch.testing.assert_close(second[1][name], first[1][name], msg=name)
        torch.testing.assert_close(first[1][name], value, rtol=1e-2, atol=1e-3, msg=name)


def _separable() -> nn.Module:
    """Return a block that computes in bf16 from parameters in float32, all the same."""
    from yolox.models.layers import DepthwiseConv

    torch.manual_seed(3)
    return DepthwiseConv(16, 16, 3).to(memory_format=torch.channels_last).train()
