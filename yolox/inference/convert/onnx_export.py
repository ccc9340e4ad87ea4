"""ONNX files out of torch modules, with a free batch axis, checked against the module that they came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from yolox.errors import YoloxError
from yolox.inference.backends.torch_runner import export_inputs, export_program
from yolox.inference.convert.quiet import quiet

OPSET = 18
"""Understood by every release of ONNX Runtime and OpenVINO of the last three years."""

FOLDED = 1 << 24
"""Numbers of the largest constants that are computed once and for all."""

TOLERANCE = 1e-3
"""Largest difference to the module, as a share of the largest output value; fp32 conversions stay far below."""


def input_names(count: int) -> list[str]:
    """Return the names of the inputs of an exported file."""
    return [f"input_{index}" for index in range(count)]


def output_names(count: int) -> list[str]:
    """Return the names of the outputs of an exported file."""
    return [f"output_{index}" for index in range(count)]


def export_onnx(model: nn.Module, sample: Sequence[np.ndarray[Any, Any]], path: Path, *, dynamic_batch: bool) -> None:
    """Write ``model`` as an ONNX file; BatchNorm is folded and weights keep the names they have in the module.

    ``torch.export`` does it where it can; a module that it cannot follow is traced instead.

    Args:
        model: Takes positional tensors, returns a flat tuple of tensors; in eval mode.
        sample: Inputs of one batch.
        path: The file to write.
        dynamic_batch: Leave axis 0 of inputs and outputs free.

    Raises:
        YoloxError: When neither way works, with the reason of both.
    """
    with torch.inference_mode():
        count = len(model(*export_inputs(sample, dynamic_batch)))
    reasons = []
    for way in (_export_graph, _export_trace):
        try:
            with quiet(printing=True), torch.no_grad():
                way(model, sample, path, count, dynamic_batch)
            return
        except Exception as error:  # noqa: BLE001 - exporters raise anything; the next way is tried, then all are told
            reasons.append(f"{way.__name__.strip('_')}: {_first_line(error)}")
    raise YoloxError(f"no ONNX export: {'; '.join(reasons)}. Rewrite the operation named there with plain torch ones.")


def check_outputs(model: nn.Module, sample: Sequence[np.ndarray[Any, Any]], outputs: Sequence[Any]) -> None:
    """Prove that ``outputs`` are what ``model`` returns for ``sample``, up to rounding.

    Raises:
        YoloxError: With the index of the output and the difference.
    """
    with torch.inference_mode():
        expected = model(*(torch.from_numpy(np.array(array)) for array in sample))
    for index, (ours, theirs) in enumerate(zip(outputs, expected, strict=True)):
        reference = theirs.detach().numpy()
        if ours.shape != reference.shape:
            raise YoloxError(f"output {index} has shape {ours.shape} after conversion, {reference.shape} before.")
        difference = float(np.abs(ours.astype(np.float64) - reference).max(initial=0.0))
        scale = float(np.abs(reference).max(initial=0.0))
        if not difference <= TOLERANCE * max(scale, 1.0):
            raise YoloxError(
                f"output {index} differs by {difference:.4g} after conversion (largest value {scale:.4g})."
            )


def _export_graph(
    model: nn.Module, sample: Sequence[np.ndarray[Any, Any]], path: Path, num_outputs: int, dynamic_batch: bool
) -> None:
    from onnxscript.optimizer import optimize

    program = export_program(model, sample, dynamic_batch)
    exported = torch.onnx.export(
        program,
        (),
        input_names=input_names(len(sample)),
        output_names=output_names(num_outputs),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert exported is not None
    # PyTorch folds only small constants, which leaves the grid of 80x80 cells to be computed for every batch.
    optimize(exported.model, input_size_limit=FOLDED, output_size_limit=FOLDED)
    exported.save(path, external_data=False)


def _export_trace(
    model: nn.Module, sample: Sequence[np.ndarray[Any, Any]], path: Path, num_outputs: int, dynamic_batch: bool
) -> None:
    inputs = export_inputs(sample, dynamic_batch)
    names = [*input_names(len(inputs)), *output_names(num_outputs)]
    torch.onnx.export(
        model,
        inputs,
        str(path),
        input_names=names[: len(inputs)],
        output_names=names[len(inputs) :],
        dynamic_axes={name: {0: "batch"} for name in names} if dynamic_batch else None,
        opset_version=OPSET,
        dynamo=False,
    )


def add_metadata(path: Path, values: Mapping[str, str]) -> None:
    """Add text by name to an ONNX file that is there."""
    import onnx

    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, dict(values))
    onnx.save(model, str(path))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__} {lines[0] if lines else ''}".strip()
