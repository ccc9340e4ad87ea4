"""Modules become layers that compute the same; what cannot be computed is told by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from yolox.errors import YoloxError
from yolox.experiments import get_experiment
from yolox.inference.convert.flat import FlatModule
from yolox.inference.convert.onnx_export import export_onnx
from yolox.kernels.int8.convert import with_early_sigmoids
from yolox.kernels.int8.float_ir import Convolution, Enlarge, Join, Map, Network, Pixels, Pool, Sum
from yolox.kernels.int8.int8_ir import Activation, Function
from yolox.kernels.int8.onnx_reader import read_network
from yolox.models.decoding import DecodedDetector, official_output
from yolox.models.detector import build_detector

pytestmark = pytest.mark.backends
pytest.importorskip("onnx")

MODELS = ["yolox_nano", "yolox_s", "yolov3"]
# larger ones of the same parts
LARGER = [pytest.param(f"yolox_{size}", marks=pytest.mark.slow) for size in ("tiny", "m", "l", "x")]


def pixels(size: int = 64, images: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (images, 3, size, size)).astype(np.float32)


def read(module: nn.Module, folder: Path, sample: np.ndarray, dynamic_batch: bool = True) -> Network:
    path = folder / "model.onnx"
    export_onnx(FlatModule(module).eval(), (sample,), path, dynamic_batch=dynamic_batch)
    return read_network(path)


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
    assert [layer.size for layer in network.layers if isinstance(layer, Pool)] in ([5, 5, 5], [5, 9, 13])
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
        (Ending(nn.Hardswish()), "HardSwish"),
        (Ending(nn.LeakyReLU(0.2)), "slope is 0.2, expected 0.1"),
        (Ending(nn.MaxPool2d(2)), r"MaxPool .*stride 1"),
        (Ending(nn.Upsample(scale_factor=2, mode="bilinear")), r"Resize .*nearest"),
        (Ending(nn.Conv2d(8, 8, 3, padding=1, groups=2)), r"Conv .*in 2 groups"),
        (Ending(nn.Conv2d(8, 8, 3, padding=2, dilation=2)), r"Conv .*dilated"),
        (Ending(nn.Identity(), lambda values: values.mean((2, 3))), "ReduceMean"),
        (Ending(nn.Identity(), lambda values: values), "with 4 axes"),
        (Ending(lambda values: values * 2), r"Mul .*4 axes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_kernel_computes_is_named(module: nn.Module, reason: str, tmp_path: Path) -> None:
    with pytest.raises(YoloxError, match=reason) as caught:
        read(module, tmp_path, pixels(16))
    assert "Use another method" in str(caught.value)
