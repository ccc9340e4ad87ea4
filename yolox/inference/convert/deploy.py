"""A module as a file for other programs, with a description: ONNX, OpenVINO, TorchScript, ``torch.export``, ncnn."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from yolox.errors import MissingDependencyError, UsageError, YoloxError
from yolox.files import describe_failed_write
from yolox.inference.backends.graph_file import Suppression
from yolox.inference.convert.ncnn_export import DESCRIPTION_SUFFIX, INSTALL, is_name, write_ncnn
from yolox.inference.convert.onnx_export import SUPPRESSION_FROM, add_metadata, add_nms
from yolox.inference.convert.quiet import quiet
from yolox.temporary_folders import TemporaryFolder

OPSETS = range(9, 24)
"""ONNX opsets that PyTorch writes."""

_NEW_EXPORTER_FROM = 18
"""The exporter built on torch.export writes this opset and later ones; older ones need the tracing exporter."""


@dataclass(frozen=True)
class Deployment:
    """How a module of one image input becomes a file.

    Args:
        format: One of `FORMATS`.
        input_name: Name of the input (ONNX, OpenVINO, ncnn).
        output_names: Names of the module's outputs (ONNX, OpenVINO, ncnn).
        opset: One of `OPSETS` (ONNX, OpenVINO).
        dynamic_batch: Leave the number of images free.
        dynamic_size: Leave height and width free.
        size_multiple: What height and width are multiples of where they are free.
        nms: Suppression inside the graph (ONNX, OpenVINO) of a module that gives boxes and scores; None for none.
        description: Text by name that is stored in the file.
    """

    format: str
    input_name: str = "images"
    output_names: tuple[str, ...] = ("output",)
    opset: int = 18
    dynamic_batch: bool = False
    dynamic_size: bool = False
    size_multiple: int = 32
    nms: Suppression | None = None
    description: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


def check_deployment(asked: Deployment) -> None:
    """Refuse what the format cannot hold, before any work.

    Raises:
        UsageError: For a combination that does not exist.
        MissingDependencyError: When a library is missing.
    """
    if asked.opset not in OPSETS:
        raise UsageError(f"opset {asked.opset} is not supported; expected {OPSETS[0]} to {OPSETS[-1]} (18 is usual).")
    with_graph = asked.format in ("onnx", "openvino")
    if asked.nms is not None and not with_graph:
        raise UsageError(f"{asked.format} holds no suppression; expected the format onnx or openvino with it.")
    if asked.nms is not None and asked.opset < SUPPRESSION_FROM:
        raise UsageError(
            f"opset {asked.opset} with suppression is not supported; expected {SUPPRESSION_FROM} or later."
        )
    if asked.dynamic_size and asked.format == "torchscript":
        raise UsageError("a traced TorchScript program has one height and width; use the format torch_export or onnx.")
    if asked.dynamic_size and with_graph and asked.opset < _NEW_EXPORTER_FROM:
        raise UsageError(
            f"opset {asked.opset} with free height and width is not supported; expected {_NEW_EXPORTER_FROM} or later."
        )
    if asked.format == "ncnn":
        _check_ncnn(asked)
    needed = ("onnx", "onnxscript") if with_graph else ()
    for library in (*needed, "openvino") if asked.format == "openvino" else needed:
        if importlib.util.find_spec(library) is None:
            raise MissingDependencyError(library, "pip install 'yolox-cpu[inference]'")


def _check_ncnn(asked: Deployment) -> None:
    if asked.dynamic_batch or asked.dynamic_size:
        raise UsageError("an ncnn graph takes one image of one height and width; use the format onnx or openvino.")
    names = (asked.input_name, *asked.output_names)
    if len(set(names)) < len(names) or not all(is_name(name) for name in names):
        raise UsageError(
            f"an ncnn graph cannot have an input and outputs named {', '.join(repr(name) for name in names)}; expected "
            "different names of ASCII letters, digits and underscores that begin with no digit."
        )
    if importlib.util.find_spec("pnnx") is None:
        raise MissingDependencyError("pnnx", INSTALL)


def write_deployment(module: nn.Module, sample: Tensor, path: Path, asked: Deployment) -> None:
    """Write ``module`` as the file ``path``; see `COMPANIONS` for the files beside it.

    Args:
        module: In evaluation mode; maps ``[B, 3, H, W]`` to a tensor or a tuple of tensors.
        sample: Images of the shape that the file is made for; one for ncnn.
        path: The file to write.
        asked: How.

    Raises:
        UsageError: For a combination that does not exist.
        YoloxError: When the module cannot be exported, with the reason.
    """
    check_deployment(asked)
    batch, _, height, width = sample.shape
    # torch.export takes a free axis of length one for a fixed one, and equal free axes for one
    shape = (max(2, batch) if asked.dynamic_batch else batch, sample.shape[1])
    size = (2 * asked.size_multiple, 3 * asked.size_multiple) if asked.dynamic_size else (height, width)
    try:
        with quiet(printing=True), torch.no_grad():
            FORMATS[asked.format](module, sample.new_zeros(*shape, *size), path, asked)
    except (torch.onnx.OnnxExporterError, RuntimeError, ValueError) as error:
        if describe_failed_write(error) is not None:
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise YoloxError(f"the export as {asked.format} failed: {reason}. Try another format or opset.") from error


def _program(module: nn.Module, sample: Tensor, asked: Deployment) -> torch.export.ExportedProgram:
    axes: dict[int, Any] = {0: torch.export.Dim.DYNAMIC} if asked.dynamic_batch else {}
    if asked.dynamic_size:
        for axis, name in ((2, "rows"), (3, "columns")):
            axes[axis] = asked.size_multiple * torch.export.Dim(name, min=1)
    return torch.export.export(module, (sample,), dynamic_shapes=(axes,) if axes else None)


def _write_onnx(module: nn.Module, sample: Tensor, path: Path, asked: Deployment) -> None:
    names: dict[str, Any] = {
        "input_names": [asked.input_name],
        "output_names": list(asked.output_names),
        "opset_version": asked.opset,
    }
    if asked.opset < _NEW_EXPORTER_FROM:
        free = {name: {0: "batch"} for name in (asked.input_name, *asked.output_names)}
        dynamic_axes = free if asked.dynamic_batch else None
        torch.onnx.export(module, (sample,), str(path), dynamo=False, dynamic_axes=dynamic_axes, **names)
    else:
        program = torch.onnx.export(_program(module, sample, asked), (), dynamo=True, verbose=False, **names)
        assert program is not None
        program.save(str(path), external_data=False)
    if asked.nms is not None:
        add_nms(path, asked.nms, module(sample)[1].shape[2])
    add_metadata(path, asked.description)


def _write_openvino(module: nn.Module, sample: Tensor, path: Path, asked: Deployment) -> None:
    from yolox.inference.backends.openvino_files import write_ir

    with TemporaryFolder("export") as folder:
        onnx_file = folder / "model.onnx"
        _write_onnx(module, sample, onnx_file, asked)
        write_ir(onnx_file, path, asked.description)


def _write_program(module: nn.Module, sample: Tensor, path: Path, asked: Deployment) -> None:
    """Write a program of ``torch.export``; ``torch.export.load(path, extra_files=...)`` reads the description."""
    torch.export.save(_program(module, sample, asked), path, extra_files=dict(asked.description))


def _write_torchscript(module: nn.Module, sample: Tensor, path: Path, asked: Deployment) -> None:
    files = {f"{name}.json" if name != "outputs" else "outputs.txt": text for name, text in asked.description.items()}
    traced = torch.jit.trace(module, (sample,))  # type: ignore[no-untyped-call]
    torch.jit.save(traced, str(path), _extra_files=files)


def _write_ncnn(module: nn.Module, sample: Tensor, path: Path, asked: Deployment) -> None:
    write_ncnn(module, sample, path, (asked.input_name, *asked.output_names), asked.description)


FORMATS: dict[str, Callable[[nn.Module, Tensor, Path, Deployment], None]] = {
    "onnx": _write_onnx,
    "openvino": _write_openvino,
    "torchscript": _write_torchscript,
    "torch_export": _write_program,
    "ncnn": _write_ncnn,
}
"""What writes each format."""

COMPANIONS = {"openvino": (".bin",), "ncnn": (".bin", DESCRIPTION_SUFFIX)}
"""Endings of the files that a format writes beside its own: weights, and what ncnn's has no place for."""
