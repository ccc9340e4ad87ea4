"""A recorded step as programs, one for the forward and one for the backward pass.

A program calls the kernels from C++, one after the other, with arguments prepared once; PyTorch's operators in between
are called as they were recorded. Memory is planned for the whole step: `yolox.kernels.training.buffers.Placement`.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from yolox.kernels.library import kernels
from yolox.kernels.training.bindings import POINTER
from yolox.kernels.training.buffers import Buffer, Kind, Placement, Ref
from yolox.kernels.training.capture import instances_in
from yolox.kernels.training.recording import Native, Operator, Phase


class Run:
    """The memory of a step while it runs.

    Args:
        step: The block of memory of the whole step.

    Attributes:
        inputs: The arguments of each pass.
        returned: The block of what the pass that runs now returns.
        results: What PyTorch's operators returned, by their buffers.
    """

    def __init__(self, step: Tensor) -> None:
        self.step = self.returned = step
        self.inputs: list[Sequence[Tensor | None]] = []
        self.results: dict[Buffer, Tensor] = {}
        self._typed: dict[tuple[int, torch.dtype], Tensor] = {}

    def typed(self, block: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a block as numbers of a type."""
        key = block.data_ptr(), dtype
        if key not in self._typed:
            self._typed[key] = block.view(dtype)
        return self._typed[key]

    def input(self, phase: int, number: int) -> Tensor:
        """Return an argument of a pass."""
        tensor = self.inputs[phase][number]
        assert tensor is not None
        return tensor


Getter = Callable[[Run], Any]


class _Patches(NamedTuple):
    """Addresses in the arguments of kernels that depend on where something lies in this step."""

    words: NDArray[np.int64]
    offsets: NDArray[np.uint64]


class _Operator(NamedTuple):
    """A call of an operator of PyTorch.

    Attributes:
        function: The operator.
        args: How each argument is found.
        kwargs: Those with names.
        results: The buffers of its results, with the addresses that depend on them; None for what is not new.
        dead: Results that nobody reads after it.
    """

    function: Any
    args: list[Getter]
    kwargs: dict[str, Getter]
    results: list[tuple[Buffer, _Patches] | None]
    dead: list[Buffer]


class Program:
    """One recorded pass.

    Args:
        phases: Of the step.
        number: Of the pass that is meant.
        placement: Where the buffers lie.
    """

    def __init__(self, phases: Sequence[Phase], number: int, placement: Placement) -> None:
        self._number, self._placement = number, placement
        phase = phases[number]
        self._own = {ref.buffer for ref in phase.outputs if ref is not None}
        self._words, begins = _memory_of(phase.entries)
        self._calls = _calls(phase.entries, self._words, begins)
        self._patches = self._by_origin(phase.entries, begins)
        self._steps = self._split(phase.entries)
        self._outputs = [None if ref is None else self._getter(ref, own=number == 0) for ref in phase.outputs]
        self._lock = threading.Lock()
        library: Any = kernels()
        self._run = library.program_run
        self._run.argtypes, self._run.restype = (POINTER, ctypes.c_long), ctypes.c_int

    def _origin(self, buffer: Buffer) -> Any:
        """Return what decides where a buffer lies: itself, the number of an argument, or whether it is returned."""
        if buffer.kind is Kind.RESULT:
            return buffer
        return (buffer.phase, buffer.number) if buffer.kind is Kind.INPUT else buffer in self._own

    def _by_origin(self, entries: Sequence[Native | Operator], begins: dict[int, int]) -> dict[Any, _Patches]:
        found: dict[Any, list[tuple[int, int]]] = {}
        for index, begin in begins.items():
            entry = entries[index]
            assert isinstance(entry, Native)
            for place, buffer, offset in entry.pointers:
                start = self._placement.of(buffer) if buffer.kind is Kind.PLANNED else 0
                found.setdefault(self._origin(buffer), []).append(((begin + place) // 8, start + offset))
        return {key: _patches(each) for key, each in found.items()}

    def _split(self, entries: Sequence[Native | Operator]) -> list[tuple[int, int] | _Operator]:
        """Return runs of calls of kernels, as the first and the number of them, and operators in between."""
        dying: dict[int, list[Buffer]] = {}
        for buffer in {one for entry in entries if isinstance(entry, Operator) for one in entry.results if one}:
            last = buffer.used.get(self._number, buffer.number)
            if max(buffer.used, default=0) <= self._number:
                dying.setdefault(last, []).append(buffer)
        steps: list[tuple[int, int] | _Operator] = []
        natives = 0
        for index, entry in enumerate(entries):
            if isinstance(entry, Operator):
                steps.append(self._operator(entry, dying.get(index, [])))
                continue
            if steps and not isinstance(steps[-1], _Operator):
                steps[-1] = (steps[-1][0], steps[-1][1] + 1)
            else:
                steps.append((natives, 1))
            natives += 1
        return steps

    def _operator(self, entry: Operator, dead: list[Buffer]) -> _Operator:
        results = [
            None if buffer is None else (buffer, self._patches.get(buffer, _patches([]))) for buffer in entry.results
        ]
        kwargs = {key: self._find(value) for key, value in entry.kwargs.items()}
        return _Operator(entry.function, [self._find(value) for value in entry.args], kwargs, results, dead)

    def _find(self, value: Any) -> Getter:
        if isinstance(value, Ref):
            return self._getter(value)
        if isinstance(value, list | tuple) and any(isinstance(item, Ref) for item in value):
            getters = [self._find(item) for item in value]
            return lambda run: [get(run) for get in getters]
        return lambda run: value

    def _getter(self, ref: Ref, *, own: bool = False) -> Getter:
        """Return how a tensor is found; ``own`` for one whose changes autograd has to tell from those of others."""
        buffer, offset, dtype, size, stride = ref
        if buffer.kind is Kind.CONSTANT:
            assert buffer.tensor is not None
            constant = _at(buffer.tensor, ref)
            return lambda run: constant
        if buffer.kind is Kind.INPUT:
            return lambda run: _at(run.input(buffer.phase, buffer.number), ref, relative=True)
        if buffer.kind is Kind.RESULT:
            return lambda run: _at(run.results[buffer], ref)
        first = (self._placement.of(buffer) + offset) // dtype.itemsize
        if buffer not in self._own:
            return lambda run: run.typed(run.step, dtype).as_strided(size, stride, first)
        if own:
            return lambda run: torch.empty(0, dtype=dtype).set_(run.returned.untyped_storage(), first, size, stride)
        return lambda run: run.typed(run.returned, dtype).as_strided(size, stride, first)

    def calls(self) -> tuple[int, int]:
        """Return the number of calls of kernels and of PyTorch's operators."""
        return len(self._calls), sum(isinstance(step, _Operator) for step in self._steps)

    def run(self, run: Run) -> list[Tensor | None]:
        """Run the pass and return what it returns.

        Raises:
            MemoryError: Where the memory does not suffice.
        """
        run.returned = torch.empty(self._placement.returned[self._number], dtype=torch.uint8)
        with self._lock, torch.autocast("cpu", enabled=False):
            self._patch(run)
            for step in self._steps:
                if isinstance(step, _Operator):
                    self._call(step, run)
                elif not self._run(self._calls.ctypes.data + 16 * step[0], step[1]):
                    raise MemoryError("no memory left for the kernels")
            return [None if get is None else get(run) for get in self._outputs]

    def _patch(self, run: Run) -> None:
        for key, (places, offsets) in self._patches.items():
            if isinstance(key, Buffer):
                if key.phase == self._number:
                    continue  # it is not there yet
                base = run.results[key].untyped_storage().data_ptr()
            elif isinstance(key, tuple):
                base = run.input(*key).data_ptr()
            else:
                base = (run.returned if key else run.step).data_ptr()
            self._words[places] = offsets + np.uint64(base)

    def _call(self, step: _Operator, run: Run) -> None:
        kwargs = {key: get(run) for key, get in step.kwargs.items()}
        returned = step.function(*[get(run) for get in step.args], **kwargs)
        if step.results:
            values = returned if isinstance(returned, list | tuple) else (returned,)
            for value, result in zip((one for one in values if isinstance(one, Tensor)), step.results, strict=True):
                if result is not None:
                    buffer, (places, offsets) = result
                    run.results[buffer] = value
                    if len(places):
                        self._words[places] = offsets + np.uint64(value.untyped_storage().data_ptr())
        for buffer in step.dead:
            run.results.pop(buffer, None)


def _at(tensor: Tensor, ref: Ref, *, relative: bool = False) -> Tensor:
    """Return the part of a tensor's memory that is meant; ``relative`` to the tensor's own beginning."""
    first = ref.offset // ref.dtype.itemsize + (tensor.storage_offset() if relative else 0)
    if tensor.dtype == ref.dtype:
        if tensor.storage_offset() == first and tensor.shape == ref.size and tensor.stride() == ref.stride:
            return tensor
        return tensor.as_strided(ref.size, ref.stride, first)
    whole = torch.empty(0, dtype=ref.dtype)
    return whole.set_(tensor.untyped_storage(), first, ref.size, ref.stride)


def _patches(found: Sequence[tuple[int, int]]) -> _Patches:
    return _Patches(np.array([w for w, _ in found], np.int64), np.array([o for _, o in found], np.uint64))


def _memory_of(entries: Sequence[Native | Operator]) -> tuple[NDArray[np.uint64], dict[int, int]]:
    """Return the arguments of all kernels one after the other, and for each kernel's entry where its own begin."""
    begins: dict[int, int] = {}
    whole = bytearray()
    for index, entry in enumerate(entries):
        if isinstance(entry, Native):
            begins[index] = len(whole)
            whole += entry.arguments.ljust(-(-len(entry.arguments) // 8) * 8, b"\0")
    words = np.frombuffer(whole, np.uint64)
    for index, begin in begins.items():
        entry = entries[index]
        assert isinstance(entry, Native)
        for place, target in entry.inner:
            words[(begin + place) // 8] = words.ctypes.data + begin + target
    return words, begins


def _calls(
    entries: Sequence[Native | Operator], words: NDArray[np.uint64], begins: dict[int, int]
) -> NDArray[np.uint64]:
    """Return for each kernel the address of the function that calls it, and that of its arguments."""
    library: Any = kernels()
    rows = []
    for index, begin in begins.items():
        entry = entries[index]
        assert isinstance(entry, Native)
        function = ctypes.cast(getattr(library, f"invoke_{entry.name}"), POINTER).value
        rows.append((function, words.ctypes.data + begin))
    return np.array(rows, np.uint64).reshape(-1, 2)


def passes_of(phases: Sequence[Phase]) -> tuple[Program, Program, Placement]:
    """Return the forward pass, the backward pass, and where their buffers lie."""
    buffers = [buffer for buffer in dict.fromkeys(_buffers(phases)) if buffer.kind is Kind.PLANNED]
    returned = [{ref.buffer for ref in phase.outputs if ref is not None} for phase in phases]
    placement = Placement(buffers, [len(phase.entries) for phase in phases], returned)
    return Program(phases, 0, placement), Program(phases, 1, placement), placement


def _buffers(phases: Sequence[Phase]) -> Iterator[Buffer]:
    for phase in phases:
        for entry in phase.entries:
            if isinstance(entry, Native):
                yield from (pointer.buffer for pointer in entry.pointers)
            else:
                yield from (ref.buffer for ref in instances_in(Ref, (entry.args, entry.kwargs)))
        yield from (ref.buffer for ref in phase.outputs if ref is not None)
