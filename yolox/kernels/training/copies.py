"""Operators of PyTorch that do nothing but copy, convert or add numbers, as calls of a kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from yolox.kernels.training.bindings import Copy

aten: Any = torch.ops.aten

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 2}
_DIMENSIONS = 6
_SAME_NUMBERS = {aten.clone.default, aten._to_copy.default}
_ZEROS = {aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default, aten.zero_.default}


def as_copies(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> list[Copy] | None:
    """Return what does the same as an operator; None where that is more than to copy.

    Args:
        func: The operator.
        args: Its arguments.
        kwargs: Those with names.
        result: What it returned.
    """
    if not isinstance(result, Tensor):
        return None
    found = [_copy(*each) for each in _copied(func, args, kwargs, result) if each[2].numel()]
    return None if None in found or not found else [copy for copy in found if copy is not None]


def _copied(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor
) -> Iterator[tuple[Tensor | None, Tensor | None, Tensor]]:
    """Yield what is copied, what is added to it, and where to; nothing for other operators."""
    if func in _SAME_NUMBERS:
        yield args[0], None, result
    elif func in _ZEROS:
        yield None, None, result
    elif func is aten.copy_.default:
        yield args[1], None, args[0]
    elif func is aten.add.Tensor and isinstance(args[1], Tensor) and args[0].dtype == args[1].dtype and not kwargs:
        yield args[0], args[1], result
    elif func is aten.upsample_nearest2d.default:
        yield from _enlarged(args[0], result)
    elif func is aten.cat.default:
        yield from _parts(args[0], args[1] if len(args) > 1 else 0, result)


def _parts(tensors: Sequence[Tensor], dim: int, result: Tensor) -> Iterator[tuple[Tensor, None, Tensor]]:
    first = 0
    for tensor in tensors:
        if tensor.numel():
            yield tensor, None, result.narrow(dim, first, tensor.shape[dim])
            first += tensor.shape[dim]


def _enlarged(x: Tensor, result: Tensor) -> Iterator[tuple[Tensor, None, Tensor]]:
    """Yield each pixel and the block of pixels that it becomes, where all blocks are of one size."""
    rows, columns = (whole // part for whole, part in zip(result.shape[2:], x.shape[2:], strict=True))
    if (rows * x.shape[2], columns * x.shape[3]) == tuple(result.shape[2:]):
        blocks = result.unflatten(3, (x.shape[3], columns))  # type: ignore[no-untyped-call]
        blocks = blocks.unflatten(2, (x.shape[2], rows))
        yield x[:, :, :, None, :, None].expand(blocks.shape), None, blocks


def _copy(source: Tensor | None, added: Tensor | None, target: Tensor) -> Copy | None:
    tensors = [tensor for tensor in (source, added, target) if tensor is not None]
    if any(tensor.dtype not in _TYPES or tensor.shape != target.shape for tensor in tensors):
        return None
    dims = _dimensions(tensors)
    if len(dims) > _DIMENSIONS:
        return None
    dims = [(1, (0,) * len(tensors))] * (_DIMENSIONS - len(dims)) + dims
    strides = iter([[stride[i] for _, stride in dims] for i in range(len(tensors))])
    copy = Copy()
    copy.target, copy.target_type = target.data_ptr(), _TYPES[target.dtype]
    copy.source_type = _TYPES[target.dtype if source is None else source.dtype]
    copy.size[:] = [size for size, _ in dims]
    if source is not None:
        copy.source, copy.source_stride[:] = source.data_ptr(), next(strides)
    if added is not None:
        copy.added, copy.added_stride[:] = added.data_ptr(), next(strides)
    copy.target_stride[:] = next(strides)
    return copy


def _dimensions(tensors: Sequence[Tensor]) -> list[tuple[int, tuple[int, ...]]]:
    """Return sizes, and strides of each tensor, the longest of the last one first, with all merged that can be."""
    target = tensors[-1]
    order = sorted(range(target.ndim), key=lambda dim: (target.stride(dim), target.shape[dim]), reverse=True)
    merged: list[tuple[int, tuple[int, ...]]] = []
    for dim in order:
        size, strides = target.shape[dim], tuple(tensor.stride(dim) for tensor in tensors)
        if size == 1:
            continue
        if merged and all(outer == size * inner for outer, inner in zip(merged[-1][1], strides, strict=True)):
            merged[-1] = (merged[-1][0] * size, strides)
        else:
            merged.append((size, strides))
    return merged
