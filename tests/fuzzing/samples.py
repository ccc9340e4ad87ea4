"""Sound files of every kind, from which fuzzing starts."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import torch
from safetensors.torch import save

from yolox.config import Experiment, ModelConfig, experiment_to_dict
from yolox.inference.artifacts.manifest import MANIFEST_NAME, Manifest, file_entries, write_manifest
from yolox.inference.backends.base import Settings
from yolox.kernels.int8.int8_ir import Feature, Matrix, Program
from yolox.kernels.int8.ops.conv_step import Conv
from yolox.kernels.int8.ops.pixels import Pack
from yolox.kernels.int8.storage import save_program
from yolox.models.detector import build_detector

COCO = {
    "images": [{"id": 1, "file_name": "a.png"}, {"id": "2", "file_name": "b.png", "height": 8, "width": 16}],
    "categories": [{"id": 1, "name": "a", "supercategory": "none"}, {"id": 2, "name": "b", "supercategory": "a"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 2, "bbox": [1, 2.5, 3, 4], "area": 12, "iscrowd": 0}],
}
VOC = """<?xml version="1.0"?><annotation><filename>a.png</filename><size><width>16</width><height>8</height></size>
<object><name>a</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9.5</xmax><ymax>7</ymax></bndbox>
</object></annotation>"""
DATA_YAML = (
    "train: images\nval: images\nnc: 2\nnames: [a, b]\n",
    "path: .\ntrain: [images]\nnames:\n  0: a\n  1: &x b\nkpt_shape: [17, 3]\n",
)
PYTHON_EXPERIMENT = """import os
from yolox.exp import Exp as MyExp
class Exp(MyExp):
    def __init__(self):
        super(Exp, self).__init__()
        self.depth = 0.33
        self.basic_lr_per_img = 0.01 / 64.0
        self.random_size = (10, 20)
        self.exp_name = os.path.split(os.path.realpath(__file__))[1].split(".")[0]
"""
YAML_EXPERIMENT = "base: yolox_nano\nmodel: {num_classes: 3}\nrecipe.max_epoch: 5\ninput_size: [320, 320]\n"


@cache
def checkpoint() -> bytes:
    """Return a checkpoint of the smallest network."""
    model = ModelConfig(depth=0.33, width=0.0625, depthwise=True, num_classes=2)
    weights = {key: torch.zeros(value.shape) for key, value in build_detector(model).state_dict().items()}
    content = {
        **{"format": 1, "model": weights, "state_dict": {}, "class_names": ["a", "b"], "epoch": 1, "global_step": 2},
        **{"experiment": experiment_to_dict(replace(Experiment("tiny"), model=model)), "loops": {"fit_loop": {}}},
        **{"optimizer_states": [{"state": {}, "param_groups": []}], "lr_schedulers": [{}], "callbacks": {}},
        **{"batch_size": 4, "steps_per_epoch": 2},
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@cache
def onnx_file() -> bytes:
    """Return a small network of several operators."""
    from onnx import TensorProto, helper, numpy_helper

    def weights(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(np.ones(shape, np.float32), name)

    nodes = [
        helper.make_node("Conv", ["images", "w", "b"], ["c"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["c"], ["s"]),
        helper.make_node("Mul", ["c", "s"], ["silu"]),
        helper.make_node("MaxPool", ["silu"], ["pool"], kernel_shape=[2, 2], strides=[1, 1]),
        helper.make_node("Conv", ["pool", "d"], ["deep"], group=4, kernel_shape=[1, 1]),
        helper.make_node("Concat", ["pool", "deep"], ["both"], axis=1),
        helper.make_node("Reshape", ["both", "shape"], ["out"]),
    ]
    shape = numpy_helper.from_array(np.array([0, 8, 9], np.int64), "shape")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in _SIZES.items()]
    constants = [weights("w", 4, 3, 3, 3), weights("b", 4), weights("d", 4, 1, 1, 1), shape]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


_SIZES: dict[str, list[str | int | None]] = {"images": ["B", 3, 8, 8], "out": ["B", 8, 9]}


@cache
def artifact_files(backend: str) -> Mapping[str, bytes]:
    """Return the files of a small model of a back end but its manifest."""
    if backend == "onnxruntime":
        return {"model.onnx": onnx_file()}
    if backend == "eager":
        return {"weights.safetensors": save({"weight": torch.zeros(4, 3, 3, 3), "bias": torch.zeros(4)})}
    with TemporaryDirectory() as place:
        folder = Path(place)
        if backend == "native":
            save_program(_program(), folder)
        else:
            import openvino

            (folder / "a.onnx").write_bytes(onnx_file())
            openvino.save_model(openvino.convert_model(folder / "a.onnx"), folder / "model.xml")
            (folder / "a.onnx").unlink()
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def _program() -> Program:
    x = Feature(4, 4, np.full(3, 0.02, np.float32), np.zeros(3, np.uint8))
    rows = Matrix(16, 2)
    one = np.ones(2, np.float32)
    conv = Conv(x, rows, np.ones((2, 3, 3, 3), np.int8), one, one, top=1, left=1)
    return Program(((3, 4, 4),), (Pack(0, x, 1, (0, 1, 2)), conv), (rows,))


def manifest_of(folder: Path, backend: str) -> Manifest:
    """Return a manifest of the model that lies in a folder."""
    sides = (4, 4) if backend == "native" else (8, 8)
    empty = Manifest("x", backend, "fp32", {}, Settings(), ((1, 3, *sides),), ("float32",), 1)
    return replace(empty, files=file_entries(folder))


def _manifest() -> bytes:
    with TemporaryDirectory() as place:
        folder = Path(place)
        for name, content in artifact_files("native").items():
            (folder / name).write_bytes(content)
        write_manifest(manifest_of(folder, "native"), folder)
        return (folder / MANIFEST_NAME).read_bytes()


def _encoded(suffix: str, kind: type[np.generic] = np.uint8, channels: int = 3) -> bytes:
    side = 64 if suffix == ".jp2" else 8  # its encoder refuses small ones
    encoded, data = cv2.imencode(suffix, np.full((side, max(side, 16), channels), 90, kind))
    assert encoded
    return bytes(data)


def samples() -> dict[str, list[bytes]]:
    """Return the first inputs of every reader of `parsers`."""
    with zipfile.ZipFile(io.BytesIO(checkpoint())) as archive:
        structure = next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    native = artifact_files("native")
    return {
        "coco": [json.dumps(COCO).encode()],
        "voc": [VOC.encode()],
        "yolo": [b"0 0.5 0.5 0.2 0.25\n1 .1 .1 .9 .1 .5 .9\n", b"1 0.5 0.5 0.2 0.25 1 1 1 2 2 2\n"],
        "data_yaml": [text.encode() for text in DATA_YAML],
        "experiments": [b"p" + PYTHON_EXPERIMENT.encode(), b"y" + YAML_EXPERIMENT.encode()],
        "images": [
            *(_encoded(suffix) for suffix in (".png", ".jpg", ".bmp", ".webp", ".tiff", ".jp2", ".ppm")),
            *(_encoded(".png", np.uint16), _encoded(".png", np.uint8, 4), _encoded(".tiff", np.float32)),
        ],
        "checkpoints": [
            b"p" + structure,
            b"z" + checkpoint()[:2000],
            b"s" + artifact_files("eager")["weights.safetensors"],
        ],
        "artifacts": [
            *(b"m" + _manifest(), b"p" + native["program.json"], b"a" + native["arrays.npz"], b"o" + onnx_file()),
            *(b"x" + artifact_files("openvino")["model.xml"], b"s" + artifact_files("eager")["weights.safetensors"]),
        ],
        "onnx": [onnx_file()],
    }
