"""Depthwise convolutions: compiled kernels where there are any, else PyTorch with faster gradients at stride 2.

oneDNN's bf16 gradients of a strided depthwise convolution are 2 to 12 times slower than those of the same convolution
at stride 1 over a gradient with zeros in between, which are equal.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolox.kernels.training.autograd import depthwise_conv, fits
from yolox.kernels.training.bindings import TYPES
from yolox.kernels.training.ops import CHANNEL_BLOCK

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
    """`nn.Conv2d` with one group a channel; in training it goes the fastest way there is."""

    @property
    def is_three_by_three(self) -> bool:
        """Whether `depthwise_conv` knows these measures."""
        usual = self.kernel_size == (3, 3) and self.padding == (1, 1) and self.stride in {(1, 1), (2, 2)}
        return usual and self.bias is None and self.in_channels % CHANNEL_BLOCK == 0

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, H, W]`` to ``[B, C, H / stride, W / stride]``."""
        if not self.training or not torch.is_grad_enabled() or x.device.type != "cpu" or self.bias is not None:
            return super().forward(x)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if self.is_three_by_three and fits(x) and dtype in TYPES:
            return depthwise_conv(x.to(dtype), self.weight, self.stride[0])
        if self.stride != (2, 2) or dtype != torch.bfloat16 or torch.compiler.is_compiling():
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            y: Tensor = _StridedDepthwise.apply(x.to(dtype), self.weight.to(dtype), self.padding[0])  # type: ignore[no-untyped-call]
        return y
