"""The faster gradients of strided depthwise convolutions are those of PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from yolox.models.depthwise import DepthwiseConv2d


def gradients(conv: nn.Conv2d, x: Tensor, autocast: bool) -> tuple[Tensor, ...]:
    x = x.clone().requires_grad_()
    conv.weight.grad = None
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = conv(x)
    y.backward(torch.linspace(-1, 1, y.numel()).reshape(y.shape).to(y.dtype))
    return y, x.grad, conv.weight.grad


@pytest.mark.parametrize("size", [(8, 12), (7, 9)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("autocast", [True, False])
def test_equal_to_the_plain_convolution(size: tuple[int, int], stride: int, autocast: bool) -> None:
    torch.manual_seed(0)
    ours = DepthwiseConv2d(6, 6, 3, stride, 1, groups=6, bias=False)
    plain = nn.Conv2d(6, 6, 3, stride, 1, groups=6, bias=False)
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, *size).contiguous(memory_format=torch.channels_last)
    for mine, theirs in zip(gradients(ours, x, autocast), gradients(plain, x, autocast), strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, rtol=1e-2 if autocast else 1e-6, atol=1e-2 if autocast else 1e-6)


def test_bf16_at_stride_two_takes_the_other_way() -> None:
    conv = DepthwiseConv2d(4, 4, 3, 2, 1, groups=4, bias=False)
    x = torch.randn(1, 4, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert "_StridedDepthwise" in type(conv(x).grad_fn).__name__
        assert "_StridedDepthwise" not in type(conv.eval()(x).grad_fn).__name__
    assert "_StridedDepthwise" not in type(conv.train()(x).grad_fn).__name__
