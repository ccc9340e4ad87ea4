"""What the torch back ends share: a runner over any callable of tensors, wrappers of modules, and their export."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from yolox.inference.artifacts.structure import flatten
from yolox.inference.backends.base import Array, Arrays, PrepareContext, Settings, as_numpy, run_in_chunks
from yolox.inference.convert.quiet import quiet

Call = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class TorchRunner:
    """Runs a callable of tensors with the threads, layout and pieces of its settings.

    Args:
        build: Gives the callable for a layout (``channels_last``); called once for each layout.
        settings: What to run with.
        write: Writes the model's files for these settings into a folder and returns JSON values (``Runner.save``).
        layouts: Values of ``channels_last`` that may be tried.
        autocast: Compute in bf16 where PyTorch's autocast does.
        batch: The only batch size the callable accepts, or ``None`` for any.
        tunable: Whether any other settings may be tried at all.
        int8_share: See ``Runner``.
    """

    build: Callable[[bool], Call]
    settings: Settings
    write: Callable[[Path, Settings], Mapping[str, Any]]
    layouts: tuple[bool, ...] = (False,)
    autocast: bool = False
    batch: int | None = None
    tunable: bool = True
    int8_share: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "_call", self.build(self.settings.channels_last))

    def __call__(self, *inputs: Array) -> Arrays:
        """Run one batch."""
        numpy = isinstance(inputs[0], np.ndarray)
        tensors = tuple(torch.from_numpy(np.asarray(a)) if isinstance(a, np.ndarray) else a for a in inputs)
        with (
            torch_threads(self.settings.threads),
            torch.inference_mode(),
            torch.autocast("cpu", torch.bfloat16, enabled=self.autocast),
        ):
            size = self.batch if self.batch is not None else self.settings.micro_batch
            outputs = run_in_chunks(self._run_piece, tensors, size, pad=self.batch is not None)
        return tuple(as_numpy(output) for output in outputs) if numpy else outputs

    def _run_piece(self, *inputs: Tensor) -> Arrays:
        call: Call = self._call  # type: ignore[attr-defined]
        outputs = call(*(to_layout(tensor, self.settings.channels_last) for tensor in inputs))
        return tuple(output.float() if output.dtype is torch.bfloat16 else output for output in outputs)

    def candidates(self, batch_size: int, threads: int) -> Sequence[Settings]:
        """Layouts first, then pieces of the batch."""
        if not self.tunable:
            return (self.settings,)
        sizes = (None,) if self.batch is not None else sizes_to_try(batch_size)
        return tuple(Settings(threads, 1, size, layout) for size in sizes for layout in self.layouts)

    def configured(self, settings: Settings) -> TorchRunner:
        """Return the runner with other settings."""
        return replace(self, settings=settings)

    def save(self, folder: Path) -> Mapping[str, Any]:
        """Write the model's files."""
        return self.write(folder, self.settings)


def sizes_to_try(batch_size: int) -> tuple[int | None, ...]:
    """Return sizes of pieces worth trying, whole first: caches like small pieces, threads like large ones."""
    return (None, *(size for size in (4, 8, 2, 16, 1) if size * 2 <= batch_size))


def to_layout(tensor: Tensor, channels_last: bool) -> Tensor:
    """Return an image batch in NHWC memory layout if asked; other tensors as they are."""
    if channels_last and tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run with ``count`` intra-op threads and restore the earlier number."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def torch_sample(context: PrepareContext, rows: int) -> tuple[Tensor, ...]:
    """Return `PrepareContext.small_sample` as tensors of their own."""
    return tuple(torch.from_numpy(np.array(array)) for array in context.small_sample(rows))


def flat_call(function: Callable[..., Any]) -> Call:
    """Return a function that gives a tuple also where ``function`` returns one tensor or a list."""

    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = function(*inputs)
        return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)

    return call


def export_inputs(sample: Sequence[np.ndarray[Any, Any]], dynamic_batch: bool) -> tuple[Tensor, ...]:
    """Return two rows where the batch is free: torch.export bakes a size of one into a program, and two cost little."""
    tensors = tuple(torch.from_numpy(np.array(array[:2] if dynamic_batch else array)) for array in sample)
    if dynamic_batch and len(tensors[0]) == 1:
        tensors = tuple(torch.cat([tensor, tensor]) for tensor in tensors)
    return tensors


def export_program(
    model: nn.Module, sample: Sequence[np.ndarray[Any, Any]], dynamic_batch: bool
) -> torch.export.ExportedProgram:
    """Export ``model``, in evaluation mode.

    Args:
        model: Takes positional tensors.
        sample: Inputs of one batch.
        dynamic_batch: Leave axis 0 of the inputs free.
    """
    inputs = export_inputs(sample, dynamic_batch)
    axes: tuple[Any, ...] | None = ({0: torch.export.Dim.DYNAMIC},) * len(inputs) if dynamic_batch else None
    if axes is not None and _takes_any_number(model):
        axes = (axes,)  # a *inputs parameter takes all of them as one tuple
    with torch.no_grad(), quiet():
        return torch.export.export(model, inputs, dynamic_shapes=axes, strict=False)


def _takes_any_number(model: nn.Module) -> bool:
    parameters = inspect.signature(model.forward).parameters.values()
    return any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters)


class FlatModule(nn.Module):
    """Calls ``model`` with positional tensors and returns the tensors of its output as a flat tuple.

    Args:
        model: Any module.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the model."""
        return flatten(self.model(*inputs))
