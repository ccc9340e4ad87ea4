"""Depthwise convolutions of stride 2 whose gradients are computed at stride 1.

oneDNN's bf16 gradients of a strided depthwise convolution are 2 to 12 times slower than those of the same convolution
at stride 1 over a gradient with zeros in between, which are equal.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["DepthwiseConv2d"]


class _StridedDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return F.conv2d(x, weight, stride=2, padding=padding, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        spread = torch.zeros_like(x)
        spread[..., ::2, ::2] = grads[0]
        padding = [ctx.padding] * 2
        wanted = [*ctx.needs_input_grad[:2], False]
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
            spread, x, weight, None, [1, 1], padding, [1, 1], False, [0, 0], x.shape[1], wanted
        )
        return grad_x, grad_weight, None


class DepthwiseConv2d(nn.Conv2d):
    """`nn.Conv2d` with one group a channel; only its bf16 gradients at stride 2 go another way."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, H, W]`` to ``[B, C, H / stride, W / stride]``."""
        if not self._has_slow_gradients(x):
            return super().forward(x)
        half = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        with torch.autocast("cpu", enabled=False):
            y: Tensor = _StridedDepthwise.apply(x.to(half), self.weight.to(half), self.padding[0])  # type: ignore[no-untyped-call]
        return y

    def _has_slow_gradients(self, x: Tensor) -> bool:
        if not (self.training and torch.is_grad_enabled()) or torch.compiler.is_compiling():
            return False
        autocast = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
        strided = self.stride == (2, 2) and self.bias is None
        return strided and x.device.type == "cpu" and dtype == torch.bfloat16
