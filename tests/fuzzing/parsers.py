"""What is given to each reader of foreign files, and the limits that it keeps.

A reader may do two things with any bytes: give its result, or raise a `YoloxError`.
"""

from __future__ import annotations

import io
import math
import re
import resource
import time
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
from samples import artifact_files, checkpoint, manifest_of

from yolox.checkpoint import load_model as load_checkpoint
from yolox.data.dataset_paths import load_split, resolve_dataset
from yolox.data.formats.layouts import SplitPaths
from yolox.data.image_files import decode, is_turned, read_file_size, why_unreadable
from yolox.errors import YoloxError
from yolox.experiments import experiment_from_file
from yolox.inference.artifacts.manifest import MANIFEST_NAME, read_manifest, write_manifest
from yolox.inference.artifacts.model import load_model as load_artifact
from yolox.inference.backends.onnx_files import read_onnx
from yolox.kernels.int8.onnx_cut import cut_network
from yolox.structures import Size
from yolox.tools.start import read_run_state

MAX_SECONDS, MAX_BYTES = 5.0, 1 << 30
CORPUS = Path(__file__).with_name("corpus")
MEMBERS = {
    **{b"m": ("native", "manifest.json"), b"p": ("native", "program.json"), b"a": ("native", "arrays.npz")},
    **{b"o": ("onnxruntime", "model.onnx"), b"x": ("openvino", "model.xml"), b"s": ("eager", "weights.safetensors")},
}
"""Back end and file of an artifact, by the first byte of the input that replaces it."""
_ELSEWHERE = re.compile(rb"(?<![\w.])(?:/|~|\.\.|\\)")  # a data.yaml may name any folder of this machine

Reader = Callable[[bytes, Path], None]
"""Reads the bytes as one kind of file, in an existing folder of its own."""


class LimitError(Exception):
    """A reader took more time or memory than it may."""


def run(reader: Reader, data: bytes, folder: Path) -> None:
    """Run a reader; its refusals are what is expected of it.

    Raises:
        LimitError: When it needs more than 5 s of processor time or a gibibyte more than ever before.
    """
    started, memory, message = time.process_time(), _peak_bytes(), ""
    try:
        reader(data, folder)
    except YoloxError as error:
        message = str(error)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", message), "a terminal would obey this message"
    if time.process_time() - started > MAX_SECONDS:
        raise LimitError(f"{time.process_time() - started:.1f} s of processor time")
    if _peak_bytes() - memory > MAX_BYTES:
        raise LimitError(f"{(_peak_bytes() - memory) >> 20} MiB")


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _with_image(folder: Path, name: str) -> Path:
    """Return a folder in ``folder`` that holds an image ``a.png`` of 8 rows and 16 columns."""
    place = folder / name
    if not place.exists():
        place.mkdir(parents=True)
        cv2.imwrite(str(place / "a.png"), np.zeros((8, 16, 3), np.uint8))
    return place


def _read_in_each_way(path: Path, *ways: Callable[[Path], object]) -> None:
    """Read a file by each of several functions; the refusals of all of them are raised as one."""
    refusals = []
    for read in ways:
        try:
            read(path)
        except YoloxError as error:
            refusals.append(str(error))
    if refusals:
        raise YoloxError("\n".join(refusals))


def coco(data: bytes, folder: Path) -> None:
    (folder / "labels.json").write_bytes(data)
    load_split(SplitPaths("coco", "train", folder / "labels.json", (_with_image(folder, "images"),)))


def voc(data: bytes, folder: Path) -> None:
    images = _with_image(folder, "JPEGImages")
    (folder / "Annotations").mkdir(exist_ok=True)
    (folder / "Annotations" / "a.xml").write_bytes(data)
    load_split(SplitPaths("voc", "train", folder / "Annotations", (images,)))


def yolo(data: bytes, folder: Path) -> None:
    images = _with_image(folder, "images")
    (folder / "labels").mkdir(exist_ok=True)
    (folder / "labels" / "a.txt").write_bytes(data)
    (folder / "data.yaml").write_text("{train: images, names: [a, b], kpt_shape: [2, 3]}", encoding="utf-8")
    load_split(SplitPaths("yolo", "train", folder / "data.yaml", (images,)))


def data_yaml(data: bytes, folder: Path) -> None:
    if _ELSEWHERE.search(data):
        return
    _with_image(folder, "images")
    (folder / "labels").mkdir(exist_ok=True)
    (folder / "labels" / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n", encoding="utf-8")
    (folder / "data.yaml").write_bytes(data)
    paths = resolve_dataset(folder)
    for split in (paths.train, paths.val):
        if split is not None:
            load_split(split)


def experiments(data: bytes, folder: Path) -> None:
    path = folder / ("a.py" if data[:1] == b"p" else "a.yaml")
    path.write_bytes(data[1:])
    experiment_from_file(path)


def images(data: bytes, folder: Path) -> None:
    path = folder / "a.jpg"
    path.write_bytes(data)
    size = read_file_size(path)
    is_turned(path)
    why_unreadable(path)
    for factor in (1, 4):
        image = decode(data, size or Size(8, 8), factor)
        assert image is None or (image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3)


def checkpoints(data: bytes, folder: Path) -> None:
    """The first byte says what the others are: the whole file, a safetensors file, or the pickle of a sound archive."""
    kind, rest = data[:1], data[1:]
    path = folder / ("a.safetensors" if kind == b"s" else "a.pth")
    if kind == b"p":
        members = _checkpoint_members()
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, rest if name.endswith("data.pkl") else content)
    else:
        path.write_bytes(rest)
    _read_in_each_way(path, load_checkpoint, read_run_state)


@cache
def _checkpoint_members() -> Mapping[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(checkpoint())) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def artifacts(data: bytes, folder: Path) -> None:
    """The first byte names the file that the others are; its checksum is right, as a stranger's would be."""
    if data[:1] not in MEMBERS:
        return
    backend, name = MEMBERS[data[:1]]
    files = {**artifact_files(backend), name: data[1:]}
    place = folder / backend
    place.mkdir(exist_ok=True)
    for one, content in files.items():
        (place / one).write_bytes(content)
    if name != MANIFEST_NAME:
        write_manifest(manifest_of(place, backend), place)
    module = torch.nn.Conv2d(3, 4, 3) if backend == "eager" else None
    manifest = read_manifest(place)
    model = load_artifact(place, module=module)
    if sum(map(math.prod, manifest.input_shapes)) <= 4096:
        kinds = zip(manifest.input_shapes, manifest.input_dtypes, strict=True)
        model.run(*(np.zeros(shape, kind) for shape, kind in kinds))


def onnx(data: bytes, folder: Path) -> None:
    path = folder / "a.onnx"
    path.write_bytes(data)
    _read_in_each_way(path, cut_network, lambda one: read_onnx(one, 1))


READERS: Mapping[str, Reader] = {
    reader.__name__: reader
    for reader in (coco, voc, yolo, data_yaml, experiments, images, checkpoints, artifacts, onnx)
}
