"""A module as an ncnn graph: traced by PyTorch and converted by pnnx, a program that its Python package holds."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from yolox.errors import YoloxError, needs
from yolox.temporary_folders import TemporaryFolder

INSTALL = "pip install 'yolox-cpu[ncnn]'"
DESCRIPTION_SUFFIX = ".metadata.json"
"""Ending of the file beside a graph that holds its description: the format has no place for one."""

_LONGEST_NAME = 255  # bytes that ncnn reads of a name


def is_name(text: str) -> bool:
    """Return whether ncnn reads ``text`` as one name that none of pnnx's own, which are numbers, can equal."""
    return text.isascii() and text.isidentifier() and len(text) <= _LONGEST_NAME


def write_ncnn(
    module: nn.Module, sample: Tensor, path: Path, names: tuple[str, ...], description: Mapping[str, str]
) -> None:
    """Write ``module`` as ``path`` (.param), with its weights (.bin) and description (.metadata.json) beside it.

    Weights stay in float32, as they are. The file is for one image of the sample's size.

    Args:
        module: In evaluation mode; maps ``[1, C, H, W]`` to a tensor or a tuple of tensors.
        sample: One image.
        path: The file to write.
        names: Name of the input, then of each output, see `is_name`.
        description: Text by name; JSON, but for ``outputs``.

    Raises:
        MissingDependencyError: When pnnx is not installed.
        YoloxError: When it cannot be converted, with the reason.
    """
    with needs("pnnx", INSTALL):
        from pnnx import EXEC_PATH
    with TemporaryFolder("export") as folder:
        traced, graph = folder / "model.pt", folder / "model.ncnn.param"
        torch.jit.save(torch.jit.trace(module, (sample,)), str(traced))  # type: ignore[no-untyped-call]
        shape = ",".join(str(length) for length in sample.shape)
        _run([EXEC_PATH, traced.name, f"inputshape=[{shape}]f32", "fp16=0"], folder, graph)
        path.write_text(_named(graph.read_text(encoding="utf-8"), names), encoding="utf-8")
        path.with_suffix(".bin").write_bytes(graph.with_suffix(".bin").read_bytes())
    values = {name: text if name == "outputs" else json.loads(text) for name, text in description.items()}
    path.with_suffix(DESCRIPTION_SUFFIX).write_text(f"{json.dumps(values, indent=1)}\n", encoding="utf-8")


def _run(command: list[str], folder: Path, graph: Path) -> None:
    """Run pnnx, which reports nothing by its exit code alone.

    Raises:
        YoloxError: When it did not write ``graph``.
    """
    try:
        ended = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError as error:
        raise YoloxError(f"pnnx cannot be started: {error.strerror}. Install it again: {INSTALL}.") from error
    if ended.returncode or not graph.exists():
        lines = (ended.stdout + ended.stderr).decode("utf-8", "replace").strip().splitlines()
        raise YoloxError(
            f"pnnx ended with code {ended.returncode} and wrote no graph: {lines[-1] if lines else 'no message'}. "
            "Try another format."
        )


def _named(text: str, names: tuple[str, ...]) -> str:
    """Return the text of a graph with ``names`` in place of pnnx's in0, out0, out1, ...

    Raises:
        YoloxError: When pnnx left an operator in it for which ncnn has no layer.
    """
    renamed = dict(zip(("in0", *(f"out{index}" for index in range(len(names) - 1))), names, strict=True))
    magic, counts, *layers = text.splitlines()
    lines = []
    for layer in layers:
        kind, name, num_inputs, num_outputs, *rest = layer.split()
        if not kind.isidentifier():
            raise YoloxError(f"ncnn has no layer for {kind}, which the network uses. Try another format.")
        ends = int(num_inputs) + int(num_outputs)
        rest[:ends] = [renamed.get(blob, blob) for blob in rest[:ends]]
        lines.append(" ".join((kind, name, num_inputs, num_outputs, *rest)))
    return "\n".join((magic, counts, *lines, ""))
