"""Decoding, and the deployable module through every way of converting it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from yolox.boxes import cxcywh_to_xyxy
from yolox.experiments import get_experiment
from yolox.models.decoding import DecodedDetector, decode, official_output, replace_focus_
from yolox.models.detector import Detector, build_detector
from yolox.models.layers import Focus
from yolox.structures import Predictions, Size

Function = Callable[[Tensor], tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def detector() -> Detector:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_detector(get_experiment("yolox_nano").model).eval()


@pytest.fixture(scope="module")
def module(detector: Detector) -> DecodedDetector:
    return DecodedDetector(detector).eval()


def _images(batch: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, 64, 96), generator=generator, dtype=torch.uint8).float()


def _raw(dtype: torch.dtype) -> Predictions:
    generator = torch.Generator().manual_seed(1)
    boxes, objectness, classes = (torch.randn(2, 15, n, generator=generator).to(dtype) for n in (4, 1, 7))
    return Predictions(boxes, objectness, classes, (Size(3, 4), Size(1, 3)), (8, 16))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoding_is_float32_whatever_the_network_computes_in(dtype: torch.dtype, autocast: bool) -> None:
    predictions = _raw(dtype)
    boxes, objectness, classes = (value.double() for value in predictions[:3])
    exact = decode(predictions._replace(boxes=boxes, objectness=objectness, classes=classes))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        decoded = decode(predictions)
    for value, expected in zip(decoded, exact, strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected.float())


def test_both_layouts_say_the_same() -> None:
    predictions = _raw(torch.float32)
    official, decoded = official_output(predictions), decode(predictions)
    torch.testing.assert_close(cxcywh_to_xyxy(official[..., :4]), decoded.boxes_xyxy)
    torch.testing.assert_close(official[..., 4:5] * official[..., 5:], decoded.scores)
    assert 0 <= decoded.scores.min() <= decoded.scores.max() <= 1


def test_decoding_leaves_predictions_alone_and_is_differentiable() -> None:
    predictions = _raw(torch.float32)
    before = [value.clone() for value in predictions[:3]]
    leaves = [value.requires_grad_() for value in predictions[:3]]
    decoded = decode(predictions)
    (decoded.boxes_xyxy.sum() + decoded.scores.sum()).backward()
    assert all(torch.equal(old, new.detach()) for old, new in zip(before, leaves, strict=True))
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)


def test_uint8_and_float_images_give_the_same(module: DecodedDetector) -> None:
    with torch.inference_mode():
        for one, other in zip(module(_images()), module(_images().byte()), strict=True):
            assert torch.equal(one, other)


def _traced(module: torch.nn.Module, images: Tensor) -> Function:
    function: Function = torch.jit.trace(module, images)  # type: ignore[no-untyped-call]
    return function


def _frozen(module: torch.nn.Module, images: Tensor) -> Function:
    frozen = torch.jit.freeze(torch.jit.trace(module, images))  # type: ignore[no-untyped-call]
    assert "aten::arange" not in str(frozen.graph), "the grids are constants of the traced size"
    function: Function = frozen
    return function


def _exported(module: torch.nn.Module, images: Tensor) -> Function:
    return torch.export.export(module, (images,)).module()  # type: ignore[return-value]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning")
@pytest.mark.parametrize("convert", [_traced, _frozen, _exported])
@pytest.mark.parametrize(("dtype", "channels_last"), [(torch.float32, False), (torch.uint8, True)])
def test_a_converted_module_equals_the_eager_one(
    module: DecodedDetector,
    convert: Callable[[torch.nn.Module, Tensor], Function],
    dtype: torch.dtype,
    channels_last: bool,
) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images, others = (_images(seed=seed).to(dtype).contiguous(memory_format=layout) for seed in (0, 1))
    with torch.no_grad():
        converted = convert(module, images)
        for value, expected in zip(converted(others), module(others), strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)


def test_export_takes_any_batch_size(module: DecodedDetector) -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(module, (_images(),), dynamic_shapes=({0: batch},))
    with torch.no_grad():
        for size in (1, 3):
            for value, expected in zip(program.module()(_images(size)), module(_images(size)), strict=True):
                torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)


def test_export_holds_no_float_boxes_in_autocast_precision(module: DecodedDetector) -> None:
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        boxes, scores = module(_images())
    assert boxes.dtype == scores.dtype == torch.float32
    assert (boxes != boxes.bfloat16().float()).any()


@pytest.mark.backends
@pytest.mark.parametrize("official", [False, True])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx_equals_the_eager_module(detector: Detector, official: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    module = (DecodedDetector(detector, official_output) if official else DecodedDetector(detector)).eval()
    program = torch.onnx.export(module, (_images(),), dynamo=True, verbose=False)
    assert program is not None
    program.save(tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: _images().numpy()})
    with torch.no_grad():
        expected = module(_images())
    for value, wanted in zip(outputs, [expected] if official else expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(value), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.backends
def test_compile_takes_the_whole_module(module: DecodedDetector) -> None:
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        for value, expected in zip(compiled(_images()), module(_images()), strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("out_channels", "height", "width", "rtol", "atol"), [(5, 16, 10, 1e-5, 1e-6), (8, 32, 64, 1.3e-6, 1e-5)]
)
def test_a_convolution_computes_what_a_focus_does(
    out_channels: int, height: int, width: int, rtol: float, atol: float
) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(Focus(3, out_channels)).eval()
    images = torch.rand(2, 3, height, width)
    with torch.no_grad():
        expected = module(images)
        replace_focus_(module)
        assert not isinstance(module[0], Focus)
        torch.testing.assert_close(module(images), expected, rtol=rtol, atol=atol)
