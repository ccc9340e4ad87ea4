"""Models of strangers that nothing is wrong with at first sight: each is refused in one line, in little memory."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from strangers import Touch, artifact

from yolox import YOLOX
from yolox.config import Experiment, ModelConfig, experiment_to_dict
from yolox.cpu.memory_limit import limited_memory
from yolox.errors import ModelFileError
from yolox.inference.artifacts.manifest import MANIFEST_NAME
from yolox.inference.artifacts.model import load_model
from yolox.inference.backends import base
from yolox.inference.backends.base import Settings, memory_for
from yolox.models.detector import build_detector
from yolox.tools import predict

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.backends
TINY = ModelConfig(depth=0.33, width=0.0625, depthwise=True, num_classes=2)
LARGE = 10**10


def numbers(name: str, *values: int) -> Any:
    return onnx.numpy_helper.from_array(np.array(values, np.int64), name)


def onnx_file(*nodes: Any, constants: tuple[Any, ...] = (), **metadata: str) -> bytes:
    """Return a file whose last node gives the output ``out`` of the input ``images``."""
    kind = onnx.TensorProto.FLOAT
    images = onnx.helper.make_tensor_value_info("images", kind, [1, 3, 64, 64])
    mean = onnx.helper.make_node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=0)
    out = onnx.helper.make_tensor_value_info("out", kind, None)
    graph = onnx.helper.make_graph([mean, *nodes], "graph", [images], [out], constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.helper.set_model_props(model, metadata)
    return bytes(model.SerializeToString())


def large_constant() -> bytes:
    nodes = ("ConstantOfShape", ["shape"], ["large"]), ("Add", ["large", "mean"], ["out"])
    return onnx_file(*(onnx.helper.make_node(*node) for node in nodes), constants=(numbers("shape", 1, LARGE),))


def large_expansion() -> bytes:
    nodes = ("Expand", ["mean", "shape"], ["large"]), ("ReduceSum", ["large"], ["out"])
    return onnx_file(*(onnx.helper.make_node(*node) for node in nodes), constants=(numbers("shape", 1, LARGE),))


def large_range() -> bytes:
    nodes = (("Range", ["first", "last", "step"], ["large"]), ("Cast", ["large"], ["floats"]))
    made = [onnx.helper.make_node(*node, **({"to": 1} if node[0] == "Cast" else {})) for node in nodes]
    made += [
        onnx.helper.make_node("ReduceSum", ["floats"], ["all"]),
        onnx.helper.make_node("Add", ["all", "mean"], ["out"]),
    ]
    scalars = [onnx.numpy_helper.from_array(np.int64(v), n) for n, v in (("first", 0), ("last", LARGE), ("step", 1))]
    return onnx_file(*made, constants=tuple(scalars))


@pytest.mark.parametrize("made", [large_constant, large_expansion, large_range])
def test_tensors_of_any_size_in_a_small_file(made: Callable[[], bytes], tmp_path: Path) -> None:
    """40 GB from 300 bytes: as a file and as an artifact, in ONNX Runtime and in OpenVINO."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (tmp_path / "a.onnx").write_bytes(made())
    with pytest.raises(ModelFileError, match=r"a\.onnx"):
        assert YOLOX(tmp_path / "a.onnx").predictor
    images = np.zeros((1, 3, 64, 64), np.float32)
    with pytest.raises(ModelFileError, match="not a model that can be run"):
        load_model(artifact(tmp_path / "onnx", "onnxruntime", {"model.onnx": made()})).run(images)
    openvino = pytest.importorskip("openvino")
    openvino.save_model(openvino.Core().read_model(str(tmp_path / "a.onnx")), str(tmp_path / "model.xml"))
    files = {name: (tmp_path / name).read_bytes() for name in ("model.xml", "model.bin")}
    with pytest.raises(ModelFileError, match="not a model that can be run"):
        load_model(artifact(tmp_path / "openvino", "openvino", files)).run(images)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20, "KiB: less than a gibibyte"


def endless_loop(start: str) -> bytes:
    """Return a file whose loop goes on as long as its condition, which is always true."""
    kinds = {"float": onnx.TensorProto.FLOAT, "bool": onnx.TensorProto.BOOL, "int64": onnx.TensorProto.INT64}

    def value(name: str, kind: str, *shape: int) -> Any:
        return onnx.helper.make_tensor_value_info(name, kinds[kind], shape)

    steps = [onnx.helper.make_node("Identity", ["go"], ["on"]), onnx.helper.make_node("Add", ["x", "one"], ["y"])]
    given = [value("i", "int64"), value("go", "bool"), value("x", "float", 1)]
    body = onnx.helper.make_graph(steps, "body", given, [value("on", "bool"), value("y", "float", 1)])
    loop = onnx.helper.make_node("Loop", ["", "true", start], ["last"], body=body)
    constants = (np.array(True), "true"), (np.ones(1, np.float32), "one")
    made = tuple(onnx.numpy_helper.from_array(*constant) for constant in constants)
    return onnx_file(loop, onnx.helper.make_node("Add", ["last", "mean"], ["out"]), constants=made)


def test_a_loop_that_never_ends_in_onnx_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "LEAST_SECONDS", 1.0)
    monkeypatch.setattr(base, "NUMBERS_PER_SECOND", 1e9)
    (tmp_path / "a.onnx").write_bytes(endless_loop("mean"))
    with pytest.raises(ModelFileError, match=r"a\.onnx.*not done after 1 s"):
        assert YOLOX(tmp_path / "a.onnx").predictor
    folder = artifact(tmp_path / "model", "onnxruntime", {"model.onnx": endless_loop("mean")})
    with pytest.raises(ModelFileError, match="not done after 1 s"):
        load_model(folder).run(np.zeros((1, 3, 64, 64), np.float32))
    assert "limited time" not in {thread.name for thread in threading.enumerate()}, "ONNX Runtime ends what it does"


@pytest.mark.parametrize("start", ["mean", "one"], ids=["while it runs", "while it is opened"])
def test_a_loop_that_never_ends_in_openvino(start: str, tmp_path: Path) -> None:
    """OpenVINO cannot be told to end, so it goes on for as long as the process: here another one."""
    openvino = pytest.importorskip("openvino")
    (tmp_path / "a.onnx").write_bytes(endless_loop(start))
    openvino.save_model(openvino.Core().read_model(str(tmp_path / "a.onnx")), str(tmp_path / "a.xml"))
    code = (
        "import sys; from yolox.inference.backends import base; from yolox.tools import predict\n"
        "base.LEAST_SECONDS, base.NUMBERS_PER_SECOND = 1.0, 1e9; sys.exit(predict.main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "a.png"), "-c", str(tmp_path / "a.xml")]
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((64, 64, 3), np.uint8))
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert "not done after 1 s" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 4


def test_weights_beside_an_openvino_file_count_as_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_bytes(b"x" * 10)
    alone = memory_for(tmp_path / "a.xml")
    (tmp_path / "a.bin").write_bytes(b"x" * 1000)
    assert memory_for(tmp_path / "a.xml") == memory_for(tmp_path / "a.bin") + 80 == alone + 8000


def test_two_threads_with_limited_memory_leave_the_limit_as_it_was() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    second_is_in, first_is_out = Event(), Event()

    def second() -> None:
        with limited_memory(1 << 32):
            second_is_in.set()
            first_is_out.wait(60)

    thread = Thread(target=second)
    with limited_memory(1 << 33):
        thread.start()
        second_is_in.wait(0.3)  # it must not come in; if it did, it would restore the limit of the first
    first_is_out.set()
    thread.join()
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_metadata_that_is_no_json(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    node = onnx.helper.make_node("Identity", ["mean"], ["out"])
    path.write_bytes(onnx_file(node, class_names="[" * 200_000, input_size=f"[1{'0' * 5000}, 32]"))
    with pytest.raises(ModelFileError, match="expected boxes"):
        assert YOLOX(path).predictor


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"metadata": {"network": {"depth": 4.0, "width": 4.0, "num_classes": 80}}}, "describes a detector of"),
        ({"metadata": {"network": {"depth": [], "width": {}}}}, "does not say which detector"),
        ({"structure": {"list": ["*"]}}, "structure"),
        ({"structure": {"list": 5}}, "structure"),
        ({"structure": {}}, "structure"),
        ({"structure": json.loads('{"list": [' * 60 + "]}" * 60)}, "structure"),
        ({"input_shapes": ((1, 3, 10**6, 10**6),)}, "input_shapes"),
        ({"input_shapes": ((10**6, 3, 64, 64),), "dynamic_batch": False}, "input_shapes"),
        ({"settings": Settings(10**9)}, "cannot be right"),
    ],
)
def test_what_a_manifest_claims(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "weights")
    content = (tmp_path / "weights").read_bytes()
    folder = artifact(tmp_path / "model", "eager", {"weights.safetensors": content}, **values)
    with pytest.raises(ModelFileError, match=message):
        assert YOLOX(folder).predictor


@pytest.mark.parametrize("names", [5, "person", [["a"]], {"0": "a"}, [None]])
def test_class_names_of_an_artifact_that_are_no_text(names: Any, tmp_path: Path) -> None:
    node = onnx.helper.make_node("Identity", ["mean"], ["out"])
    folder = artifact(tmp_path / "m", "onnxruntime", {"model.onnx": onnx_file(node)}, metadata={"class_names": names})
    with pytest.raises(ModelFileError, match="names its classes"):
        assert YOLOX(folder).predictor


@pytest.mark.parametrize("kind", ["pipe", "folder", "link to a device"])
def test_members_that_are_no_files(kind: str, tmp_path: Path) -> None:
    """Reading a pipe or a device would never end."""
    node = onnx.helper.make_node("Identity", ["mean"], ["out"])
    for name in ("model.onnx", MANIFEST_NAME):
        folder = artifact(tmp_path / name, "onnxruntime", {"model.onnx": onnx_file(node)})
        (folder / name).unlink()
        if kind == "pipe":
            os.mkfifo(folder / name)
        elif kind == "folder":
            (folder / name).mkdir()
        else:
            (folder / name).symlink_to("/dev/zero")
        with pytest.raises(ModelFileError):
            assert YOLOX(folder).predictor


def sound(content: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def with_member(name: str, payload: bytes) -> bytes:
    """Return a sound checkpoint with one member more, or another one."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(sound({"model": {}}))) as old, zipfile.ZipFile(buffer, "w") as new:
        for member in old.namelist():
            if member != f"archive/{name}":
                new.writestr(member, old.read(member))
        new.writestr(f"archive/{name}", payload)
    return buffer.getvalue()


def legacy_tar(payload: bytes) -> bytes:
    """Return the format of PyTorch 0.1: a tar archive of pickles."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            entry = tarfile.TarInfo(name)
            entry.size = len(payload)
            archive.addfile(entry, io.BytesIO(payload))
    return buffer.getvalue()


def scripted() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), buffer)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_pickles_in_odd_members_and_formats_do_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    payload = pickle.dumps(Touch(marker))
    members = ("data.pkl", "constants.pkl", "code/a.pkl", "data/0", ".data/serialization_id", "byteorder", "version")
    contents = [with_member(name, payload) for name in members]
    for number, content in enumerate([*contents, payload, legacy_tar(payload), scripted()]):
        path = tmp_path / f"{number}.pth"
        path.write_bytes(content)
        with pytest.raises(ModelFileError):
            assert YOLOX(path).predictor
    assert not marker.exists()


@pytest.mark.parametrize(
    "header",
    [
        b"{" * 100_000,
        b'{"a":{"dtype":"F32","shape":[4000000000,4000000000],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551615]}}',
        b'{"__metadata__":{"yolox":"' + b"[" * 50_000 + b'"}}',
    ],
)
def test_headers_of_safetensors(header: bytes, tmp_path: Path) -> None:
    for claimed in (len(header), 2**62):
        (tmp_path / "a.safetensors").write_bytes(claimed.to_bytes(8, "little") + header + bytes(4))
        with pytest.raises(ModelFileError):
            assert YOLOX(tmp_path / "a.safetensors").predictor


def test_names_do_not_reach_a_terminal_raw(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    weights = build_detector(TINY).state_dict()
    content = {
        **{"format": 1, "model": weights, "class_names": ["\x1b[2Ja\rb", "\u202ec\n"]},
        "experiment": experiment_to_dict(replace(Experiment("tiny"), model=TINY)),
    }
    for key, value in weights.items():
        if key.endswith(("obj_preds.0.bias", "cls_preds.0.bias")):
            value.fill_(5.0)
    torch.save(content, tmp_path / "a.pth")
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((64, 64, 3), np.uint8))
    words = [str(tmp_path / "a.png"), "-c", str(tmp_path / "a.pth"), "--conf", "0.01", "--tsize", "64"]
    assert predict.main(words) == 0
    out, err = capfd.readouterr()
    assert "\\x1b[2Ja" in out
    assert not {"\x1b", "\r", "\u202e"} & set(out + err)
