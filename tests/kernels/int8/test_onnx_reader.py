"""Modules become layers that compute the same; what cannot be computed is told by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolox.errors import YoloxError
from yolox.experiments import get_experiment
from yolox.inference.backends.torch_runner import FlatModule
from yolox.inference.convert.onnx_export import export_onnx
from yolox.kernels.int8.builder import with_early_sigmoids
from yolox.kernels.int8.float_ir import Network
from yolox.kernels.int8.int8_ir import Activation
from yolox.kernels.int8.onnx_reader import read_model
from yolox.kernels.int8.ops.concat import Join
from yolox.kernels.int8.ops.convolution import Convolution
from yolox.kernels.int8.ops.elementwise import Sum
from yolox.kernels.int8.ops.matrices import Function, Map
from yolox.kernels.int8.ops.pixels import Pixels
from yolox.kernels.int8.ops.pooling import Pool
from yolox.kernels.int8.ops.resize import Enlarge
from yolox.models.decoding import DecodedDetector, official_output
from yolox.models.detector import build_detector

pytestmark = pytest.mark.backends
onnx = pytest.importorskip("onnx")

MODELS = ["yolox_nano", "yolox_s", "yolov3"]
# larger ones of the same parts
LARGER = [pytest.param(f"yolox_{size}", marks=pytest.mark.slow) for size in ("tiny", "m", "l", "x")]


def pixels(size: int = 64, images: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (images, 3, size, size)).astype(np.float32)


def read(module: nn.Module, folder: Path, sample: np.ndarray, dynamic_batch: bool = True) -> Network:
    path = folder / "model.onnx"
    export_onnx(FlatModule(module).eval(), (sample,), path, dynamic_batch=dynamic_batch)
    return read_model(onnx.load(str(path)))


def outputs(module: nn.Module, sample: np.ndarray) -> list[np.ndarray]:
    with torch.inference_mode():
        return [output.numpy() for output in FlatModule(module).eval()(torch.from_numpy(sample))]


def check(module: nn.Module, network: Network, sample: np.ndarray) -> None:
    for ours, theirs in zip(network(sample), outputs(module, sample), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * max(1.0, float(np.abs(theirs).max())))


def as_rows(values: Tensor) -> Tensor:
    return values.permute(0, 2, 3, 1).flatten(1, 2)


class Ending(nn.Module):
    """A convolution, something else, and rows."""

    def __init__(self, between: Callable[[Tensor], Tensor], end: Callable[[Tensor], Tensor] = as_rows) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 2, 1)
        self.last = nn.Conv2d(8, 4, 1)
        self.between, self.end = between, end
        if isinstance(between, nn.Conv2d):
            self.last = nn.Conv2d(between.out_channels, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.last(self.between(self.first(x))))


@pytest.mark.parametrize("name", [*MODELS, *LARGER])
def test_every_detector_is_understood(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DecodedDetector(build_detector(get_experiment(name).model)).eval()
    network = read(model, tmp_path, pixels())
    check(model, network, pixels())
    convolutions = [layer for layer in network.layers if isinstance(layer, Convolution)]
    assert sum(layer.activation is Activation.NONE for layer in convolutions) == 9  # the predictions
    assert any(layer.depthwise for layer in convolutions) == (name == "yolox_nano")
    assert sum(isinstance(layer, Enlarge) for layer in network.layers) == 2
    assert [layer.height for layer in network.layers if isinstance(layer, Pool)] in ([5, 5, 5], [5, 9, 13])
    (first,) = [layer for layer in network.layers if isinstance(layer, Pixels)]
    assert first.block == (1 if name == "yolov3" else 2)
    assert any(isinstance(layer, Sum) for layer in network.layers)
    assert any(isinstance(layer, Join) for layer in network.layers)


def test_large_images_are_understood(tmp_path: Path) -> None:
    """Their grid of 80x80 cells is a constant, though PyTorch's exporter leaves one of that size to be computed."""
    torch.manual_seed(0)
    model = DecodedDetector(build_detector(get_experiment("yolox_nano").model)).eval()
    check(model, read(model, tmp_path, pixels(640, images=1)), pixels(640, images=1))


def test_a_fixed_batch_is_understood(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DecodedDetector(build_detector(get_experiment("yolox_nano").model), official_output).eval()
    check(model, read(model, tmp_path, pixels(), dynamic_batch=False), pixels())


@pytest.mark.parametrize(
    ("between", "activation"),
    [
        (torch.relu, Activation.RELU),
        (nn.LeakyReLU(0.1), Activation.LEAKY_RELU),
        (nn.SiLU(), Activation.SILU),
        (torch.sigmoid, Activation.SIGMOID),
        (nn.Identity(), Activation.NONE),
    ],
)
def test_activations_are_parts_of_convolutions(
    between: Callable[[Tensor], Tensor], activation: Activation, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = Ending(between)
    network = read(module, tmp_path, pixels(16))
    assert [layer.activation for layer in network.layers if isinstance(layer, Convolution)] == [activation, 0]
    check(module, network, pixels(16))


@pytest.mark.parametrize(
    "between",
    [
        nn.Hardswish(),
        nn.Hardsigmoid(),
        nn.ReLU6(),
        nn.GELU(),
        nn.Tanh(),
        nn.LeakyReLU(0.2),
        lambda x: x * F.hardsigmoid(x),
        lambda x: F.hardswish(x + x),
        lambda x: (2.0 - x) / 3.0 * torch.arange(8.0).reshape(8, 1, 1),
        nn.BatchNorm2d(8).eval(),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.AvgPool2d(3, 2, 1),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Upsample(size=(11, 5), mode="bilinear", align_corners=True),
        nn.Upsample(size=(11, 5), mode="nearest"),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4),
        nn.Conv2d(8, 16, (1, 5), padding=(0, 2), groups=8),
        nn.ConvTranspose2d(8, 8, 3, 2, 1, output_padding=1),
        nn.ConvTranspose2d(8, 8, 4, 2, 1),
        nn.ZeroPad2d((1, 2, 3, 0)),
        lambda x: F.pad(x, (-1, 0, 2, -3)),
        lambda x: x * x.mean((2, 3), keepdim=True),
    ],
)
def test_operators_are_read_as_they_compute(between: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Ending(between)
    check(module, read(module, tmp_path, pixels(16)), pixels(16))


@pytest.mark.parametrize(
    "end",
    [
        lambda x: x,
        lambda x: x.relu(),
        lambda x: x.mean((2, 3)),
        lambda x: F.linear(x.flatten(1), torch.ones(3, 256) * 0.1, torch.ones(3)),
        lambda x: (x.mean((2, 3)) @ torch.eye(4)[:, :3] + 2.0).relu(),
        lambda x: x.mean((2, 3)).sigmoid() * 3.0,
    ],
)
def test_outputs_are_features_and_vectors_too(end: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Ending(nn.ReLU(), end)
    check(module, read(module, tmp_path, pixels(16)), pixels(16))


def test_rows_of_an_older_export_are_understood(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Ending(nn.Identity(), lambda values: values.flatten(2).transpose(1, 2))
    check(module, read(module, tmp_path, pixels(16)), pixels(16))


def test_sigmoids_move_into_the_convolutions_before_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DecodedDetector(build_detector(get_experiment("yolox_nano").model)).eval()
    network = with_early_sigmoids(read(model, tmp_path, pixels()))
    check(model, network, pixels())
    functions = [layer.function for layer in network.layers if isinstance(layer, Map)]
    assert functions == [Function.EXP]
    activations = [layer.activation for layer in network.layers if isinstance(layer, Convolution)]
    assert activations.count(Activation.SIGMOID) == 6


def test_sigmoids_stay_where_the_plain_values_are_needed_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Ending(nn.Identity(), lambda values: torch.cat((as_rows(values), as_rows(values).sigmoid()), 2))
    network = with_early_sigmoids(read(module, tmp_path, pixels(16)))
    check(module, network, pixels(16))
    assert any(isinstance(layer, Map) for layer in network.layers)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Ending(nn.Softsign()), "Abs|Softsign"),
        (Ending(nn.MaxPool2d(3, 1, 1, dilation=2)), r"MaxPool .*dilated"),
        (Ending(nn.Upsample(scale_factor=2, mode="bicubic")), r"Resize .*nearest or linear"),
        (Ending(nn.Conv2d(8, 8, 3, (1, 2))), r"Conv .*strides \[1, 2\]"),
        (Ending(nn.Hardtanh()), r"Clip .*lower bound of 0"),
        (Ending(nn.Identity(), lambda values: values.mean(1)), r"ReduceMean .*all pixels"),
        (Ending(lambda values: values * torch.ones(8, 8)), r"Mul .*one number for each channel"),
        (Ending(lambda values: 1.0 / values), "a constant is divided|Reciprocal"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_kernel_computes_is_named(module: nn.Module, reason: str, tmp_path: Path) -> None:
    with pytest.raises(YoloxError, match=reason) as caught:
        read(module, tmp_path, pixels(16))
    assert "Use another method" in str(caught.value)
