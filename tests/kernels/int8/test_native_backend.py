"""The whole path of ``native_int8``: converted, quantized, run in any way, saved, and loaded without torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import interpret
from torch import Tensor, nn

from yolox.errors import ModelFileError, UsageError, YoloxError
from yolox.experiments import get_experiment
from yolox.inference.artifacts.manifest import Manifest
from yolox.inference.backends import get_backend
from yolox.inference.backends.base import PrepareContext, Settings
from yolox.inference.backends.native import NativeRunner
from yolox.inference.backends.torch_runner import FlatModule
from yolox.inference.methods import get_method
from yolox.kernels.int8.int8_ir import Feature
from yolox.kernels.int8.ops.conv_step import Conv
from yolox.kernels.int8.ops.resize import Upsample
from yolox.models.decoding import DecodedDetector
from yolox.models.detector import build_detector

pytestmark = pytest.mark.backends
pytest.importorskip("onnx")


class Branches(nn.Module):
    """Every kind of layer, values that two concatenations want, and a tail with functions and constants."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.deep = nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.narrow = nn.Conv2d(16, 16, 3, 2, 1)
        self.wide = nn.Conv2d(48, 24, 1)
        self.boxes = nn.Conv2d(40, 4, 1)
        self.scores = nn.Conv2d(40, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = nn.functional.silu(self.stem(x))
        deep = first + nn.functional.leaky_relu(self.deep(first), 0.1)
        up = nn.functional.interpolate(self.narrow(deep).relu(), scale_factor=2)
        wide = nn.functional.silu(self.wide(torch.cat((deep, up, nn.functional.max_pool2d(up, 5, 1, 2)), 1)))
        last = torch.cat((wide, up), 1)
        boxes, scores = (part.permute(0, 2, 3, 1).flatten(1, 2) for part in (self.boxes(last), self.scores(last)))
        centers, sizes = boxes[..., :2] + 3.0, (boxes[..., 2:] * 0.02).exp() * 2.0
        return torch.cat((centers - sizes / 2, centers + sizes / 2), -1), scores.sigmoid(), boxes


def images(size: int = 32, count: int = 6, seed: int = 0) -> np.ndarray[Any, Any]:
    """Smooth pictures: noise has no large-scale structure, and networks see little of it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 3, 8, 8))
    return coarse.repeat(size // 8, 2).repeat(size // 8, 3).astype(np.float32)


def prepare(module: nn.Module, folder: Path, sample: np.ndarray[Any, Any], **options: Any) -> NativeRunner:
    folder.mkdir(exist_ok=True)
    calibration = options.pop("calibration", ((sample,),))
    context = PrepareContext((sample,), calibration, 2, folder, **options)
    runner = get_backend("native").prepare(FlatModule(module).eval(), get_method("native_int8"), context)
    assert isinstance(runner, NativeRunner)
    return runner


def expected(module: nn.Module, sample: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    with torch.inference_mode():
        return [output.numpy() for output in FlatModule(module).eval()(torch.from_numpy(sample))]


def noise(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> float:
    """Share of the signal that rounding turned into noise."""
    return float(np.square(ours - theirs).mean() / max(float(np.var(theirs)), 1e-8))


@pytest.fixture(scope="module")
def branches() -> nn.Module:
    torch.manual_seed(0)
    return Branches().eval()


@pytest.fixture(scope="module")
def runner(branches: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> NativeRunner:
    return prepare(branches, tmp_path_factory.mktemp("native"), images())


def test_eight_bits_are_near_the_module(branches: nn.Module, runner: NativeRunner) -> None:
    sample = images()
    for ours, theirs in zip(runner(sample), expected(branches, sample), strict=True):
        assert ours.shape == theirs.shape
        assert noise(ours, theirs) < 0.01
    assert runner.int8_share == 1.0


def test_the_kernels_compute_what_the_program_says(runner: NativeRunner) -> None:
    for ours, exact in zip(runner(images()), interpret(runner.executable.program, (images(),)), strict=True):
        assert noise(ours, exact) < 1e-3


def test_values_are_written_where_they_are_read(runner: NativeRunner) -> None:
    steps = runner.executable.program.steps
    parts = [step.target for step in steps if isinstance(getattr(step, "output", None), Feature)]
    assert any(part.whole is not None for part in parts)
    copies = [step for step in steps if isinstance(step, Upsample) and step.factor == 1]
    assert len(copies) == 1  # one value belongs to two concatenations
    first = next(step for step in steps if isinstance(step, Conv))
    np.testing.assert_array_equal(first.input.scale, 1)  # whole numbers of 0...255 are bytes as they are
    np.testing.assert_array_equal(first.input.zero, 0)


@pytest.mark.parametrize("settings", [Settings(1, 1), Settings(2, 2), Settings(2, 1), Settings(4, 2)])
def test_settings_batch_sizes_and_types_give_the_same(runner: NativeRunner, settings: Settings) -> None:
    configured = runner.configured(settings)
    whole = runner(images())
    for rows in (1, 5, 6):
        for sample in (images()[:rows], images()[:rows].astype(np.uint8), images()[:rows].astype(np.float64)):
            for ours, theirs in zip(configured(sample), whole, strict=True):
                np.testing.assert_allclose(ours, theirs[:rows], rtol=1e-5, atol=1e-6)
    (first, *_) = configured(torch.from_numpy(images()))
    assert isinstance(first, Tensor)


def test_candidates_use_all_threads(runner: NativeRunner) -> None:
    assert runner.candidates(64, 2) == (Settings(2, 2), Settings(2, 1))
    assert runner.candidates(1, 4) == (Settings(4, 1),)
    assert [settings.streams for settings in runner.candidates(64, 8)] == [8, 4, 2, 1]


def test_inputs_that_are_not_pixels_get_a_scale(branches: nn.Module, tmp_path: Path) -> None:
    sample = images() / 255 - 0.5
    converted = prepare(branches, tmp_path, sample)
    first = next(step for step in converted.executable.program.steps if isinstance(step, Conv))
    assert first.input.zero.min() > 100
    for ours, theirs in zip(converted(sample), expected(branches, sample), strict=True):
        assert noise(ours, theirs) < 0.01


def test_a_fixed_batch_is_converted_too(branches: nn.Module, runner: NativeRunner, tmp_path: Path) -> None:
    fixed = prepare(branches, tmp_path, images(), dynamic_batch=False)
    for ours, theirs in zip(fixed(images()), runner(images()), strict=True):
        assert noise(ours, theirs) < 1e-3


def test_other_ranges_are_tried_until_the_accuracy_holds(branches: nn.Module, tmp_path: Path) -> None:
    answers = [0.1, 0.4, 0.3]
    said: list[str] = []

    def attempt(max_drop: float) -> int:
        left = list(answers)
        prepare(
            branches, tmp_path, images(), accuracy=lambda predict: left.pop(0), original_accuracy=0.5,
            max_drop=max_drop, progress=said.append,
        )  # fmt: skip
        return len(answers) - len(left)

    assert [attempt(drop) for drop in (0.5, 0.15, 0.01)] == [1, 2, 3]
    assert any("accuracy 0.4000, drop 0.1000" in message for message in said)


def test_int8_needs_calibration_data(branches: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="training_data"):
        prepare(branches, tmp_path, images(), calibration=())


def test_a_network_without_convolutions_is_refused(tmp_path: Path) -> None:
    class Sums(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(2).transpose(1, 2).exp()

    with pytest.raises(YoloxError, match="no convolution"):
        prepare(Sums(), tmp_path, images() / 255)


def test_artifacts_answer_alike_in_a_process_without_torch(runner: NativeRunner, tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    folder.mkdir()
    assert runner.save(folder) == {}
    sample, result = tmp_path / "sample.npy", tmp_path / "outputs.npz"
    np.save(sample, images())
    np.savez(result, *runner(images()))
    script = f"""
import sys, numpy as np
from pathlib import Path
from yolox.inference.backends import get_backend
from yolox.inference.artifacts.manifest import Manifest
from yolox.inference.backends.base import Settings
manifest = Manifest("native_int8", "native", "int8", {{}}, Settings(2, 2), ((6, 3, 32, 32),), ("float32",), 3)
runner = get_backend("native").load(Path({str(folder)!r}), manifest)
assert runner.settings == manifest.settings and runner.int8_share == 1.0
with np.load({str(result)!r}) as wanted:
    for index, output in enumerate(runner(np.load({str(sample)!r}))):
        np.testing.assert_array_equal(output, wanted[f"arr_{{index}}"])
assert not {{"torch", "onnx", "onnxruntime"}} & set(sys.modules), "a heavy library was imported"
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_damaged_and_absent_files_are_refused(runner: NativeRunner, tmp_path: Path) -> None:
    manifest = Manifest("native_int8", "native", "int8", {}, Settings(), ((6, 3, 32, 32),), ("float32",), 3)
    backend = get_backend("native")
    with pytest.raises(ModelFileError, match="Save the model again"):
        backend.load(tmp_path, manifest)
    runner.save(tmp_path)
    arrays = (tmp_path / "arrays.npz").read_bytes()
    for damage in (b"", arrays[: len(arrays) // 2], b"no arrays at all"):
        (tmp_path / "arrays.npz").write_bytes(damage)
        with pytest.raises(ModelFileError, match="Save the model again"):
            backend.load(tmp_path, manifest)
    (tmp_path / "arrays.npz").write_bytes(arrays)
    text = (tmp_path / "program.json").read_text(encoding="utf-8")
    for damaged in (text.replace('"version": 2', '"version": 0'), text.replace('"Conv"', '"Cnov"'), text[:100], "[]"):
        (tmp_path / "program.json").write_text(damaged, encoding="utf-8")
        with pytest.raises(ModelFileError, match="Save the model again"):
            backend.load(tmp_path, replace(manifest))


@pytest.mark.parametrize("name", ["yolox_nano", "yolox_s", "yolov3"])
def test_detectors_answer_nearly_alike(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DecodedDetector(build_detector(get_experiment(name).model)).eval()
    sample = images(64, 2)
    runner = prepare(model, tmp_path, sample)
    for ours, theirs in zip(runner(sample), expected(model, sample), strict=True):
        assert noise(ours, theirs) < 0.2


@pytest.mark.realdata
def test_trained_weights_keep_their_scores(nano_weights: Path, coco_mini: Path, tmp_path: Path) -> None:
    from yolox.checkpoint import load_model
    from yolox.structures import Size
    from yolox.tools.detection_metric import DetectionMetric
    from yolox.tools.inference_images import calibration_images, read_eval_images

    loaded = load_model(nano_weights, get_experiment("yolox_nano"))
    config = replace(get_experiment("yolox_nano").data, data_dir=str(coco_mini))
    size = Size(416, 416)
    eval_images = read_eval_images(config, loaded, size, 64, tmp_path / "images.npy")
    metric = DetectionMetric(eval_images, 16, 0.01, 0.65)
    model = DecodedDetector(loaded.detector).eval()
    calibration = tuple((batch,) for batch in calibration_images(config, size, 32, 16))
    runner = prepare(model, tmp_path / "work", eval_images.batch(2), calibration=calibration)
    with torch.inference_mode():
        original = metric(model).values["AP"]
    assert original - metric(runner).values["AP"] < 0.01
