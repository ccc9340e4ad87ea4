"""Code that is captured, or runs as it is, and modules that change, are copied or restored."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from near import channels_last
from step_results import BF16, byte_images, errors_of, exact_step, one_step
from torch import Tensor, nn

from yolox.kernels.training.acceleration import accelerate, table
from yolox.models.layers import ConvBnAct, Focus

pytestmark = pytest.mark.usefixtures("need_compiler")


class _Code(nn.Module):
    """A block around whose call Python does something."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.scale, self.calls = what, 1.0, 0
        self.seen: Tensor | None = None
        self.block = ConvBnAct(16, 16, 1)

    @property
    def factor(self) -> float:
        return self.scale

    def forward(self, x: Tensor) -> Tensor:
        if self.what == "random" and random.random() < 0.5:
            return self.block(x) * 3
        if self.what == "torch random":
            return self.block(x) * torch.rand(1)
        if self.what == "counts":
            self.calls += 1
        if self.what == "keeps":
            self.seen = x
        if self.what == "property":
            return self.block(x) * self.factor
        if self.what == "values" and x.sum() > 0:
            return self.block(x) * 2
        if self.what == "sizes" and x.shape[-1] > 6:
            return self.block(x) * 2
        return self.block(x) * self.scale


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("random", "random numbers"),
        ("torch random", "random numbers"),
        ("counts", "changes the attribute 'calls'"),
        ("keeps", "changes the attribute 'seen'"),
        ("property", "property 'factor'"),
        ("values", "values or sizes"),
        ("sizes", "values or sizes"),
    ],
)
def test_code_that_cannot_be_captured_runs_as_it_is(what: str, reason: str) -> None:
    torch.manual_seed(0)
    random.seed(0)
    plain = _Code(what).train().to(memory_format=torch.channels_last)
    # every code of a class is looked at, so the class has to hold nothing but what is asked for
    ours, x = accelerate(copy.deepcopy(plain)), channels_last(2, 16, 8, 8)
    for _ in range(3):
        random.seed(4)
        torch.manual_seed(4)
        found = one_step(ours, x)
        random.seed(4)
        torch.manual_seed(4)
        assert max(errors_of(found, one_step(plain, x)).values()) < 1e-4
    assert (ours.calls, ours.seen is None) == (plain.calls, plain.seen is None)
    rows = table(ours)
    assert any(row.kernel == "its parts on their own" for row in rows)
    assert any("convolution" in row.kernel for row in rows), "the block itself has a plan"


class _Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.options = 1.0, {"add": 0.0}
        self.block = ConvBnAct(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self._scaled(self.block(x))

    def _scaled(self, x: Tensor) -> Tensor:
        return x * self.scale + self.options["add"]


def test_attributes_that_the_code_reads_may_change() -> None:
    ours: Any = accelerate(_Scaled().train())
    x = channels_last(2, 16, 8, 8)
    one = ours(x)
    ours.scale = 2.0
    torch.testing.assert_close(ours(x), 2 * one)
    ours.options["add"] = 1.0
    torch.testing.assert_close(ours(x), 2 * one + 1)
    assert table(ours)[0].kernel != "its parts on their own"


def test_a_module_that_changes_at_each_step_is_left_to_pytorch(caplog: pytest.LogCaptureFixture) -> None:
    ours: Any = accelerate(_Scaled().train())
    x = channels_last(2, 16, 8, 8)
    for number in range(70):
        ours.scale = float(number)
        assert bool((ours(x) == 0).all()) == (number == 0)
    assert caplog.text.count("changes so often") == 1


@pytest.mark.parametrize("form", ["slices", "reshape", "unshuffle"])
def test_space_to_depth_is_recognised_however_it_is_written(form: str) -> None:
    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = ConvBnAct(12, 16, 3)

        def forward(self, x: Tensor) -> Tensor:
            if form == "unshuffle":
                return self.conv(F.pixel_unshuffle(x, 2))
            corners = (x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2])
            return self.conv(torch.cat(corners, dim=1))

    torch.manual_seed(0)
    plain = (Focus(3, 16) if form == "reshape" else Stem()).train().to(memory_format=torch.channels_last)
    ours, x = accelerate(copy.deepcopy(plain)), byte_images().float()
    assert max(errors_of(one_step(ours, x), exact_step(plain, x)).values()) < 1e-4
    assert "6x6" in table(ours)[0].kernel
    other = nn.Sequential(nn.ZeroPad2d((1, 0, 1, 0)), ConvBnAct(3, 16, 3)).train()
    assert max(errors_of(one_step(accelerate(copy.deepcopy(other)), x), exact_step(other, x)).values()) < 1e-4


@pytest.mark.usefixtures("bf16_products")
def test_images_as_bytes_reach_the_stem() -> None:
    torch.manual_seed(0)
    plain = Focus(3, 16).train().to(memory_format=torch.channels_last)
    for x in (byte_images(), byte_images().float()):
        ours = accelerate(copy.deepcopy(plain))
        found, exact = one_step(ours, x, BF16), exact_step(plain, x)
        assert max(errors_of(found, exact).values()) < 0.05
        assert table(ours)[0].kernel.startswith("space-to-depth and 3x3 as one")
    one_step(ours, byte_images().float().requires_grad_(), BF16)
    assert table(ours)[0].reason == "its input is not an image without gradient"
