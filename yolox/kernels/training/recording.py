"""Records what a step of training does: calls of kernels and of PyTorch's operators, and the memory they read and write.

The kernels are told by `yolox.kernels.training.bindings.call`, PyTorch's operators by a ``TorchDispatchMode``, which sees
them below autograd, forwards and backwards. Memory is known by its address: an allocation at an address means that
whatever was there before is gone, so that nothing has to be kept alive for the recording.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from yolox.kernels.training import bindings
from yolox.kernels.training.copies import as_copies

aten: Any = torch.ops.aten

_ALLOCATIONS = {aten.empty.memory_format, aten.empty_like.default, aten.empty_strided.default, aten.new_empty.default}
_OTHER_MEMORY = {aten.resize_.default, aten.set_.source_Storage_storage_offset, aten.set_.source_Tensor}
_INTO = {
    aten.upsample_nearest2d.default: aten.upsample_nearest2d.out,
    aten.upsample_nearest2d_backward.default: aten.upsample_nearest2d_backward.grad_input,
}
"""Operators with one result, which they can write where they are told."""


class Kind(Enum):
    """Where memory comes from."""

    CONSTANT = auto()  # a parameter or buffer of the module
    INPUT = auto()  # an argument: of the forward pass, or a gradient given to the backward pass
    PLANNED = auto()  # asked for without values, by a kernel or for a result that can be written anywhere
    RESULT = auto()  # made by an operator of PyTorch


@dataclass(eq=False)
class Buffer:
    """A piece of memory that lives through a part of a step.

    Args:
        kind: Where it comes from.
        size: Bytes.
        phase: Number of the phase that made it.
        number: Of the argument; of others the entry that made it or comes next.

    Attributes:
        used: For each phase that reads or writes it, the number of the last entry that does.
        tensor: A constant itself.
    """

    kind: Kind
    size: int
    phase: int
    number: int
    used: dict[int, int] = field(default_factory=dict)
    tensor: Tensor | None = None


class Ref(NamedTuple):
    """A tensor as it lies in a buffer: ``offset`` in bytes from the buffer's beginning."""

    buffer: Buffer
    offset: int
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Pointer(NamedTuple):
    """An address among the arguments of a kernel: at byte ``place`` of them, ``offset`` bytes into a buffer."""

    place: int
    buffer: Buffer
    offset: int


class Native(NamedTuple):
    """A call of a kernel.

    Attributes:
        name: With the type.
        arguments: As they lie in memory; arrays of structures that are handed over by address lie behind them.
        pointers: Addresses in buffers.
        inner: Addresses of such arrays: their places, and where the arrays begin.
    """

    name: str
    arguments: bytes
    pointers: list[Pointer]
    inner: list[tuple[int, int]]


class Operator(NamedTuple):
    """A call of an operator of PyTorch; tensors are `Ref` s.

    Attributes:
        function: The operator.
        args: Its arguments.
        kwargs: Those with names.
        results: The new memory of what it returns, in that order; None where it returns nothing new.
    """

    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    results: list[Buffer | None]


class Phase(NamedTuple):
    """What was recorded of a forward or a backward pass.

    Attributes:
        entries: In their order.
        outputs: What the pass returned.
    """

    entries: list[Native | Operator]
    outputs: list[Ref | None]


class Recorder(TorchDispatchMode):
    """Context manager that records on this thread, a phase at each use.

    Args:
        constants: Tensors whose places do not change between steps.

    Attributes:
        phases: What was recorded.
        failure: Why the step cannot be repeated from the recording; empty as long as it can.
    """

    def __init__(self, constants: Sequence[Tensor]) -> None:
        super().__init__()
        self.phases: list[Phase] = []
        self.failure = ""
        self._memory = _Memory()
        self._given: list[Buffer] = []
        for tensor in constants:
            if self._memory.find(tensor.untyped_storage().data_ptr()) is None:
                self._hold(tensor)

    def __enter__(self) -> Recorder:
        self.phases.append(Phase([], []))
        super().__enter__()
        bindings.watch.recorder = self
        return self

    def __exit__(self, *error: Any) -> None:
        bindings.watch.recorder = None
        super().__exit__(*error)

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.nbytes():
            buffer = Buffer(Kind.CONSTANT, storage.nbytes(), -1, 0, tensor=tensor.detach())
            self._memory.add(storage.data_ptr(), buffer)
            self._given.append(buffer)

    def fail(self, reason: str) -> None:
        """Note that the recording is of no use."""
        self.failure = self.failure or reason

    def add_inputs(self, tensors: Sequence[Tensor]) -> None:
        """Name the arguments of the phase that begins next."""
        for number, tensor in enumerate(tensors):
            start, size = tensor.data_ptr(), tensor.untyped_storage().nbytes()
            size -= tensor.storage_offset() * tensor.element_size()
            if not size:
                continue
            if any(self._is_given(self._memory.find(at)) for at in self._memory.overlaps(start, size)):
                self.fail("an argument lies where another argument or a parameter does")
            buffer = Buffer(Kind.INPUT, size, len(self.phases), number)
            self._memory.add(start, buffer)
            self._given.append(buffer)

    def _is_given(self, found: tuple[Buffer, int] | None) -> bool:
        buffer = found and found[0]
        return bool(buffer) and (buffer.kind is Kind.CONSTANT or buffer.phase == len(self.phases) and buffer.kind is Kind.INPUT)

    def read_backwards(self) -> Iterator[Buffer]:
        """Yield the arguments and constants that the backward pass reads."""
        for buffer in self._given:
            if buffer.phase < 1 and 1 in buffer.used:
                yield buffer

    def set_outputs(self, tensors: Sequence[Tensor | None]) -> None:
        """Name what the phase that has just ended returns."""
        self.phases[-1].outputs.extend(None if tensor is None else self._ref(tensor) for tensor in tensors)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run and record an operator."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self._operator(func, args, kwargs, result)
        return result

    def _operator(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        given = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, tuple(kwargs.values())))}
        results = list(_tensors((result,)))
        fresh = [tensor.untyped_storage().data_ptr() not in given for tensor in results]
        in_place = func.overloadpacket.__name__.endswith("_")
        if func in _OTHER_MEMORY or (result is not None and not results):
            self.fail(f"{func} cannot be repeated")
            return
        if not any(fresh) and (not in_place or torch.Tag.inplace_view in func.tags):
            return  # a view, or another view in the same object
        if func in _ALLOCATIONS:
            self._allocate(results[0], Kind.PLANNED)
            return
        copies = as_copies(func, args, kwargs, result)
        if copies is not None:
            for tensor, is_new in zip(results, fresh, strict=True):
                if is_new:
                    self._allocate(tensor, Kind.PLANNED)
            for tensor in _tensors((args,)):
                self._find_or_hold(tensor)
            for copy in copies:
                self.native("copy_numbers", (copy,), (type(copy),))
            return
        entry = Operator(func, self._refs(args), {key: self._refs(value) for key, value in kwargs.items()}, [])
        if func in _INTO:
            self._allocate(results[0], Kind.PLANNED)
            entry = Operator(_INTO[func], entry.args, {**entry.kwargs, _out_name(func): self._ref(results[0])}, [])
        else:
            new = zip(results, fresh, strict=True)
            entry.results.extend(self._allocate(tensor, Kind.RESULT) if is_new else None for tensor, is_new in new)
        self.phases[-1].entries.append(entry)

    def _allocate(self, tensor: Tensor, kind: Kind) -> Buffer:
        storage, number = tensor.untyped_storage(), len(self.phases[-1].entries)
        buffer = Buffer(kind, storage.nbytes(), len(self.phases) - 1, number)
        if storage.nbytes():
            self._memory.add(storage.data_ptr(), buffer)
        return buffer

    def _refs(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._ref(value)
        if isinstance(value, list | tuple):
            return type(value)(self._refs(item) for item in value)
        return value

    def _ref(self, tensor: Tensor) -> Ref:
        if not tensor.numel():
            empty = Buffer(Kind.CONSTANT, 0, -1, 0, tensor=tensor.detach())
            return Ref(empty, 0, tensor.dtype, tuple(tensor.shape), tensor.stride())
        self._find_or_hold(tensor)
        buffer, offset = self._use(tensor.data_ptr())
        return Ref(buffer, offset, tensor.dtype, tuple(tensor.shape), tensor.stride())

    def _find_or_hold(self, tensor: Tensor) -> None:
        if tensor.numel() and self._memory.find(tensor.data_ptr()) is None:
            self._hold(tensor)  # such as numbers of channels that a step of the plan keeps

    def _use(self, address: int) -> tuple[Buffer, int]:
        found = self._memory.find(address)
        if found is None:
            self.fail("it reads memory that neither it nor its module owns")
            found = Buffer(Kind.CONSTANT, 0, -1, 0), 0
        found[0].used[len(self.phases) - 1] = len(self.phases[-1].entries)
        return found

    def native(self, name: str, values: Sequence[Any], kinds: Sequence[Any]) -> None:
        """Record the call of a kernel."""
        arguments = _structure(tuple(kinds))()
        behind: list[tuple[int, bytes]] = []
        size = ctypes.sizeof(arguments)
        for (key, *_), value in zip(type(arguments)._fields_, values, strict=True):
            if isinstance(value, ctypes.Array):
                behind.append((getattr(type(arguments), key).offset, bytes(value)))
            else:
                setattr(arguments, key, value)
        pointers = list(self._pointers(arguments, 0))
        whole, inner = bytes(arguments), []
        arrays = iter([value for value in values if isinstance(value, ctypes.Array)])
        for place, content in behind:
            inner.append((place, size))
            pointers += self._pointers(next(arrays), size)
            whole, size = whole + content, size + len(content)
        self.phases[-1].entries.append(Native(name, whole, pointers, inner))

    def _pointers(self, structure: Any, start: int) -> Iterator[Pointer]:
        for place in _places(type(structure)):
            address = ctypes.c_void_p.from_buffer(structure, place).value
            if address:
                buffer, offset = self._use(address)
                if buffer.kind is not Kind.CONSTANT:
                    yield Pointer(start + place, buffer, offset)


class _Memory:
    """Buffers by their addresses."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._buffers: dict[int, Buffer] = {}

    def _at(self, address: int) -> int | None:
        index = bisect_right(self._starts, address) - 1
        if index < 0:
            return None
        start = self._starts[index]
        return start if address < start + self._buffers[start].size else None

    def find(self, address: int) -> tuple[Buffer, int] | None:
        """Return the buffer at an address, and the distance from its beginning."""
        start = self._at(address)
        return None if start is None else (self._buffers[start], address - start)

    def overlaps(self, start: int, size: int) -> list[int]:
        """Return the beginnings of the buffers that have bytes in common with these."""
        last = bisect_right(self._starts, start + size - 1)
        first = bisect_right(self._starts, start)
        before = self._at(start)
        return ([] if before is None else [before]) + [s for s in self._starts[first:last] if s != before]

    def add(self, start: int, buffer: Buffer) -> None:
        """Note a buffer; what was there is gone."""
        for old in self.overlaps(start, buffer.size):
            self._starts.remove(old)
            del self._buffers[old]
        insort(self._starts, start)
        self._buffers[start] = buffer


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _out_name(func: Any) -> str:
    return "grad_input" if func is aten.upsample_nearest2d_backward.default else "out"


@cache
def _structure(kinds: tuple[Any, ...]) -> type[ctypes.Structure]:
    """Return the arguments of a kernel as a structure, which `program.h` reads."""
    return type("Arguments", (ctypes.Structure,), {"_fields_": [(f"at{i}", kind) for i, kind in enumerate(kinds)]})


@cache
def _places(kind: Any) -> tuple[int, ...]:
    """Return where the addresses lie in a structure or an array of structures."""
    if kind is ctypes.c_void_p:
        return (0,)
    if issubclass(kind, ctypes.Array):
        step = ctypes.sizeof(kind._type_)
        return tuple(i * step + place for i in range(kind._length_) for place in _places(kind._type_))
    if issubclass(kind, ctypes.Structure):
        each = [(getattr(kind, name).offset, part) for name, part, *_ in kind._fields_]
        return tuple(start + place for start, part in each for place in _places(part))
    return ()
