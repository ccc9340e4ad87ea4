"""Artifacts of strangers: nothing in them runs, no other file is read, and programs load by word only."""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import SmallClassifier
from strangers import Touch, artifact
from torch import Tensor

from yolox import YOLOX
from yolox.errors import ModelFileError
from yolox.inference.artifacts.manifest import file_entries, read_manifest, write_manifest
from yolox.inference.artifacts.model import load_model, save_model
from yolox.inference.artifacts.trust import FORMATS
from yolox.inference.optimizer import InferenceOptimizer
from yolox.tools import demo, info

SAMPLE = np.random.default_rng(0).random((2, 3, 16, 16), np.float32)


def artifact_for_here(folder: Path, backend: str, files: dict[str, bytes]) -> Path:
    """Return an artifact for this machine and for pictures of 32 x 32."""
    data = {"cpu_capability": torch.backends.cpu.get_cpu_capability()}
    return artifact(folder, backend, files, input_shapes=((1, 3, 32, 32),), backend_data=data)


def archive(folder: Path, member: str, content: bytes) -> bytes:
    path = folder / "archive.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model/archive_format", "pt2")
        file.writestr(member, content)
    return path.read_bytes()


@pytest.mark.parametrize(
    "member",
    [
        "model/data/constants/model_constants_config.json",
        "model/data/constants/model.pt",
        "model/data/weights/model.pt",
        "serialized_exported_program.pt",
        "serialized_state_dict.pt",
        "model/data/sample_inputs/model.pt",
    ],
)
@pytest.mark.parametrize("backend", ["eager", "inductor", "jit", "ipex"])
def test_pickles_in_exported_programs_do_not_run(tmp_path: Path, member: str, backend: str) -> None:
    marker = tmp_path / "ran"
    content = archive(tmp_path, member, pickle.dumps(Touch(marker)))
    for name in {"model.pt2", *FORMATS[backend].files}:
        folder = artifact_for_here(tmp_path / name, backend, {name: content})
        with pytest.raises(ModelFileError):
            load_model(folder, module=SmallClassifier())
    (tmp_path / "picture.png").write_bytes(b"")
    assert demo.main(["image", "--model", str(folder), "--path", str(tmp_path / "picture.png")]) == 4
    assert not marker.exists()


class Writes(torch.nn.Module):
    """As TorchScript it creates a file of any name when it is called."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.from_file(self.path, shared=True, size=1).sum()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_torchscript_needs_the_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker = tmp_path / "written"
    script = torch.jit.script(Writes(str(marker)))
    torch.jit.save(script, str(tmp_path / "script"))
    folder = artifact_for_here(tmp_path / "artifact", "jit", {"model.torchscript": (tmp_path / "script").read_bytes()})
    with pytest.raises(ModelFileError, match=r"trust=True"):
        InferenceOptimizer.load(folder)
    (tmp_path / "picture.png").write_bytes(b"")
    words = ["image", "--model", str(folder), "--path", str(tmp_path / "picture.png")]
    assert demo.main(words) == 4
    assert "--trust" in capsys.readouterr().err
    assert not marker.exists()
    InferenceOptimizer.load(folder, trust=True).run(np.zeros((1, 3, 32, 32), np.float32))
    assert marker.exists(), "with the word it runs, so the word is what protects"


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_every_way_to_load_a_folder_knows_the_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class TwoOutputs(torch.nn.Module):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            return images.new_zeros(len(images), 2, 4), images.new_zeros(len(images), 2, 3)

    torch.jit.save(torch.jit.script(TwoOutputs()), str(tmp_path / "script"))
    folder = artifact_for_here(tmp_path / "artifact", "jit", {"model.torchscript": (tmp_path / "script").read_bytes()})
    assert info.main([str(folder)]) == 4
    assert "--trust" in capsys.readouterr().err
    assert info.main([str(folder), "--trust"]) == 0
    with pytest.raises(ModelFileError, match="trust=True"):
        assert YOLOX(folder).predictor
    assert YOLOX(folder, trust=True).predictor.input_size == (32, 32)


@pytest.fixture
def onnx_folder(tmp_path: Path) -> Path:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = InferenceOptimizer.trace(SmallClassifier(), torch.from_numpy(SAMPLE), accelerator="onnxruntime")
    save_model(model, tmp_path / "onnx")
    return tmp_path / "onnx"


def rewritten(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    write_manifest(replace(read_manifest(folder), files=file_entries(folder)), folder)
    return folder


def test_onnx_takes_no_numbers_from_elsewhere(onnx_folder: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    load_model(onnx_folder)
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(1 << 16))
    for place in (str(secret), "../secret", "weights.bin"):
        model = onnx.load(str(onnx_folder / "model.onnx"))
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", place), ("offset", "0"), ("length", "64")):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
        evil = tmp_path / f"evil{len(place)}"
        evil.mkdir()
        (evil / "manifest.json").write_bytes((onnx_folder / "manifest.json").read_bytes())
        with pytest.raises(ModelFileError, match="another file"):
            load_model(rewritten(evil, "model.onnx", model.SerializeToString()))


def test_onnx_hidden_in_a_branch_or_of_foreign_operators(onnx_folder: Path) -> None:
    onnx = pytest.importorskip("onnx")
    whole = onnx.load(str(onnx_folder / "model.onnx"))
    model = onnx.ModelProto()
    model.CopyFrom(whole)
    inner = onnx.helper.make_node("Constant", [], ["c"], value=onnx.TensorProto(data_location=1, data_type=1))
    branch = onnx.helper.make_graph([inner], "then", [], [])
    model.graph.node.append(onnx.helper.make_node("If", ["input_0"], ["z"], then_branch=branch, else_branch=branch))
    with pytest.raises(ModelFileError, match="another file"):
        load_model(rewritten(onnx_folder, "model.onnx", model.SerializeToString()))
    model.CopyFrom(whole)
    model.graph.node[0].domain = "evil.ops"
    with pytest.raises(ModelFileError, match="evil"):
        load_model(rewritten(onnx_folder, "model.onnx", model.SerializeToString()))
    content = whole.SerializeToString()
    with pytest.raises(ModelFileError, match="not a readable"):
        load_model(rewritten(onnx_folder, "model.onnx", content[: len(content) // 2]))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('version="opset1"', 'version="extension"', "not OpenVINO's"),
        ("<net ", '<!DOCTYPE net [<!ENTITY a SYSTEM "file:///etc/passwd">]><net ', "entities"),
        (' offset="0" ', ' offset="99999999" ', "beyond the end"),
        (' offset="0" ', ' offset="-8" ', "beyond the end"),
        (' offset="0" ', ' path="/etc/passwd" offset="0" ', "names the file"),
    ],
)
def test_openvino_stays_in_its_folder(tmp_path: Path, old: str, new: str, message: str) -> None:
    pytest.importorskip("openvino")
    model = InferenceOptimizer.trace(SmallClassifier(), torch.from_numpy(SAMPLE), accelerator="openvino")
    save_model(model, tmp_path / "model")
    text = (tmp_path / "model" / "model.xml").read_text()
    start = text.index("<net ")
    changed = text[:start] + text[start:].replace(old, new, 1)
    assert changed != text
    load_model(tmp_path / "model")
    with pytest.raises(ModelFileError, match=message):
        load_model(rewritten(tmp_path / "model", "model.xml", changed.encode()))


def test_arrays_of_our_own_engine_are_no_larger_than_their_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("arr_0.npy", bytes(1 << 22))
    files = {"program.json": b"{}", "arrays.npz": (tmp_path / "bomb.npz").read_bytes()}
    with pytest.raises(ModelFileError, match="stored arrays"):
        load_model(artifact_for_here(tmp_path / "model", "native", files))


def test_links_and_strangers_among_the_files_are_refused(onnx_folder: Path, tmp_path: Path) -> None:
    (onnx_folder / "extension.so").write_bytes(b"")
    with pytest.raises(ModelFileError, match=r"extension\.so"):
        load_model(onnx_folder)
    (onnx_folder / "extension.so").unlink()
    (onnx_folder / "model.onnx").rename(tmp_path / "elsewhere")
    (onnx_folder / "model.onnx").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelFileError, match="is a link"):
        load_model(onnx_folder)


def test_rows_that_need_no_word() -> None:
    assert {name for name, one in FORMATS.items() if one.program is None} == {
        *("eager", "native", "openvino", "onnxruntime")
    }
