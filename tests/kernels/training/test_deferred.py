"""What is left to the readers of a convolution comes out as PyTorch's layers would have it, and gradients do, too."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from near import assert_near, channels_last
from torch import Tensor, nn

from yolox.kernels.library import SWITCH, host_variants
from yolox.kernels.training.deferred import (
    Deferred,
    Features,
    add_shortcut,
    defer_norm,
    depthwise_block,
    materialize,
    pointwise_block,
    pointwise_prediction,
    pointwise_with_shortcut,
    stem_block,
)
from yolox.kernels.training.norms import IDENTITY, RELU, RELU6, SILU, Activation, NormAct

pytestmark = pytest.mark.usefixtures("need_compiler")

KINDS: dict[str, tuple[Activation, Any]] = {
    "silu": (SILU, F.silu),
    "relu": (RELU, F.relu),
    "relu6": (RELU6, F.relu6),
    "identity": (IDENTITY, lambda x: x),
    "leaky relu": (Activation(False, below=0.1), lambda x: F.leaky_relu(x, 0.1)),
}


def _norms(*channels: int) -> list[nn.BatchNorm2d]:
    norms = [nn.BatchNorm2d(count, eps=1e-3, momentum=0.03) for count in channels]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
    return norms


def _assert_norms_near(found: list[nn.BatchNorm2d], wanted: list[nn.BatchNorm2d]) -> None:
    for ours, exact in zip(found, wanted, strict=True):
        assert ours.num_batches_tracked is not None
        assert int(ours.num_batches_tracked) == 1
        for name in ("running_mean", "running_var"):
            assert_near(getattr(ours, name), getattr(exact, name), 1e-2)
        for name in ("weight", "bias"):
            assert_near(getattr(ours, name).grad, getattr(exact, name).grad, 2e-2)


@pytest.fixture(
    params=[
        *(("amx", torch.bfloat16), ("avx512-bf16", torch.bfloat16), ("portable", torch.bfloat16)),
        *(("avx512", torch.float32), ("avx2", torch.float32), ("portable", torch.float32)),
    ],
    ids=lambda param: f"{param[0]} {param[1]}",
)
def _instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels of several processors, and the type in which they store what is between convolutions."""
    name, dtype = request.param
    if name not in {variant.name for variant in host_variants()}:
        pytest.skip(f"this processor has no {name}")
    monkeypatch.setenv(SWITCH, name)
    monkeypatch.setattr(_Exact, "dtype", dtype)


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.to(_Exact.dtype).double()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class _Exact:
    """Features in float64 beside ours, with the same rounding, and leaves that gather the gradients of both."""

    dtype = torch.bfloat16

    def __init__(self, ours: Features, exact: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> None:
        self.ours, self.exact, self.pairs = ours, exact, pairs

    @classmethod
    def of(cls, shape: tuple[int, ...], deferred: bool, kind: str = "silu") -> _Exact:
        """Return an input; one that is deferred still has to be normalised and activated."""
        data = channels_last(*shape, dtype=cls.dtype)
        ours, exact = data.clone().requires_grad_(), data.double().requires_grad_()
        if not deferred:
            return cls(ours, exact, [(ours, exact)])
        norm = _norms(shape[1])[0]
        plain = copy.deepcopy(norm).double()
        pairs = [(ours, exact), (norm.weight, plain.weight), (norm.bias, plain.bias)]
        activation, act = KINDS[kind]
        return cls(defer_norm(ours, NormAct(norm, activation)), _Rounded.apply(act(plain(exact))), pairs)


def _weights(*shape: int) -> tuple[Tensor, Tensor]:
    weight = (torch.randn(*shape) / shape[1] ** 0.5).bfloat16().float()
    return weight.clone().requires_grad_(), weight.double().requires_grad_()


def _assert_same_gradients(
    found: list[Tensor], wanted: list[Tensor], pairs: list[tuple[Tensor, Tensor]], tolerance: float = 3e-2
) -> None:
    """Outputs lie apart; gradients come from the middle of a wider tensor."""
    batch, _, *size = found[0].shape
    channels = [value.shape[1] for value in found]
    tolerance = tolerance if _Exact.dtype == torch.bfloat16 else 2e-4
    grads = channels_last(batch, 16 + sum(channels), *size, dtype=_Exact.dtype)[:, 16:].split(channels, dim=1)
    torch.autograd.backward(wanted, [grad.double() for grad in grads])
    torch.autograd.backward(found, grads)
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in found)
    for ours, right in (*zip(found, wanted, strict=True), *((a.grad, b.grad) for a, b in pairs)):
        assert ours.shape == right.shape
        assert_near(ours, right, tolerance)


POINTWISE = [  # batch, size, channels of the parts, which of them deferred, channels out
    (3, (20, 12), (32,), (False,), (16,)),
    (1, (7, 9), (16,), (True,), (48,)),
    (2, (13, 13), (64, 32), (False, False), (32, 48)),
    (2, (13, 13), (64, 32), (True, False), (32,)),
    (2, (9, 13), (16, 48), (False, True), (32, 48)),
    (1, (2, 3), (16, 16), (True, True), (16, 16)),
    (5, (16, 40), (48, 80), (True, True), (80,)),
    (2, (26, 26), (128,), (True,), (64, 64)),
]


@pytest.mark.usefixtures("_instructions")
@pytest.mark.parametrize(("batch", "size", "inputs", "deferred", "outputs"), POINTWISE)
def test_pointwise_block_equals_float64(
    batch: int, size: tuple[int, int], inputs: tuple[int, ...], deferred: tuple[bool, ...], outputs: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    parts = [_Exact.of((batch, count, *size), one) for count, one in zip(inputs, deferred, strict=True)]
    weight, plain = _weights(sum(outputs), sum(inputs), 1, 1)
    norms = _norms(*outputs)
    exact = [norm.double() for norm in copy.deepcopy(norms)]
    values = F.conv2d(torch.cat([part.exact for part in parts], dim=1), plain).split(outputs, dim=1)
    # the output of a convolution is rounded: what follows is compared from there
    wanted = [F.silu(norm(_Rounded.apply(value))) for norm, value in zip(exact, values, strict=True)]
    found = [
        materialize(y)
        for y in pointwise_block([part.ours for part in parts], weight, [NormAct(norm) for norm in norms])
    ]
    _assert_same_gradients(found, wanted, [(weight, plain), *(pair for part in parts for pair in part.pairs)])
    _assert_norms_near(norms, exact)


@pytest.mark.usefixtures("_instructions")
@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("size", "channels"), [((20, 12), 32), ((7, 9), 16), ((3, 3), 64), ((1, 2), 48)], ids=str)
def test_depthwise_block_equals_float64(size: tuple[int, int], channels: int, stride: int, deferred: bool) -> None:
    torch.manual_seed(0)
    x, norms = _Exact.of((3, channels, *size), deferred), _norms(channels)
    weight, plain = _weights(channels, 1, 3, 3)
    exact = [norm.double() for norm in copy.deepcopy(norms)]
    inner = F.conv2d(x.exact, plain, stride=stride, padding=1, groups=channels)
    found = materialize(depthwise_block(x.ours, weight, stride, NormAct(norms[0])))
    wanted = F.silu(exact[0](_Rounded.apply(inner)))
    _assert_same_gradients([found], [wanted], [(weight, plain), *x.pairs])
    _assert_norms_near(norms, exact)


@pytest.mark.usefixtures("_instructions")
@pytest.mark.parametrize("kind", list(KINDS)[1:])
@pytest.mark.parametrize("reader", ["1x1", "depthwise", "shortcut"])
def test_other_activations_are_left_to_readers(reader: str, kind: str) -> None:
    torch.manual_seed(0)
    if (reader, kind) == ("1x1", "identity"):
        pytest.skip("the next normalisation takes away what the first one's bias adds: it has no gradient but rounding")
    (activation, act), (norm,) = KINDS[kind], _norms(32)
    x, exact = _Exact.of((3, 32, 7, 6), deferred=True, kind=kind), copy.deepcopy(norm).double()
    weight, plain = _weights(32, 1, 3, 3) if reader == "depthwise" else _weights(32, 32, 1, 1)
    if reader == "depthwise":
        found = materialize(depthwise_block(x.ours, weight, 1, NormAct(norm, activation)))
        inner = F.conv2d(x.exact, plain, padding=1, groups=32)
    elif reader == "1x1":
        found = materialize(pointwise_block([x.ours], weight, [NormAct(norm, activation)])[0])
        inner = F.conv2d(x.exact, plain)
    else:
        found = add_shortcut(*pointwise_with_shortcut(x.ours, weight, NormAct(norm, activation)))
        inner = F.conv2d(x.exact, plain)
    wanted = act(exact(_Rounded.apply(inner))) + (x.exact if reader == "shortcut" else 0)
    _assert_same_gradients([found], [wanted], [(weight, plain), *x.pairs], 5e-2)


@pytest.mark.usefixtures("_instructions")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize(("size", "channels"), [((64, 96), 16), ((12, 68), 32), ((6, 4), 48), ((32, 160), 80)], ids=str)
def test_stem_block_equals_float64(size: tuple[int, int], channels: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    if _Exact.dtype != torch.bfloat16:
        pytest.skip("PyTorch computes the stem in float32")
    images, norms = torch.randint(0, 256, (3, 3, *size)).to(dtype), _norms(channels)  # contiguous or not, as they come
    weight, plain = _weights(channels, 3, 6, 6)
    exact = [norm.double() for norm in copy.deepcopy(norms)]
    wanted = F.silu(exact[0](_Rounded.apply(F.conv2d(images.double(), plain, stride=2, padding=2))))
    found = materialize(stem_block(images, weight, NormAct(norms[0])))
    _assert_same_gradients([found], [wanted], [(weight, plain)])
    _assert_norms_near(norms, exact)


@pytest.mark.usefixtures("_instructions")
@pytest.mark.parametrize("deferred", [False, True])
def test_a_shortcut_around_a_convolution_equals_float64(deferred: bool) -> None:
    torch.manual_seed(0)
    x, norms = _Exact.of((3, 32, 9, 7), deferred), _norms(32)
    weight, plain = _weights(32, 32, 1, 1)
    exact = [norm.double() for norm in copy.deepcopy(norms)]
    inner, shortcut = pointwise_with_shortcut(x.ours, weight, NormAct(norms[0]))
    wanted = F.silu(exact[0](_Rounded.apply(F.conv2d(x.exact, plain)))) + x.exact
    _assert_same_gradients([add_shortcut(inner, shortcut)], [wanted], [(weight, plain), *x.pairs])


@pytest.mark.usefixtures("_instructions")
@pytest.mark.parametrize("outputs", [5, 16, 80])
@pytest.mark.parametrize("deferred", [False, True])
def test_a_prediction_equals_float64(outputs: int, deferred: bool) -> None:
    torch.manual_seed(0)
    x, bias = _Exact.of((2, 48, 7, 6), deferred), torch.randn(outputs)
    weight, plain = _weights(outputs, 48, 1, 1)
    ours, exact = bias.clone().requires_grad_(), bias.double().requires_grad_()
    found, wanted = pointwise_prediction(x.ours, weight, ours), F.conv2d(x.exact, plain, exact)
    grad = channels_last(*wanted.shape, dtype=_Exact.dtype)
    found.backward(grad)
    wanted.backward(grad.double())
    for left, right in ((found, wanted), *((a.grad, b.grad) for a, b in [*x.pairs, (weight, plain), (ours, exact)])):
        assert left.shape == right.shape
        assert_near(left, right, 2e-2)


@pytest.mark.usefixtures("bf16_products")
def test_gradients_of_several_readers_add_up() -> None:
    """One activates, one convolves each channel, one all of them; and activation happens once."""
    torch.manual_seed(0)
    x, norms = _Exact.of((2, 32, 8, 6), deferred=True), _norms(32, 16)
    assert isinstance(x.ours, Deferred)
    assert x.ours.materialize() is x.ours.materialize()
    (deep, deep_exact), (point, point_exact) = _weights(32, 1, 3, 3), _weights(16, 32, 1, 1)
    exact = [norm.double() for norm in copy.deepcopy(norms)]
    found = [
        x.ours.materialize(),
        materialize(depthwise_block(x.ours, deep, 1, NormAct(norms[0]))),
        materialize(pointwise_block([x.ours], point, [NormAct(norms[1])])[0]),
    ]
    convolved = F.conv2d(x.exact, deep_exact, padding=1, groups=32), F.conv2d(x.exact, point_exact)
    wanted = [x.exact] + [F.silu(n(_Rounded.apply(y))) for n, y in zip(exact, convolved, strict=True)]
    _assert_same_gradients(found, wanted, [(deep, deep_exact), (point, point_exact), *x.pairs])


@pytest.mark.usefixtures("bf16_products")
def test_nothing_is_kept_when_a_step_is_over() -> None:
    """An autograd function that holds its own output would never be freed."""
    gc.collect()
    gc.disable()
    try:
        x, norms = channels_last(2, 32, 8, 8, dtype=torch.bfloat16).requires_grad_(), _norms(32, 32)
        (inner,) = pointwise_block([x], _weights(32, 32, 1, 1)[0], [NormAct(norms[0])])
        y = depthwise_block(inner, _weights(32, 1, 3, 3)[0], 1, NormAct(norms[1]))
        alive = [weakref.ref(value.value.grad_fn) for value in (inner, y)]
        materialize(y).sum().backward()
        del x, y, inner
        assert [one() for one in alive] == [None, None]
    finally:
        gc.enable()


@pytest.mark.usefixtures("bf16_products")
def test_a_first_layer_gets_no_gradient_it_does_not_want() -> None:
    torch.manual_seed(0)
    x, (norm,) = channels_last(2, 16, 8, 8, dtype=torch.bfloat16), _norms(16)
    weight = torch.randn(16, 16, 1, 1, requires_grad=True)
    (y,) = pointwise_block([x], weight, [NormAct(norm)])
    materialize(y).backward(channels_last(2, 16, 8, 8, dtype=torch.bfloat16))
    assert x.grad is None
    assert weight.grad.abs().sum() > 0
