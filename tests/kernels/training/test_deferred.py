"""What is left to the readers of a convolution comes out as PyTorch's layers would have it, and gradients do, too."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from near import assert_near, channels_last
from torch import Tensor, nn

from yolox.kernels.build import compiled_kernels
from yolox.kernels.training import bindings
from yolox.kernels.training.deferred import (
    Features,
    Pending,
    activated,
    add_shortcut,
    depthwise_block,
    left_pending,
    pointwise_block,
    pointwise_prediction,
    pointwise_with_shortcut,
    stem_block,
)
from yolox.models.layers import ConvBnAct, CspLayer, DepthwiseConv, Focus, pending

needs_pointwise = pytest.mark.skipif(
    not bindings.has_pointwise(), reason="this processor does not multiply bfloat16 (AVX512-BF16), so nothing does here"
)


def _norms(*channels: int) -> list[nn.BatchNorm2d]:
    norms = [nn.BatchNorm2d(count, eps=1e-3, momentum=0.03) for count in channels]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
    return norms


def _assert_norms_near(found: list[nn.BatchNorm2d], wanted: list[nn.BatchNorm2d]) -> None:
    for ours, exact in zip(found, wanted, strict=True):
        assert int(ours.num_batches_tracked) == 1
        for name in ("running_mean", "running_var"):
            assert_near(getattr(ours, name), getattr(exact, name), 1e-2)
        for name in ("weight", "bias"):
            assert_near(getattr(ours, name).grad, getattr(exact, name).grad, 2e-2)


@pytest.fixture(params=["fastest", "without AMX"])
def _instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernels as compiled for this processor, and as for one without a matrix unit."""
    if request.param == "without AMX":
        plain = compiled_kernels(Path(bindings.__file__).parents[1] / "csrc" / "training", "-DWITHOUT_AMX")
        monkeypatch.setattr(bindings, "kernels", lambda: plain)
    bindings._kernel.cache_clear()
    yield
    bindings._kernel.cache_clear()


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.bfloat16().double()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class _Exact:
    """Features in float64 beside ours, with the same rounding, and leaves that gather the gradients of both."""

    def __init__(self, ours: Features, exact: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> None:
        self.ours, self.exact, self.pairs = ours, exact, pairs

    @classmethod
    def of(cls, shape: tuple[int, ...], waits: bool) -> _Exact:
        """Return an input; one that waits still has to be normalised and activated."""
        data = channels_last(*shape, dtype=torch.bfloat16)
        ours, exact = data.clone().requires_grad_(), data.double().requires_grad_()
        if not waits:
            return cls(ours, exact, [(ours, exact)])
        norm = _norms(shape[1])[0]
        plain = copy.deepcopy(norm).double()
        pairs = [(ours, exact), (norm.weight, plain.weight), (norm.bias, plain.bias)]
        return cls(left_pending(ours, norm), _Rounded.apply(F.silu(plain(exact))), pairs)


def _weights(*shape: int) -> tuple[Tensor, Tensor]:
    weight = (torch.randn(*shape) / shape[1] ** 0.5).bfloat16().float()
    return weight.clone().requires_grad_(), weight.double().requires_grad_()


def _assert_same_gradients(found: list[Tensor], wanted: list[Tensor], pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Outputs lie apart; gradients come from the middle of a wider tensor."""
    batch, _, *size = found[0].shape
    channels = [value.shape[1] for value in found]
    grads = channels_last(batch, 16 + sum(channels), *size, dtype=torch.bfloat16)[:, 16:].split(channels, dim=1)
    torch.autograd.backward(wanted, [grad.double() for grad in grads])
    torch.autograd.backward(found, grads)
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in found)
    for ours, right in (*zip(found, wanted, strict=True), *((a.grad, b.grad) for a, b in pairs)):
        assert ours.shape == right.shape
        assert_near(ours, right, 3e-2)


POINTWISE = [  # batch, size, channels of the parts, which of them wait, channels out
    (3, (20, 12), (32,), (False,), (16,)),
    (1, (7, 9), (16,), (True,), (48,)),
    (2, (13, 13), (64, 32), (False, False), (32, 48)),
    (2, (13, 13), (64, 32), (True, False), (32,)),
    (2, (9, 13), (16, 48), (False, True), (32, 48)),
    (1, (2, 3), (16, 16), (True, True), (16, 16)),
    (5, (16, 40), (48, 80), (True, True), (80,)),
    (2, (26, 26), (128,), (True,), (64, 64)),
]


@needs_pointwise
@pytest.mark.usefixtures("_instructions")
@pytest.mark.parametrize(("batch", "size", "inputs", "waiting", "outputs"), POINTWISE)
def test_pointwise_block_equals_float64(
    batch: int, size: tuple[int, int], inputs: tuple[int, ...], waiting: tuple[bool, ...], outputs: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    parts = [_Exact.of((batch, count, *size), waits) for count, waits in zip(inputs, waiting, strict=True)]
    weight, plain = _weights(sum(outputs), sum(inputs), 1, 1)
    norms = _norms(*outputs)
    exact = [norm.double() for norm in copy.deepcopy(norms)]
    values = F.conv2d(torch.cat([part.exact for part in parts], dim=1), plain).split(outputs, dim=1)
    # the output of a convolution is rounded: what follows is compared from there
    wanted = [F.silu(norm(_Rounded.apply(value))) for norm, value in zip(exact, values, strict=True)]
    found = [activated(y) for y in pointwise_block([part.ours for part in parts], weight, norms)]
    _assert_same_gradients(found, wanted, [(weight, plain), *(pair for part in parts for pair in part.pairs)])
    _assert_norms_near(norms, exact)


@needs_pointwise
@pytest.mark.usefixtures("_instructions")
@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("size", "channels"), [((20, 12), 32), ((7, 9), 16), ((3, 3), 64), ((1, 2), 48)], ids=str)
def test_depthwise_block_equals_float64(size: tuple[int, int], channels: int, stride: int, waits: bool) -> None:
    torch.manual_seed(0)
    x, norms = _Exact.of((3, channels, *size), waits), _norms(channels)
    weight, plain = _weights(channels, 1, 3, 3)
    exact = [norm.double() for norm in copy.deepcopy(norms)]
    inner = F.conv2d(x.exact, plain, stride=stride, padding=1, groups=channels)
    found = activated(depthwise_block(x.ours, weight, stride, norms[0]))
    wanted = F.silu(exact[0](_Rounded.apply(inner)))
    _assert_same_gradients([found], [wanted], [(weight, plain), *x.pairs])
    _assert_norms_near(norms, exact)


@needs_pointwise
@pytest.mark.usefixtures("_instructions")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize(("size", "channels"), [((64, 96), 16), ((12, 68), 32), ((6, 4), 48), ((32, 160), 80)], ids=str)
def test_stem_block_equals_float64(size: tuple[int, int], channels: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    images, norms = torch.randint(0, 256, (3, 3, *size)).to(dtype), _norms(channels)  # contiguous or not, as they come
    weight, plain = _weights(channels, 3, 6, 6)
    exact = [norm.double() for norm in copy.deepcopy(norms)]
    wanted = F.silu(exact[0](_Rounded.apply(F.conv2d(images.double(), plain, stride=2, padding=2))))
    found = activated(stem_block(images, weight, norms[0]))
    _assert_same_gradients([found], [wanted], [(weight, plain)])
    _assert_norms_near(norms, exact)


@needs_pointwise
def test_the_stem_takes_images_as_they_are() -> None:
    torch.manual_seed(0)
    stem, images = Focus(3, 16).to(memory_format=torch.channels_last), torch.randint(0, 256, (2, 3, 32, 48))
    assert _way_of(stem, images.float()) == "", "fp32 keeps the official order of sums"
    with torch.autocast("cpu", torch.bfloat16):
        for dtype in (torch.uint8, torch.float32):
            assert _way_of(stem, images.to(dtype)) == "_StemBlockBackward"
        assert _way_of(stem, images.float().requires_grad_()) == "_LeavePendingBackward", "images get no gradient"
    with torch.autocast("cpu", torch.bfloat16):
        hook = stem.conv.register_forward_hook(lambda *_: None)
        assert _way_of(stem, images.to(torch.uint8)) != "_StemBlockBackward"
        hook.remove()
        ours = activated(pending(stem, images.to(torch.uint8)))
        plain = stem.conv(Focus.space_to_depth(images.float()))
    assert_near(ours, plain, 4e-2)


@needs_pointwise
@pytest.mark.usefixtures("_instructions")
@pytest.mark.parametrize("waits", [False, True])
def test_a_shortcut_around_a_convolution_equals_float64(waits: bool) -> None:
    torch.manual_seed(0)
    x, norms = _Exact.of((3, 32, 9, 7), waits), _norms(32)
    weight, plain = _weights(32, 32, 1, 1)
    exact = [norm.double() for norm in copy.deepcopy(norms)]
    inner, shortcut = pointwise_with_shortcut(x.ours, weight, norms[0])
    wanted = F.silu(exact[0](_Rounded.apply(F.conv2d(x.exact, plain)))) + x.exact
    _assert_same_gradients([add_shortcut(inner, shortcut)], [wanted], [(weight, plain), *x.pairs])


@needs_pointwise
@pytest.mark.usefixtures("_instructions")
@pytest.mark.parametrize("outputs", [5, 16, 80])
@pytest.mark.parametrize("waits", [False, True])
def test_a_prediction_equals_float64(outputs: int, waits: bool) -> None:
    torch.manual_seed(0)
    x, bias = _Exact.of((2, 48, 7, 6), waits), torch.randn(outputs)
    weight, plain = _weights(outputs, 48, 1, 1)
    ours, exact = bias.clone().requires_grad_(), bias.double().requires_grad_()
    found, wanted = pointwise_prediction(x.ours, weight, ours), F.conv2d(x.exact, plain, exact)
    grad = channels_last(*wanted.shape, dtype=torch.bfloat16)
    found.backward(grad)
    wanted.backward(grad.double())
    for left, right in ((found, wanted), *((a.grad, b.grad) for a, b in [*x.pairs, (weight, plain), (ours, exact)])):
        assert left.shape == right.shape
        assert_near(left, right, 2e-2)


@needs_pointwise
def test_gradients_of_several_readers_add_up() -> None:
    """One activates, one convolves each channel, one all of them; and activation happens once."""
    torch.manual_seed(0)
    x, norms = _Exact.of((2, 32, 8, 6), waits=True), _norms(32, 16)
    assert isinstance(x.ours, Pending)
    assert x.ours.activated() is x.ours.activated()
    (deep, deep_exact), (point, point_exact) = _weights(32, 1, 3, 3), _weights(16, 32, 1, 1)
    exact = [norm.double() for norm in copy.deepcopy(norms)]
    found = [
        x.ours.activated(),
        activated(depthwise_block(x.ours, deep, 1, norms[0])),
        activated(pointwise_block([x.ours], point, norms[1:])[0]),
    ]
    convolved = F.conv2d(x.exact, deep_exact, padding=1, groups=32), F.conv2d(x.exact, point_exact)
    wanted = [x.exact] + [F.silu(n(_Rounded.apply(y))) for n, y in zip(exact, convolved, strict=True)]
    _assert_same_gradients(found, wanted, [(deep, deep_exact), (point, point_exact), *x.pairs])


@needs_pointwise
def test_nothing_is_kept_when_a_step_is_over() -> None:
    """An autograd function that holds its own output would never be freed."""
    gc.collect()
    gc.disable()
    try:
        layer = CspLayer(32, 32, depth=1, depthwise=True).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            x = layer.pending(channels_last(2, 32, 8, 8).requires_grad_())
            assert isinstance(x, Pending)
            alive = weakref.ref(x.value.grad_fn)
            activated(x).sum().backward()
        del x
        assert alive() is None
    finally:
        gc.enable()


@needs_pointwise
def test_a_first_layer_gets_no_gradient_it_does_not_want() -> None:
    torch.manual_seed(0)
    x, (norm,) = channels_last(2, 16, 8, 8, dtype=torch.bfloat16), _norms(16)
    weight = torch.randn(16, 16, 1, 1, requires_grad=True)
    (y,) = pointwise_block([x], weight, [norm])
    activated(y).backward(channels_last(2, 16, 8, 8, dtype=torch.bfloat16))
    assert x.grad is None
    assert weight.grad.abs().sum() > 0


def _way_of(block: nn.Module, x: Tensor) -> str:
    """Return the name of the function that made what the block leaves to its readers."""
    y = pending(block.train(), x)
    return "" if isinstance(y, Tensor) else type(y.value.grad_fn).__name__


@needs_pointwise
def test_blocks_take_the_kernels_in_bf16_alone() -> None:
    x = channels_last(2, 32, 8, 8).requires_grad_()
    point, depth, separable = ConvBnAct(32, 16, 1), ConvBnAct(32, 32, 3, groups=32), DepthwiseConv(32, 16, 3, stride=2)
    assert {_way_of(block, x) for block in (point, depth, separable)} == {""}, "fp32 keeps the official order of sums"
    with torch.autocast("cpu", torch.bfloat16):
        assert _way_of(point, x) == _way_of(separable, x) == "_PointwiseBlockBackward"
        assert _way_of(depth, x) == "_DepthwiseBlockBackward"
        left = "_LeavePendingBackward"
        assert _way_of(ConvBnAct(32, 24, 1), x) == "", "24 is no multiple of 16"
        assert _way_of(ConvBnAct(32, 1024, 1), x) == left, "oneDNN is faster where it is wide"
        assert _way_of(ConvBnAct(32, 16, 3), x) == left
        assert _way_of(ConvBnAct(32, 32, 5, groups=32), x) == left
        for module in (point.conv, point.bn, point.act, point):
            hook = module.register_forward_hook(lambda *_: None)
            assert _way_of(point, x) in ("", left), module
            hook.remove()
        seen = []
        hook = separable.dconv.register_forward_hook(lambda *arguments: seen.append(arguments[2]))
        assert _way_of(separable, x) == "_PointwiseBlockBackward"
        assert [type(y) for y in seen] == [Tensor], "whoever looks sees feature maps"
        assert isinstance(separable(x), Tensor)
        with torch.no_grad():
            assert separable(x).grad_fn is None


@needs_pointwise
def test_whoever_looks_sees_feature_maps() -> None:
    """A hook on all modules, one for gradients, a forward of one's own, a subclass."""

    class Doubled(DepthwiseConv):
        def forward(self, *inputs: Features) -> Any:
            return 2 * super().forward(*inputs)

    x, seen = channels_last(2, 32, 8, 8), []
    with torch.autocast("cpu", torch.bfloat16):
        assert _way_of(Doubled(32, 16, 3), x) == ""
        block = DepthwiseConv(32, 16, 3)
        block.forward = lambda *inputs: seen.append(inputs) or inputs[0]  # type: ignore[assignment]
        assert pending(block.train(), x) is x
        hook = nn.modules.module.register_module_forward_hook(lambda *arguments: seen.append(arguments[2]))
        try:
            assert _way_of(DepthwiseConv(32, 16, 3), x) == ""
        finally:
            hook.remove()
        assert seen
        assert all(isinstance(y, Tensor) for y in seen[1:])
        block = DepthwiseConv(32, 16, 3)
        block.register_full_backward_hook(lambda *_: None)
        assert _way_of(block, x) == ""
