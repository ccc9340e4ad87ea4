from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import SmallClassifier

from yolox.errors import ModelFileError, UsageError, YoloxError
from yolox.inference.artifacts.manifest import read_manifest
from yolox.inference.artifacts.model import AcceleratedModel, copy_artifact, folder_size_mb, load_model, save_model
from yolox.inference.optimizer import InferenceOptimizer

SAMPLE = np.random.default_rng(0).random((4, 3, 16, 16), np.float32)


@pytest.fixture(scope="module")
def model() -> AcceleratedModel:
    torch.manual_seed(0)
    return InferenceOptimizer.trace(SmallClassifier(), torch.from_numpy(SAMPLE), channels_last=True, thread_num=1)


@pytest.fixture
def folder(model: AcceleratedModel, tmp_path: Path) -> Path:
    save_model(model, tmp_path / "artifact", {"classes": ["a"]})
    return tmp_path / "artifact"


def load(folder: Path) -> AcceleratedModel:
    """The artifact holds weights alone; a module of fresh weights brings the code."""
    return load_model(folder, module=SmallClassifier())


def test_round_trip(model: AcceleratedModel, folder: Path) -> None:
    again = load(folder)
    np.testing.assert_allclose(again(SAMPLE), model(SAMPLE), rtol=1e-5, atol=1e-6)
    assert again.metadata == {"classes": ["a"]}
    assert again.manifest.settings == model.manifest.settings
    assert again.manifest.input_shapes == ((4, 3, 16, 16),)
    assert again.manifest.versions["torch"]
    assert folder_size_mb(folder) > 0.005


def test_any_batch_size_is_taken_and_other_shapes_are_refused(folder: Path) -> None:
    model = load(folder)
    whole = model(SAMPLE)
    np.testing.assert_allclose(model(SAMPLE[:1]), whole[:1], rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match=r"inputs of shape \(4, 3, 8, 8\) arrived, expected \(B, 3, 16, 16\)"):
        model(SAMPLE[:, :, :8, :8])
    with pytest.raises(UsageError, match="expected"):
        model(SAMPLE, SAMPLE)
    with pytest.raises(UsageError, match="expected"):
        model(SAMPLE[:0])
    assert model.eval() is model
    with pytest.raises(UsageError, match="cannot be trained"):
        model.train()


def test_torch_in_torch_out(folder: Path) -> None:
    outputs = load(folder)(torch.from_numpy(SAMPLE))
    assert isinstance(outputs, torch.Tensor)
    assert isinstance(load(folder)(SAMPLE), np.ndarray)


def test_copy_keeps_all_and_may_change_the_metadata(folder: Path, tmp_path: Path) -> None:
    copy_artifact(folder, tmp_path / "copy", {"x": 2})
    assert load(tmp_path / "copy").metadata == {"x": 2}
    assert {path.name for path in folder.iterdir()} == {path.name for path in (tmp_path / "copy").iterdir()}


@pytest.mark.parametrize(
    ("precision", "here", "warned"), [("int8", True, True), ("int8", False, False), ("fp32", True, False)]
)
def test_int8_from_a_processor_with_exact_sums_is_warned_of(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    precision: str,
    here: bool,
    warned: bool,
) -> None:
    monkeypatch.setattr("yolox.inference.artifacts.model.sums_may_overflow", lambda: here)
    path = folder / "manifest.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(document | {"precision": precision, "vnni": True}), encoding="utf-8")
    load(folder)
    assert ("may overflow" in caplog.text) == warned


def test_damage_is_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        load_model(tmp_path / "nothing")
    with pytest.raises(ModelFileError, match=r"no manifest\.json"):
        load_model(tmp_path)
    manifest = folder / "manifest.json"
    text = manifest.read_text()
    manifest.write_text("{")
    with pytest.raises(ModelFileError, match="damaged"):
        load_model(folder)
    manifest.write_text(json.dumps({**json.loads(text), "format": 99}))
    with pytest.raises(ModelFileError, match="format"):
        load_model(folder)
    manifest.write_text(json.dumps({**json.loads(text), "backend": "abacus"}))
    with pytest.raises(ModelFileError, match="abacus"):
        load_model(folder)
    manifest.write_text(text)
    with pytest.raises(ModelFileError, match="Give the module"):
        load_model(folder)
    with pytest.raises(ModelFileError, match="do not fit the module"):
        load_model(folder, module=torch.nn.Linear(2, 2))
    weights = folder / "weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ModelFileError, match="checksum"):
        load(folder)
    weights.unlink()
    with pytest.raises(ModelFileError, match="missing"):
        load(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"input_shapes": [[4, 3, -16, 16]]},
        {"input_shapes": [[1 << 40]]},
        {"input_shapes": "none"},
        {"settings": {"threads": 0}},
        {"settings": {"threads": 1, "nothing": 2}},
        {"files": {"../weights.safetensors": {"bytes": 1, "sha256": ""}}},
        {"files": {}},
        {"num_outputs": -1},
        {"precision": "int4"},
        {"input_dtypes": ["object"]},
        {"method": "\x1b[2J"},
    ],
)
def test_a_manifest_with_impossible_values_is_refused(folder: Path, change: dict[str, object]) -> None:
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **change}))
    with pytest.raises(ModelFileError):
        load(folder)


def test_a_folder_of_other_things_is_never_written_into(model: AcceleratedModel, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"precious")
    with pytest.raises(UsageError, match=r"photo\.jpg"):
        save_model(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_another_model_replaces_an_earlier_one(model: AcceleratedModel, folder: Path) -> None:
    (folder / "model.bin").write_bytes(b"of an earlier model")
    save_model(model, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "weights.safetensors"]
    assert read_manifest(folder).files.keys() == {"weights.safetensors"}


def test_a_place_that_cannot_be_written(model: AcceleratedModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(YoloxError, match="cannot write"):
        save_model(model, tmp_path / "file" / "artifact")


def test_reading_artifacts_needs_no_torch() -> None:
    code = (
        "import sys, yolox.inference.artifacts.model, yolox.inference.backends.base; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
