"""OpenVINO and ONNX Runtime: exported files, settings, pieces, types, artifacts without torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import SmallClassifier
from torch import Tensor, nn

from yolox.errors import ModelFileError, YoloxError
from yolox.inference.artifacts.manifest import Manifest
from yolox.inference.backends import get_backend
from yolox.inference.backends.base import PrepareContext, Runner, Settings
from yolox.inference.backends.torch_runner import FlatModule
from yolox.inference.convert.onnx_export import check_outputs, export_onnx
from yolox.inference.methods import get_method

pytestmark = pytest.mark.backends

SAMPLE = np.random.default_rng(0).random((6, 3, 16, 16), np.float32)
LIBRARIES = ("openvino", "onnxruntime")


class TwoOfEach(nn.Module):
    """Two inputs of different types, two outputs, one of them of integers."""

    def forward(self, image: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        total = image.flatten(1).sum(1) + shift
        return total[:, None] * torch.ones(1, 3), (total > 0).long()


class Branching(nn.Module):
    """Decides in Python on values, which torch.export refuses and a trace fixes."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x * 2 if float(x.sum()) > 0 else x,)


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(0)
    return FlatModule(SmallClassifier()).eval()


def expected_of(module: nn.Module, *inputs: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    with torch.inference_mode():
        return [output.numpy() for output in module(*(torch.from_numpy(array) for array in inputs))]


def prepare(module: nn.Module, name: str, folder: Path, sample: tuple[Any, ...] = (SAMPLE,), **options: Any) -> Runner:
    method = get_method(name)
    folder.mkdir(exist_ok=True)
    return get_backend(method.backend).prepare(module, method, PrepareContext(sample, (), 2, folder, **options))


def manifest_of(runner: Runner, name: str, **changes: Any) -> Manifest:
    method = get_method(name)
    manifest = Manifest(
        name, method.backend, method.precision.value, {}, runner.settings, (SAMPLE.shape,), ("float32",), 1
    )
    return replace(manifest, **changes)


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_setting_and_batch_size_gives_the_outputs_of_the_module(
    module: nn.Module, library: str, tmp_path: Path
) -> None:
    runner = prepare(module, f"{library}_fp32", tmp_path)
    candidates = [*runner.candidates(6, 2), *runner.candidates(1, 2), *runner.candidates(6, 1), Settings(2, 2, 4)]
    for settings in dict.fromkeys(candidates):
        configured = runner.configured(settings)
        assert configured.settings == settings
        for rows in (6, 1, 5):
            expected = expected_of(module, SAMPLE[:rows])[0]
            np.testing.assert_allclose(configured(SAMPLE[:rows])[0], expected, atol=1e-4)
    assert runner.int8_share is None


@pytest.mark.parametrize("library", LIBRARIES)
def test_torch_in_torch_out_and_results_are_the_callers(module: nn.Module, library: str, tmp_path: Path) -> None:
    runner = prepare(module, f"{library}_fp32", tmp_path)
    (first,) = runner(torch.from_numpy(SAMPLE))
    assert isinstance(first, Tensor)
    kept = first.clone()
    runner(torch.from_numpy(SAMPLE * 2))
    torch.testing.assert_close(first, kept, rtol=0, atol=0)


@pytest.mark.parametrize("library", LIBRARIES)
def test_uint8_and_strided_images_are_taken(module: nn.Module, library: str, tmp_path: Path) -> None:
    runner = prepare(module, f"{library}_fp32", tmp_path)
    images = np.random.default_rng(1).integers(0, 255, (6, 3, 16, 16), np.uint8)
    expected = expected_of(module, images.astype(np.float32))[0]
    np.testing.assert_allclose(runner(images)[0], expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(runner(images[::-1])[0], expected[::-1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("library", LIBRARIES)
def test_several_inputs_and_outputs_keep_their_types(library: str, tmp_path: Path) -> None:
    sample = (SAMPLE, np.arange(-3, 3, dtype=np.float32))
    runner = prepare(TwoOfEach(), f"{library}_fp32", tmp_path, sample)
    for ours, theirs in zip(runner(*sample), expected_of(TwoOfEach(), *sample), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_fixed_batch_size_is_filled_up(module: nn.Module, library: str, tmp_path: Path) -> None:
    runner = prepare(module, f"{library}_fp32", tmp_path, dynamic_batch=False)
    nine = np.concatenate([SAMPLE, SAMPLE[:3]])
    for rows in (6, 9, 2):
        np.testing.assert_allclose(runner(nine[:rows])[0], expected_of(module, nine[:rows])[0], atol=1e-4)
    assert all(settings.micro_batch is None for settings in runner.candidates(6, 2))


@pytest.mark.parametrize("name", ["openvino_fp32", "openvino_fp16", "onnxruntime_fp32"])
def test_artifacts_answer_alike_in_a_process_without_torch(module: nn.Module, name: str, tmp_path: Path) -> None:
    runner = prepare(module, name, tmp_path / "work").configured(Settings(1, 1, 4))
    folder = tmp_path / "artifact"
    folder.mkdir()
    data = runner.save(folder)
    np.save(tmp_path / "sample.npy", SAMPLE)
    np.save(tmp_path / "outputs.npy", runner(SAMPLE)[0])
    script = f"""
import sys, numpy as np
from pathlib import Path
from yolox.inference.backends import get_backend
from yolox.inference.artifacts.manifest import Manifest
from yolox.inference.backends.base import Settings
settings = Settings(1, 1, 4)
manifest = Manifest({name!r}, "", "", {{}}, settings, ((6, 3, 16, 16),), ("float32",), 1, backend_data={data!r})
runner = get_backend({get_method(name).backend!r}).load(Path({str(folder)!r}), manifest)
assert runner.settings == manifest.settings
outputs = runner(np.load({str(tmp_path / "sample.npy")!r}))[0]
np.testing.assert_array_equal(outputs, np.load({str(tmp_path / "outputs.npy")!r}))
assert "torch" not in sys.modules, "torch was imported"
assert not list(Path({str(folder)!r}).glob("*.pkl"))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["openvino_fp32", "onnxruntime_fp32"])
def test_damaged_and_absent_files_are_refused(module: nn.Module, name: str, tmp_path: Path) -> None:
    runner = prepare(module, name, tmp_path / "work")
    backend = get_backend(get_method(name).backend)
    with pytest.raises(ModelFileError, match="Save the model again"):
        backend.load(tmp_path, manifest_of(runner, name))
    for file in ("model.xml", "model.onnx"):
        (tmp_path / file).write_bytes(b"no model at all")
    with pytest.raises(ModelFileError, match="Save the model again"):
        backend.load(tmp_path, manifest_of(runner, name))


def test_bf16_is_close_or_refused(module: nn.Module, tmp_path: Path) -> None:
    try:
        runner = prepare(module, "openvino_bf16", tmp_path)
    except YoloxError as error:
        assert "bf16" in str(error)  # noqa: PT017 - a processor without the instructions
        return
    outputs = runner(SAMPLE)[0]
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, expected_of(module, SAMPLE)[0], atol=0.02)


def test_fp16_stores_half_the_bytes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    wide = FlatModule(nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 256, 3))).eval()
    sizes = {}
    for name in ("openvino_fp32", "openvino_fp16"):
        folder = tmp_path / name
        folder.mkdir()
        prepare(wide, name, tmp_path / "work").save(folder)
        sizes[name] = (folder / "model.bin").stat().st_size
    assert sizes["openvino_fp16"] < 0.6 * sizes["openvino_fp32"]


def test_what_cannot_be_exported_is_traced(tmp_path: Path) -> None:
    runner = prepare(Branching(), "onnxruntime_fp32", tmp_path)
    np.testing.assert_allclose(runner(SAMPLE)[0], SAMPLE * 2, rtol=1e-6)


def test_what_cannot_be_exported_at_all_says_why(tmp_path: Path) -> None:
    class Sorcery(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (torch.linalg.lstsq(x.flatten(2), x.flatten(2)).solution,)

    with pytest.raises(YoloxError, match=r"no ONNX export.*export_graph.*export_trace"):
        export_onnx(Sorcery(), (SAMPLE,), tmp_path / "model.onnx", dynamic_batch=True)


def test_an_export_folds_batch_normalisation(module: nn.Module, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    export_onnx(module, (SAMPLE[:1],), tmp_path / "model.onnx", dynamic_batch=True)
    graph = onnx.load(str(tmp_path / "model.onnx")).graph
    assert {node.op_type for node in graph.node}.isdisjoint({"BatchNormalization"})
    assert [value.name for value in (*graph.input, *graph.output)] == ["input_0", "output_0"]


def test_wrong_outputs_are_noticed(module: nn.Module) -> None:
    right = expected_of(module, SAMPLE)
    check_outputs(module, (SAMPLE,), right)
    with pytest.raises(YoloxError, match="output 0 differs"):
        check_outputs(module, (SAMPLE,), [right[0] + 1])
    with pytest.raises(YoloxError, match="output 0 differs"):
        check_outputs(module, (SAMPLE,), [right[0] * np.nan])
    with pytest.raises(YoloxError, match="shape"):
        check_outputs(module, (SAMPLE,), [right[0][:1]])
