"""Records what a step of training does: calls of kernels and of PyTorch's operators, and the memory they use.

The kernels are told by `yolox.kernels.training.bindings.call`, PyTorch's operators by a ``TorchDispatchMode``, which
sees them below autograd, forwards and backwards. Memory is known by its address: an allocation at an address means that
whatever was there before is gone, so that nothing has to be kept alive for the recording.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from yolox.kernels.training import bindings
from yolox.kernels.training.buffers import AddressMap, Buffer, Kind, Pointer, Ref
from yolox.kernels.training.capture import tensors_in
from yolox.kernels.training.copies import as_copies

aten: Any = torch.ops.aten

_ALLOCATIONS = {aten.empty.memory_format, aten.empty_like.default, aten.empty_strided.default, aten.new_empty.default}
_OTHER_MEMORY = {aten.resize_.default, aten.set_.source_Storage_storage_offset, aten.set_.source_Tensor}
_INTO = {aten.upsample_nearest2d_backward.default: (aten.upsample_nearest2d_backward.grad_input, "grad_input")}
"""Operators with one result, which they can write where they are told, and the name of the argument that tells."""


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


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context manager that records on this thread, a phase at each use.

    Args:
        constants: Tensors whose places do not change between steps.

    Attributes:
        phases: What was recorded.
        failure: Why the step cannot be repeated from the recording; empty as long as it can.
    """

    def __init__(self, constants: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phases: list[Phase] = []
        self.failure = ""
        self._memory = AddressMap()
        self._given: list[Buffer] = []
        for tensor in constants:
            if self._memory.find(tensor.untyped_storage().data_ptr()) is None:
                self._hold(tensor)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first use would import torch._dynamo, which takes seconds

    def __enter__(self) -> Recorder:
        self.phases.append(Phase([], []))
        super().__enter__()  # type: ignore[no-untyped-call]
        bindings.watch.recorder = self
        return self

    def __exit__(self, *error: Any) -> None:
        bindings.watch.recorder = None
        super().__exit__(*error)  # type: ignore[no-untyped-call]

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
            before = int(tensor.storage_offset()) * tensor.element_size()
            start, size = tensor.data_ptr(), tensor.untyped_storage().nbytes() - before
            if not size:
                continue
            if any(map(self._is_given, self._memory.overlaps(start, size))):
                self.fail("an argument lies where another argument or a parameter does")
            buffer = Buffer(Kind.INPUT, size, len(self.phases), number)
            self._memory.add(start, buffer)
            self._given.append(buffer)

    def _is_given(self, start: int) -> bool:
        found = self._memory.find(start)
        assert found is not None
        kind, phase = found[0].kind, found[0].phase
        return kind is Kind.CONSTANT or (kind is Kind.INPUT and phase == len(self.phases))

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
        given = {tensor.untyped_storage().data_ptr() for tensor in tensors_in((args, kwargs))}
        results = list(tensors_in(result))
        new = [tensor for tensor in results if tensor.untyped_storage().data_ptr() not in given]
        in_place = func.overloadpacket.__name__.endswith("_") and torch.Tag.inplace_view not in func.tags
        if func in _OTHER_MEMORY or (result is not None and not results):
            self.fail(f"{func} cannot be repeated")
        elif func in _ALLOCATIONS:
            self._allocate(result, Kind.PLANNED)
        elif in_place and self._memory.is_input(result):
            self.fail("it changes an argument in place")
        elif in_place or any(tensor.numel() for tensor in new):
            self._computed(func, args, kwargs, result, new)

    def _computed(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, new: list[Tensor]
    ) -> None:
        copies = as_copies(func, args, kwargs, result)
        if copies is not None:
            for tensor in new:
                self._allocate(tensor, Kind.PLANNED)
            for tensor in tensors_in(args):
                self._find_or_hold(tensor)
            for copy in copies:
                self.native("copy_numbers", (copy,), (type(copy),))
            return
        entry = Operator(func, self._refs(args), {key: self._refs(value) for key, value in kwargs.items()}, [])
        if func in _INTO:
            self._allocate(result, Kind.PLANNED)
            into, name = _INTO[func]
            entry = Operator(into, entry.args, {**entry.kwargs, name: self._ref(result)}, [])
        else:
            which = {id(tensor) for tensor in new}
            results = tensors_in(result)
            entry.results.extend(self._allocate(x, Kind.RESULT) if id(x) in which else None for x in results)
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
        structure = bindings.structure_of(tuple(kinds))
        arrays = [value for value in values if isinstance(value, ctypes.Array)]  # these go by address
        arguments = structure(*(None if isinstance(value, ctypes.Array) else value for value in values))
        places = bindings.offsets_in(structure)
        behind = [place for place, value in zip(places, values, strict=True) if isinstance(value, ctypes.Array)]
        pointers = list(self._pointers(arguments, 0))
        whole, inner = bytes(arguments), []
        for place, array in zip(behind, arrays, strict=True):
            inner.append((place, len(whole)))
            pointers += self._pointers(array, len(whole))
            whole += bytes(array)
        self.phases[-1].entries.append(Native(name, whole, pointers, inner))

    def _pointers(self, structure: Any, start: int) -> Iterator[Pointer]:
        for place in bindings.addresses_in(structure.__class__):
            address = ctypes.c_void_p.from_buffer(structure, place).value
            if address:
                buffer, offset = self._use(address)
                if buffer.kind is not Kind.CONSTANT:
                    yield Pointer(start + place, buffer, offset)
