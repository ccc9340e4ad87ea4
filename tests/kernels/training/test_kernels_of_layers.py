"""The compiled kernels compute what PyTorch's layers do, and stand aside where they must."""

from __future__ import annotations

import ctypes

import pytest
import torch
import torch.nn.functional as F
from near import assert_near, channels_last
from torch import nn

from yolox.errors import YoloxError
from yolox.kernels.library import SWITCH, host_variants, kernels
from yolox.kernels.training import bindings
from yolox.kernels.training.autograd import batchnorm_act, dense_gradient, depthwise_conv, strided_depthwise_conv
from yolox.kernels.training.norms import IDENTITY, RELU, RELU6, SILU, Activation, NormAct

SHAPES = [(2, 16, 20, 12), (3, 24, 13, 7), (1, 128, 3, 5), (2, 1, 3, 3), (5, 33, 1, 1)]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1.2e-2}


@pytest.fixture(autouse=True, params=host_variants(), ids=lambda variant: variant.name)
def _variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is tested with each instruction set that this processor has."""
    monkeypatch.setenv(SWITCH, request.param.name)
    if kernels() is None:
        pytest.skip("no C++ compiler, or YOLOX_KERNELS=0")


def test_structures_that_differ_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Images(ctypes.Structure):
        _fields_ = bindings.Images._fields_[1:]

    library = kernels()
    assert library is not None
    bindings.check_layouts(library)
    bindings.check_layouts.cache_clear()
    monkeypatch.setattr(bindings, "_STRUCTURES", (Images,))
    with pytest.raises(YoloxError, match="another Images"):
        bindings.check_layouts(library)


@pytest.mark.parametrize("kernel", ["depthwise_forward", "stem_forward"])
def test_memory_that_does_not_suffice_is_an_error(kernel: str) -> None:
    """Nothing is thrown at Python or out of the threads, whose buffers the stem's kernel asks for."""
    numbers, huge = torch.zeros(16 * 36 * 3), 2**44
    with pytest.raises(MemoryError, match=kernel):
        if kernel == "depthwise_forward":
            images = bindings.Images(1, 16, 1, huge, 1)
            bindings.call(kernel, torch.float32, numbers, bindings.Norm(), numbers, images, numbers, None)
        elif bindings.has_pointwise(torch.bfloat16):
            pixels = bindings.StemInput(numbers.data_ptr(), 1, 1, 2, huge, 16)
            bindings.call(kernel, torch.bfloat16, pixels, numbers, numbers, numbers.double())
        else:
            raise MemoryError(f"{kernel} has no kernel here")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norm_act_equals_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    _compare_batchnorm(shape, dtype, SILU, nn.SiLU())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
@pytest.mark.parametrize(
    ("ours", "plain"),
    [
        (RELU, nn.ReLU()),
        (RELU6, nn.ReLU6()),
        (IDENTITY, nn.Identity()),
        (Activation(False, below=0.1), nn.LeakyReLU(0.1)),
    ],
    ids=["relu", "relu6", "identity", "leaky relu"],
)
def test_other_activations_equal_float64(
    ours: Activation, plain: nn.Module, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    _compare_batchnorm(shape, dtype, ours, plain)


def _compare_batchnorm(shape: tuple[int, ...], dtype: torch.dtype, activation: Activation, plain: nn.Module) -> None:
    torch.manual_seed(0)
    x = channels_last(*shape, dtype=dtype) * 3 + 20 * torch.randn(shape[1])[:, None, None].to(dtype)
    dy = channels_last(*shape, dtype=dtype)
    ours, exact = nn.BatchNorm2d(shape[1], eps=1e-3, momentum=0.03), nn.BatchNorm2d(shape[1], eps=1e-3, momentum=0.03)
    nn.init.normal_(ours.weight, std=3)
    nn.init.normal_(ours.bias)
    exact.load_state_dict(ours.state_dict())
    exact.double()
    x_ours, x_exact = x.clone().requires_grad_(), x.double().requires_grad_()
    y, wanted = batchnorm_act(x_ours, NormAct(ours, activation)), plain(exact(x_exact))
    y.backward(dy)
    wanted.backward(dy.double())
    assert y.dtype == x_ours.grad.dtype == dtype
    tolerance = TOLERANCE[dtype]
    for found, right in zip((y, x_ours.grad), (wanted, x_exact.grad), strict=True):
        assert_near(found, right, tolerance)
    assert_near(ours.weight.grad, exact.weight.grad, tolerance)
    assert_near(ours.bias.grad, exact.bias.grad, tolerance)
    assert_near(ours.running_mean, exact.running_mean, 1e-5)
    assert_near(ours.running_var, exact.running_var, 1e-4)
    assert ours.num_batches_tracked is not None
    assert int(ours.num_batches_tracked) == 1


@pytest.mark.parametrize("activation", [SILU, RELU, RELU6, IDENTITY], ids=str)
def test_infinite_and_undefined_numbers_stay_visible(activation: Activation) -> None:
    x = channels_last(2, 16, 4, 4)
    x[0, 3, 1, 1] = float("nan")
    y = batchnorm_act(x, NormAct(nn.BatchNorm2d(16), activation))
    assert y[:, 3].isnan().all(), "a network that diverges must show it"
    assert not y[:, 4].isnan().any()


def test_a_single_value_a_channel_is_refused_as_pytorch_does() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        batchnorm_act(channels_last(1, 16, 1, 1), NormAct(nn.BatchNorm2d(16)))


def test_silu_at_its_ends() -> None:
    x = torch.tensor([-1e4, -200.0, -90.0, -20.0, 0.0, 20.0, 90.0, 200.0, 1e4, float("nan")])
    x = x.repeat(16).reshape(1, 1, 16, 10).repeat(1, 16, 1, 1).contiguous(memory_format=torch.channels_last)
    norm = nn.BatchNorm2d(16)
    y = batchnorm_act(x.nan_to_num(0).requires_grad_(), NormAct(norm))
    torch.testing.assert_close(y, F.silu(nn.BatchNorm2d(16)(x.nan_to_num(0))))
    assert batchnorm_act(x, NormAct(norm)).isnan().all(), "a network that diverges must show it"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 12), (7, 9), (1, 1), (2, 3), (13, 26)])
def test_depthwise_equals_float64(size: tuple[int, int], stride: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight = channels_last(3, 32, *size, dtype=dtype), torch.randn(32, 1, 3, 3).to(dtype).float()
    x_ours, x_exact = x.clone().requires_grad_(), x.double().requires_grad_()
    w_ours, w_exact = weight.clone().requires_grad_(), weight.double().requires_grad_()
    y = depthwise_conv(x_ours, w_ours, stride)
    wanted = F.conv2d(x_exact, w_exact, stride=stride, padding=1, groups=32)
    dy = channels_last(*wanted.shape, dtype=dtype)
    y.backward(dy)
    wanted.backward(dy.double())
    pairs = ((y, wanted), (x_ours.grad, x_exact.grad), (w_ours.grad, w_exact.grad))
    for found, right in pairs:
        assert found.shape == right.shape
        assert_near(found, right, TOLERANCE[dtype])


@pytest.mark.parametrize("size", [(8, 12), (7, 9)])
@pytest.mark.parametrize("kernel", [3, 5])
def test_strided_depthwise_equals_float64(size: tuple[int, int], kernel: int) -> None:
    torch.manual_seed(0)
    x, weight = channels_last(2, 6, *size, dtype=torch.bfloat16), torch.randn(6, 1, kernel, kernel).bfloat16().float()
    x_ours, x_exact = x.clone().requires_grad_(), x.double().requires_grad_()
    w_ours, w_exact = weight.clone().requires_grad_(), weight.double().requires_grad_()
    y = strided_depthwise_conv(x_ours, w_ours, (kernel // 2, kernel // 2))
    wanted = F.conv2d(x_exact, w_exact, stride=2, padding=kernel // 2, groups=6)
    dy = channels_last(*wanted.shape, dtype=torch.bfloat16)
    y.backward(dy)
    wanted.backward(dy.double())
    for found, right in ((y, wanted), (x_ours.grad, x_exact.grad), (w_ours.grad, w_exact.grad)):
        assert_near(found, right, 1.2e-2)


def test_gradient_of_a_slice() -> None:
    """Concatenation hands back gradients that are parts of a larger tensor."""
    torch.manual_seed(0)
    norm, exact = nn.BatchNorm2d(16), nn.BatchNorm2d(16).double()
    factor, data = channels_last(2, 32, 6, 6), channels_last(2, 16, 6, 6)
    x, x_exact = data.clone().requires_grad_(), data.double().requires_grad_()
    (torch.cat([batchnorm_act(x, NormAct(norm)) for _ in range(2)], dim=1) * factor).sum().backward()
    (torch.cat([F.silu(exact(x_exact)) for _ in range(2)], dim=1) * factor.double()).sum().backward()
    assert_near(x.grad, x_exact.grad, 1e-5)


def test_dense_gradient() -> None:
    x, strides = channels_last(2, 16, 6, 6).requires_grad_(), []
    y = dense_gradient(x * 1)
    y.grad_fn.next_functions[0][0].register_prehook(lambda grads: strides.append(grads[0].stride()))
    (torch.cat((y, x), dim=1) * channels_last(2, 32, 6, 6)).sum().backward()
    assert strides == [x.stride()]
    assert dense_gradient(y.detach()).grad_fn is None
