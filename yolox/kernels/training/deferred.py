"""Convolutions whose batch normalisation and activation are left to whoever reads what they return.

What is between a convolution and the next one is then in memory once, as the first one left it, and nobody writes the
activated values or reads them back. Tensors are float32 or bfloat16 in channels_last memory, all of one type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from yolox.kernels.training import ops
from yolox.kernels.training.autograd import normalised, over_ranks
from yolox.kernels.training.norms import BatchNorm, NextNorm, NormAct


class Deferred:
    """What a convolution returned, and the normalisation and activation that its readers take it through.

    Autograd sees two tensors whose gradients mean something of their own, and add up over all readers: that of
    ``value`` is the one before the activation, that of ``sums`` are the sums `ops.gradient_sums` of it.

    Args:
        value: ``[B, C, H, W]``.
        sums: ``[2, C]``, float64: the sums `ops.statistics` of it.
        norm: The normalisation of the batch, and the activation.
    """

    def __init__(self, value: Tensor, sums: Tensor, norm: BatchNorm) -> None:
        self.value = value
        self.sums = sums
        self.norm = norm
        self._activated: Tensor | None = None

    def materialize(self) -> Tensor:
        """Return the normalised and activated values, computed once however often they are asked for."""
        if self._activated is None:
            self._activated = _Activate.apply(self.value, self.sums, self.norm, None, None)  # type: ignore[no-untyped-call]
        return self._activated


Features = Tensor | Deferred
"""Feature maps, or what they will be made of."""


class Shortcut(NamedTuple):
    """The input of a convolution, once more: `add_shortcut` takes it around that convolution.

    Attributes:
        value: Whose gradient is that of the input after what was deferred: the convolution's own one is added to it.
        norm: What was deferred.
    """

    value: Tensor
    norm: BatchNorm | None


def materialize(x: Features) -> Tensor:
    """Return feature maps that anybody can read."""
    return x.materialize() if isinstance(x, Deferred) else x


def raw(x: Features) -> Tensor:
    """Return the tensor that is there, with nothing done that may be deferred."""
    return x.value if isinstance(x, Deferred) else x


def defer_norm(x: Tensor, norm: NormAct) -> Deferred:
    """Leave normalisation and activation to the readers, and move the running statistics."""
    after = _After(norm)
    value, sums = _DeferNorm.apply(x, after.weight, after.bias, after)  # type: ignore[no-untyped-call]
    return Deferred(value, sums, after.batch)


def pointwise_block(parts: Sequence[Features], weight: Tensor, norms: Sequence[NormAct]) -> tuple[Deferred, ...]:
    """Return a 1x1 convolution of all channels of the parts, for each normalisation its own channels.

    Args:
        parts: One or two ``[B, C, H, W]``, which need not lie side by side.
        weight: ``[out, in, 1, 1]``, float32, rounded on the way.
        norms: One or two, whose channels together are those of the output.

    All numbers of channels are multiples of `ops.CHANNEL_BLOCK`.
    """
    return _pointwise(parts, weight, norms, again=False)[0]


def pointwise_with_shortcut(x: Features, weight: Tensor, norm: NormAct) -> tuple[Deferred, Shortcut]:
    """Return the `pointwise_block` of ``x``, and ``x`` for `add_shortcut`."""
    (y,), value = _pointwise((x,), weight, (norm,), again=True)
    return y, Shortcut(value, _norm_of(x))


def stem_block(images: Tensor, weight: Tensor, norm: NormAct) -> Deferred:
    """Return the 6x6 convolution of stride 2 and padding 2; images get no gradient.

    Args:
        images: ``[B, 3, H, W]``, uint8 or float32, H and W even.
        weight: ``[out, 3, 6, 6]``, float32, rounded on the way; out a multiple of `ops.CHANNEL_BLOCK`.
        norm: Over the output.
    """
    images = images.contiguous(memory_format=torch.channels_last)
    after = _After(norm)
    value, sums = _StemBlock.apply(weight, after.weight, after.bias, after, images)  # type: ignore[no-untyped-call]
    return Deferred(value, sums, after.batch)


def depthwise_block(x: Features, weight: Tensor, stride: int, norm: NormAct) -> Deferred:
    """Return a 3x3 convolution of each channel with padding 1.

    Args:
        x: ``[B, C, H, W]``, C a multiple of `ops.CHANNEL_BLOCK`.
        weight: ``[C, 1, 3, 3]``, rounded on the way.
        stride: 1 or 2.
        norm: Over the output.
    """
    after = _After(norm)
    own = (weight, after.weight, after.bias, after, stride)
    value, sums = _DepthwiseBlock.apply(*own, _norm_of(x), *_tensors_of(x))  # type: ignore[no-untyped-call]
    return Deferred(value, sums, after.batch)


def pointwise_prediction(x: Features, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the 1x1 convolution with a bias that nothing follows.

    Args:
        x: ``[B, C, H, W]``, C a multiple of `ops.CHANNEL_BLOCK`.
        weight: ``[out, C, 1, 1]``, float32, rounded on the way; any number of outputs.
        bias: ``[out]``, float32.
    """
    y: Tensor = _Prediction.apply(weight, bias, _norm_of(x), *_tensors_of(x))  # type: ignore[no-untyped-call]
    return y


def add_shortcut(x: Deferred, shortcut: Shortcut) -> Tensor:
    """Return the activated ``x`` and the shortcut, activated if need be, added up."""
    y: Tensor = _Activate.apply(x.value, x.sums, x.norm, *shortcut)  # type: ignore[no-untyped-call]
    return y


def _norm_of(x: Features) -> BatchNorm | None:
    return x.norm if isinstance(x, Deferred) else None


def _tensors_of(x: Features) -> tuple[Tensor, Tensor | None]:
    return (x.value, x.sums) if isinstance(x, Deferred) else (x, None)


def _pointwise(
    parts: Sequence[Features], weight: Tensor, norms: Sequence[NormAct], *, again: bool
) -> tuple[tuple[Deferred, ...], Tensor]:
    after = [_After(norm) for norm in norms]
    tensors = [tensor for one in after for tensor in (one.weight, one.bias)]
    tensors += [tensor for part in parts for tensor in _tensors_of(part)]  # type: ignore[misc]
    deferred = [_norm_of(part) for part in parts]
    found = _PointwiseBlock.apply(weight, after, deferred, again, *tensors)  # type: ignore[no-untyped-call]
    return tuple(Deferred(found[2 * i], found[2 * i + 1], one.batch) for i, one in enumerate(after)), found[-1]


class _After:
    """The normalisation after a convolution, as the convolution's autograd function keeps it.

    Attributes:
        weight: The layer's.
        bias: Likewise.
        batch: The normalisation of this batch, once `normalise` has been called.
    """

    batch: BatchNorm

    def __init__(self, norm: NormAct) -> None:
        self.norm = norm
        self.weight, self.bias = norm.layer.weight, norm.layer.bias
        self.count = 0.0

    def normalise(self, value: Tensor, sums: Tensor) -> None:
        """Take the moments out of the sums of a batch, and move the running statistics."""
        self.batch, self.count = normalised(value, sums, self.norm)

    def backward(self, dz: Tensor | None, sums: Tensor | None, value: Tensor) -> tuple[NextNorm, tuple[Tensor, Tensor]]:
        """Return what the convolution has to know, and the gradients of weight and bias."""
        norm = self.batch
        total = torch.zeros(norm.moments.shape, dtype=torch.float64) if sums is None else sums.contiguous()
        own = ops.parameter_gradients(total, norm)  # of this rank; the trainer adds those up
        total = over_ranks(total, self.norm.layer)
        return NextNorm(torch.zeros_like(value) if dz is None else dz, total, self.count, value, norm), own


class _Activate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, sums: Tensor, norm: BatchNorm, added: Tensor | None, added_norm: BatchNorm | None
    ) -> Tensor:
        ctx.save_for_backward(value)
        ctx.norm, ctx.adds = norm, added is not None
        return ops.activate(value, norm, added, added_norm)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dz, sums = ops.gradient_sums(grads[0], ctx.saved_tensors[0], ctx.norm)
        return dz, sums, None, grads[0] if ctx.adds else None, None


class _DeferNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, after: _After) -> tuple[Tensor, Tensor]:
        sums = ops.statistics(x)
        ctx.after = after
        after.normalise(x, sums)
        ctx.save_for_backward(x)
        return x.view_as(x), sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        after, own = ctx.after.backward(*grads, *ctx.saved_tensors)
        dz = after.dz.contiguous(memory_format=torch.channels_last)
        return ops.normalise_backward_(dz, after.sums, after.pixels, after.value, after.norm), *own, None


class _StemBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        _, _, ctx.after, images = rest
        y, sums = ops.stem(images, weight.permute(0, 2, 3, 1).contiguous())
        ctx.after.normalise(y, sums)
        ctx.save_for_backward(images, y)
        return y, sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        images, y = ctx.saved_tensors
        after, own = ctx.after.backward(*grads, y)
        return ops.stem_backward(after, images).permute(0, 3, 1, 2), *own, None, None


class _DepthwiseBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        _, _, ctx.after, ctx.stride, ctx.deferred, x, _ = rest
        rounded = weight.to(x.dtype).float().contiguous()
        y, sums = ops.depthwise(x, rounded, ctx.stride, ctx.deferred, wants_sums=True)
        assert sums is not None
        ctx.after.normalise(y, sums)
        ctx.save_for_backward(rounded, x, y)
        return y, sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, x, y = ctx.saved_tensors
        after, own = ctx.after.backward(*grads, y)
        found = ops.depthwise_backward(after, x, weight, ctx.stride, ctx.deferred, wants_input=ctx.needs_input_grad[6])
        dx = found.inputs[0] if found.inputs else None
        sums = None if ctx.deferred is None else found.sums[0]
        return found.weight, *own, None, None, None, dx, sums


class _PointwiseBlock(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        after: Sequence[_After],
        deferred: Sequence[BatchNorm | None],
        again: bool,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        parts, weight = tensors[2 * len(after) :: 2], weight.contiguous()
        values, sums = ops.pointwise(parts, deferred, weight, [len(one.weight) for one in after])
        for one, value, own in zip(after, values, sums, strict=True):
            one.normalise(value, own)
        ctx.after, ctx.deferred = after, deferred
        ctx.save_for_backward(weight, *parts, *values)
        ctx.set_materialize_grads(False)
        outputs = [tensor for pair in zip(values, sums, strict=True) for tensor in pair]
        return (*outputs, parts[0].view_as(parts[0])) if again else tuple(outputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        num, num_parts = len(ctx.after), len(ctx.deferred)
        weight, *tensors = ctx.saved_tensors
        parts, values = tensors[:num_parts], tensors[num_parts:]
        found = [after.backward(grads[2 * i], grads[2 * i + 1], values[i]) for i, after in enumerate(ctx.after)]
        first_part = 4 + 2 * num
        own = ops.pointwise_backward(
            [after for after, _ in found],
            parts,
            ctx.deferred,
            weight,
            wants_input=any(ctx.needs_input_grad[first_part:]),
            added=grads[2 * num] if len(grads) > 2 * num else None,
        )
        inputs: list[Tensor | None] = []
        for i, deferred in enumerate(ctx.deferred):
            inputs += [own.inputs[i] if own.inputs else None, None if deferred is None else own.sums[i]]
        return own.weight, None, None, None, *[tensor for _, pair in found for tensor in pair], *inputs


class _Prediction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, deferred: BatchNorm | None, *x: Tensor) -> Tensor:
        num_out = len(weight)
        surplus = -num_out % ops.CHANNEL_BLOCK  # outputs of zeros that nobody sees
        whole = torch.cat((weight, weight.new_zeros(surplus, *weight.shape[1:]))).contiguous()
        biases = torch.cat((bias, bias.new_zeros(surplus)))
        ctx.deferred, ctx.num_out = deferred, num_out
        ctx.save_for_backward(whole, x[0])
        (y,), _ = ops.pointwise(x[:1], (deferred,), whole, (len(whole),), biases)
        return y[:, :num_out]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, x = ctx.saved_tensors
        dy = grads[0].to(x.dtype)
        if len(weight) > ctx.num_out:
            whole = dy.new_zeros(dy.shape[0], *dy.shape[2:], len(weight)).permute(0, 3, 1, 2)
            whole[:, : ctx.num_out] = dy
            dy = whole
        dy = dy.contiguous(memory_format=torch.channels_last)
        own = ops.pointwise_backward(dy, (x,), (ctx.deferred,), weight, wants_input=ctx.needs_input_grad[3])
        sums = None if ctx.deferred is None else own.sums[0]
        dbias = ops.statistics(dy)[0, : ctx.num_out].float()
        return own.weight[: ctx.num_out], dbias, None, own.inputs[0] if own.inputs else None, sums
