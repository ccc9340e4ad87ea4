"""Every int8 row: how close, how much of it is int8, and what accuracy control does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from yolox.errors import UsageError
from yolox.inference.artifacts.manifest import Manifest
from yolox.inference.backends import get_backend
from yolox.inference.backends.base import Arrays, PrepareContext, Runner
from yolox.inference.backends.torch_runner import FlatModule
from yolox.inference.convert.quantizers.mixed_precision import LEAST_INT8_SHARE
from yolox.inference.methods import get_method

pytestmark = [pytest.mark.backends, pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")]

GENERATOR = np.random.default_rng(0)
SAMPLE = GENERATOR.random((6, 3, 32, 32), np.float32) * 255
CALIBRATION = [(GENERATOR.random((4, 3, 32, 32), np.float32) * 255,) for _ in range(4)]
FAST = ["openvino_int8", "onnxruntime_int8_qlinear", "onnxruntime_int8_integer", "jit_int8"]
COMPILED = ["static_int8", "inductor_int8", "inductor_int8_bf16"]


class SmallDetector(nn.Module):
    """Dense and depthwise convolutions, SiLU, a sum, two outputs of different sizes of numbers; inputs 0...255."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.SiLU())
        self.body = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.SiLU())
        self.depthwise = nn.Sequential(nn.Conv2d(32, 32, 3, 1, 1, groups=32), nn.SiLU())
        self.mix = nn.Sequential(nn.Conv2d(32, 32, 1), nn.SiLU())
        self.boxes, self.scores = nn.Conv2d(32, 4, 1), nn.Conv2d(32, 10, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(self.stem(x))
        x = x + self.mix(self.depthwise(x))
        return self.boxes(x).flatten(2) * 100, self.scores(x).flatten(2).sigmoid()


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(0)
    model = SmallDetector()
    model.train()
    for (batch,) in CALIBRATION * 4:  # statistics that fit inputs of 0...255
        model(torch.from_numpy(batch))
    return FlatModule(model).eval()


def prepare(module: nn.Module, name: str, folder: Path, **options: Any) -> Runner:
    method = get_method(name)
    for package in method.requires:
        pytest.importorskip(package)
    folder = folder / "work"
    folder.mkdir()
    sample = options.pop("sample", SAMPLE)
    context = PrepareContext((sample,), options.pop("calibration", CALIBRATION), 2, folder, **options)
    return get_backend(method.backend).prepare(module, method, context)


def signal_to_noise_db(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> float:
    return float(10 * np.log10(theirs.var() / np.square(ours - theirs).mean()))


def check(module: nn.Module, name: str, tmp_path: Path) -> None:
    runner = prepare(module, name, tmp_path)
    with torch.inference_mode():
        expected = [output.numpy() for output in module(torch.from_numpy(SAMPLE))]
    outputs = runner(SAMPLE)
    for ours, theirs in zip(outputs, expected, strict=True):
        assert signal_to_noise_db(ours, theirs) > 20
    assert runner.int8_share is not None
    assert LEAST_INT8_SHARE <= runner.int8_share <= 1
    folder = tmp_path / "artifact"
    folder.mkdir()
    data = runner.save(folder)
    assert json.loads(json.dumps(data)) == data
    method = get_method(name)
    manifest = Manifest(
        *(name, method.backend, "int8", method.options, runner.settings, (SAMPLE.shape,), ("float32",), 2),
        int8_share=runner.int8_share,
        backend_data=data,
    )
    again = get_backend(method.backend).load(folder, manifest)
    assert again.int8_share == runner.int8_share
    for ours, theirs in zip(again(SAMPLE[:5]), outputs, strict=True):
        np.testing.assert_allclose(ours, theirs[:5], rtol=1e-3, atol=2e-2 * np.abs(theirs).max())


@pytest.mark.parametrize("name", FAST)
def test_int8_is_close_and_mostly_int8(module: nn.Module, name: str, tmp_path: Path) -> None:
    check(module, name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*COMPILED, "openvino_int8_bf16"])
def test_compiled_int8_is_close_and_mostly_int8(module: nn.Module, name: str, tmp_path: Path) -> None:
    check(module, name, tmp_path)


@pytest.mark.parametrize("name", FAST)
def test_without_data_int8_says_what_it_needs(module: nn.Module, name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="real data to calibrate on"):
        prepare(module, name, tmp_path, calibration=[])


@pytest.mark.parametrize("name", FAST)
def test_a_bound_that_fails_raises_layers_to_float(module: nn.Module, name: str, tmp_path: Path) -> None:
    """The accuracy pretends to be bad at first, then good."""
    shares: list[float] = []
    said: list[str] = []

    def accuracy(predict: Callable[..., Arrays]) -> float:
        assert len(predict(SAMPLE)) == 2
        shares.append(0.1 if not shares else 0.5)
        return shares[-1]

    runner = prepare(module, name, tmp_path, accuracy=accuracy, original_accuracy=0.5, progress=said.append)
    assert len(shares) == 2
    assert "drop 0.4000" in " ".join(said)
    assert runner.int8_share is not None
    assert runner.int8_share < 1


@pytest.mark.parametrize("name", ["static_int8", "inductor_int8"])
def test_torch_quantizers_keep_signs_of_small_weights_and_share(module: nn.Module, name: str, tmp_path: Path) -> None:
    """A first layer that sees 0...255 has tiny weights; none may be rounded away, whatever made the graph."""
    from importlib import import_module

    package, function = {
        "static_int8": ("neural_compressor", "quantize_static"),
        "inductor_int8": ("pt2e", "quantize_pt2e"),
    }[name]
    pytest.importorskip(get_method(name).requires[0])
    quantize = getattr(import_module(f"yolox.inference.convert.quantizers.{package}"), function)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    graph, share = quantize(module, PrepareContext((SAMPLE,), CALIBRATION, 2, tmp_path))
    assert share >= LEAST_INT8_SHARE
    with torch.no_grad():
        outputs = graph(torch.from_numpy(SAMPLE))
        expected = module(torch.from_numpy(SAMPLE))
    for ours, theirs in zip(outputs, expected, strict=True):
        assert signal_to_noise_db(ours.numpy(), theirs.numpy()) > 20
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    names = [str(node.target) for node in graph.graph.nodes]
    assert not any("quantize_per_channel" in name and "dequantize" not in name for name in names)


def test_a_fixed_batch_size_is_quantized_too(module: nn.Module, tmp_path: Path) -> None:
    for number, name in enumerate(FAST):
        folder = tmp_path / str(number)
        folder.mkdir()
        runner = prepare(module, name, folder, dynamic_batch=False)
        with torch.inference_mode():
            expected = module(torch.from_numpy(SAMPLE))[0].numpy()
        assert signal_to_noise_db(runner(SAMPLE)[0], expected) > 20, name


@pytest.mark.parametrize("name", ["jit_int8", "onnxruntime_int8_qlinear"])
def test_sums_of_large_bytes_and_weights_do_not_overflow(name: str, tmp_path: Path) -> None:
    """Without VNNI, processors add two products of bytes in 16 bits: these would be half of what they should be."""
    layer = nn.Conv2d(64, 16, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(0.01).mul_(1 + 0.1 * torch.rand(layer.weight.shape))
    bright = GENERATOR.uniform(230, 255, (4, 64, 8, 8)).astype(np.float32)
    module = FlatModule(layer).eval()
    runner = prepare(module, name, tmp_path, sample=bright, calibration=[(bright,)])
    with torch.no_grad():
        (expected,) = module(torch.from_numpy(bright))
    assert runner.int8_share == 1.0
    np.testing.assert_allclose(runner(bright)[0], expected.numpy(), rtol=0.02)


class TwiceActivated(nn.Module):
    """A block of a ResNet: one ReLU module at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = (
            nn.Conv2d(3, 16, 3, 2, 1),
            nn.Conv2d(16, 16, 3, 1, 1),
            nn.Conv2d(16, 16, 3, 1, 1),
        )
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x / 255)
        return self.activation(self.two(self.activation(self.one(x))) + x)


@pytest.mark.parametrize("name", ["jit_int8", "onnxruntime_int8_qlinear"])
def test_an_activation_may_be_used_twice(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = FlatModule(TwiceActivated()).eval()
    runner = prepare(module, name, tmp_path)
    with torch.inference_mode():
        (expected,) = module(torch.from_numpy(SAMPLE))
    assert signal_to_noise_db(runner(SAMPLE)[0], expected.numpy()) > 25
    assert runner.int8_share is not None
    assert runner.int8_share > 0.9


class TwoInputs(nn.Module):
    """An image of 0...255 and a grey map of other size, each through a convolution, one SiLU module three times."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.grey = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(1, 16, 3, 1, 1)
        self.mix, self.out = nn.Conv2d(16, 16, 3, 1, 1), nn.Conv2d(16, 8, 1)
        self.activation = nn.SiLU(inplace=True)

    def forward(self, image: Tensor, grey: Tensor) -> Tensor:
        x = self.activation(self.image(image / 255)) + self.activation(self.grey(grey))
        return self.out(self.activation(self.mix(x))).flatten(2)


def two_inputs(rows: int) -> tuple[np.ndarray[Any, Any], ...]:
    return GENERATOR.random((rows, 3, 32, 32), np.float32) * 255, GENERATOR.random((rows, 1, 16, 16), np.float32) - 0.5


def check_two_inputs(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = FlatModule(TwoInputs()).eval()
    sample = two_inputs(4)
    (tmp_path / "work").mkdir()
    context = PrepareContext(sample, [two_inputs(4) for _ in range(4)], 2, tmp_path / "work")
    runner = get_backend(get_method(name).backend).prepare(module, get_method(name), context)
    with torch.inference_mode():
        expected = module(*map(torch.from_numpy, sample))[0].numpy()
    for rows in (4, 1):
        outputs = runner(*(array[:rows] for array in sample))[0]
        assert signal_to_noise_db(outputs, expected[:rows]) > 25
    assert runner.int8_share is not None
    assert runner.int8_share > 0.7


@pytest.mark.parametrize("name", [*FAST, "jit_int8_channels_last"])
def test_two_inputs_are_calibrated(name: str, tmp_path: Path) -> None:
    check_two_inputs(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*COMPILED, "openvino_int8_bf16"])
def test_two_inputs_are_calibrated_and_compiled(name: str, tmp_path: Path) -> None:
    """Inductor's programs were wrong where a convolution reads a grey image and the batch axis is free."""
    check_two_inputs(name, tmp_path)
