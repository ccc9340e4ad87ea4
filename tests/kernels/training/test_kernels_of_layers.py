"""The compiled kernels compute what PyTorch's layers do, and stand aside where they must."""

from __future__ import annotations

import copy
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from near import assert_near, channels_last
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from yolox.kernels import library
from yolox.kernels.build import compiled_kernels
from yolox.kernels.training.autograd import batchnorm_silu, depthwise_conv, fits, fits_batchnorm_silu
from yolox.models.head import DetectionHead
from yolox.models.layers import ConvBnAct, CspLayer
from yolox.models.shortcuts import dense_gradient, joined_conv

SHAPES = [(2, 16, 20, 12), (3, 24, 13, 7), (1, 128, 3, 5), (2, 1, 3, 3), (5, 33, 1, 1)]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1.2e-2}


@pytest.fixture(autouse=True)
def _need_compiler() -> None:
    if library.kernels() is None:
        pytest.skip("no C++ compiler, or YOLOX_KERNELS=0")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batchnorm_silu_equals_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = channels_last(*shape, dtype=dtype) * 3 + 20 * torch.randn(shape[1])[:, None, None].to(dtype)
    dy = channels_last(*shape, dtype=dtype)
    ours, exact = nn.BatchNorm2d(shape[1], eps=1e-3, momentum=0.03), nn.BatchNorm2d(shape[1], eps=1e-3, momentum=0.03)
    nn.init.normal_(ours.weight)
    nn.init.normal_(ours.bias)
    exact.load_state_dict(ours.state_dict())
    exact.double()
    x_ours, x_exact = x.clone().requires_grad_(), x.double().requires_grad_()
    assert fits_batchnorm_silu(x_ours, ours, nn.SiLU())
    y, wanted = batchnorm_silu(x_ours, ours), F.silu(exact(x_exact))
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
    assert int(ours.num_batches_tracked) == 1


def _trained(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return gradients and statistics after one step, in bf16 unless the module is in float64."""
    x = x.clone().requires_grad_()
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=x.dtype == torch.float32):
        y = module(x)
    tensors = (y,) if isinstance(y, Tensor) else y[:3]
    sum((value.to(x.dtype) * torch.randn(value.shape)).sum() for value in tensors).backward()
    found = {name: parameter.grad for name, parameter in module.named_parameters()}
    return {**found, **dict(module.named_buffers()), "x": x.grad}


def _mean_error(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    errors = []
    for name, value in exact.items():
        assert_near(found[name], value, 6e-2)
        errors.append(float((found[name].double() - value).abs().max() / value.abs().max().clamp(min=1e-3)))
    return sum(errors) / len(errors)


@pytest.mark.parametrize("part", ["csp", "head"])
def test_layers_together_are_as_exact_as_those_apart(part: str) -> None:
    torch.manual_seed(0)
    if part == "csp":
        together: nn.Module = CspLayer(32, 32, depth=1, depthwise=True)
        x: Any = channels_last(4, 32, 12, 8)
    else:
        head = DetectionHead(7, (16,), width=0.125, strides=(8,), depthwise=True)
        together, x = nn.Sequential(_List(), head), channels_last(4, 16, 12, 8)
    together = together.to(memory_format=torch.channels_last).train()
    apart = copy.deepcopy(together)
    for layer in apart.modules():  # a hook may look at each layer, so that none is skipped
        if type(layer) is nn.Conv2d:
            layer.register_forward_hook(lambda *_: None)
    exact = _trained(copy.deepcopy(together).double(), x.double())
    assert _mean_error(_trained(together, x), exact) < 1.2 * _mean_error(_trained(apart, x), exact)


class _List(nn.Module):
    def forward(self, x: Tensor) -> list[Tensor]:
        return [x]


def test_joined_only_where_rounding_is_free() -> None:
    left, right, x = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 1, 1), channels_last(2, 16, 4, 4)
    assert joined_conv(x, left, right) is None, "fp32 keeps the official order of sums"
    with torch.autocast("cpu", torch.bfloat16):
        both = joined_conv(x, left, right)
        assert both is not None
        torch.testing.assert_close(both, torch.cat((left(x), right(x)), dim=1), rtol=1e-2, atol=1e-2)
        assert joined_conv(x, left.eval(), right) is None, "conversions see the plain layers"
        left.train().register_forward_hook(lambda *_: None)
        assert joined_conv(x, left, right) is None
        with _Watch():
            assert joined_conv(x, right) is None


def test_silu_at_its_ends() -> None:
    x = torch.tensor([-1e4, -200.0, -90.0, -20.0, 0.0, 20.0, 90.0, 200.0, 1e4, float("nan")])
    x = x.repeat(16).reshape(1, 1, 16, 10).repeat(1, 16, 1, 1).contiguous(memory_format=torch.channels_last)
    norm = nn.BatchNorm2d(16)
    y = batchnorm_silu(x.nan_to_num(0).requires_grad_(), norm)
    torch.testing.assert_close(y, F.silu(nn.BatchNorm2d(16)(x.nan_to_num(0))))
    assert batchnorm_silu(x, norm).isnan().all(), "a network that diverges must show it"


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


class _Watch(TorchFunctionMode):
    """Sees every operator and changes none, so that layers compute with PyTorch's own."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def test_gradient_of_a_slice() -> None:
    """Concatenation hands back gradients that are parts of a larger tensor."""
    torch.manual_seed(0)
    block = ConvBnAct(16, 16, 3, groups=16).to(memory_format=torch.channels_last)
    factor, data = channels_last(2, 32, 6, 6), channels_last(2, 16, 6, 6)
    gradients = []
    for mode in (nullcontext(), _Watch()):
        x = data.clone().requires_grad_()
        with mode:
            (torch.cat((block(x), block(x)), dim=1) * factor).sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_dense_gradient() -> None:
    x, strides = channels_last(2, 16, 6, 6).requires_grad_(), []
    y = dense_gradient(x * 1)
    y.grad_fn.next_functions[0][0].register_prehook(lambda grads: strides.append(grads[0].stride()))
    (torch.cat((y, x), dim=1) * channels_last(2, 32, 6, 6)).sum().backward()
    assert strides == [x.stride()]
    assert dense_gradient(y.detach()).grad_fn is None


def test_stands_aside() -> None:
    x, norm, act = channels_last(2, 16, 4, 4), nn.BatchNorm2d(16), nn.SiLU()
    assert fits_batchnorm_silu(x, norm, act)
    assert not fits_batchnorm_silu(x, norm, nn.ReLU())
    assert not fits_batchnorm_silu(x, nn.BatchNorm2d(16, momentum=None), act)
    assert not fits_batchnorm_silu(x[:1, :, :1, :1], norm, act), "PyTorch refuses a single value a channel"
    assert not fits(x.contiguous())
    assert not fits(x.double())
    with _Watch():
        assert not fits(x), "lists of operators with a precision of their own must see them"
    with torch.no_grad():
        assert not fits(x)
    norm.register_forward_hook(lambda *_: None)
    assert not fits_batchnorm_silu(x, norm, act)
    assert not fits_batchnorm_silu(x, nn.BatchNorm2d(16).eval(), act)


@pytest.fixture
def _forget_library() -> Iterator[None]:
    for cached in (library.kernels, compiled_kernels):
        cached.cache_clear()
    yield
    for cached in (library.kernels, compiled_kernels):
        cached.cache_clear()


@pytest.mark.usefixtures("_forget_library")
def test_a_machine_without_compiler_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with caplog.at_level(logging.WARNING):
        assert library.kernels() is None
        assert library.kernels() is None
    assert [record.message for record in caplog.records if "C++ compiler" in record.message] != []
    assert len(caplog.records) == 1


@pytest.mark.usefixtures("_forget_library")
def test_a_compiler_that_fails_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setenv("YOLOX_CACHE", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert library.kernels() is None
    assert "cannot be compiled" in caplog.text


@pytest.mark.usefixtures("_forget_library")
def test_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.SWITCH, "0")
    assert library.kernels() is None


@pytest.mark.processes
def test_processes_may_compile_at_once(tmp_path: Path) -> None:
    code = "from yolox.kernels.library import kernels; assert kernels() is not None"
    environment = {**os.environ, "YOLOX_CACHE": str(tmp_path)}
    both = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(2)]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    assert [path.suffix for path in tmp_path.iterdir()] == [".so"], "nothing half done is left"
