"""The compiled kernels as C knows them: their structures, their parameters, and how they are called."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from yolox.errors import YoloxError
from yolox.kernels.library import SWITCH, host_variants, kernels

TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
POINTER, LONG, DOUBLE = ctypes.c_void_p, ctypes.c_long, ctypes.c_double


class Activation(ctypes.Structure):
    """SiLU, or pieces of straight lines: see `yolox.kernels.training.ops.Activation`."""

    _fields_ = (("silu", LONG), ("below", ctypes.c_float), ("most", ctypes.c_float))


class Norm(ctypes.Structure):
    """A batch normalisation: the parameters and moments of each channel, and the activation after it."""

    _fields_ = (*((name, POINTER) for name in ("weight", "bias", "mean", "rstd")), ("activation", Activation))


class Running(ctypes.Structure):
    """Statistics that move with each batch, and the number of batches."""

    _fields_ = (("mean", POINTER), ("var", POINTER), ("batches", POINTER), ("momentum", DOUBLE))


class SplitTensor(ctypes.Structure):
    """A tensor whose channels lie in one tensor or are split over two."""

    _fields_ = (
        *(("first", POINTER), ("first_stride", LONG), ("second", POINTER), ("second_stride", LONG)),
        ("split", LONG),
    )


class Gradient(ctypes.Structure):
    """The gradient of activated values, and the values that were normalised."""

    _fields_ = (("dy", POINTER), ("stride", LONG), ("x", POINTER), ("pixels", LONG), ("channels", LONG))


class Residual(ctypes.Structure):
    """Values to be added to activated ones, and the normalisation that they still have to go through."""

    _fields_ = (("x", POINTER), ("norm", Norm))


class NextNorm(ctypes.Structure):
    """The normalisations after a convolution, one for each part of its output."""

    _fields_ = (("norm", Norm * 2), ("sums", POINTER * 2), ("count", DOUBLE * 2))


class Images(ctypes.Structure):
    """The shape of the input of a depthwise convolution, and its stride."""

    _fields_ = tuple((name, LONG) for name in ("count", "channels", "height", "width", "stride"))


class Window(ctypes.Structure):
    """The shape of the input of a pooling, and the side of its windows."""

    _fields_ = tuple((name, LONG) for name in ("count", "channels", "height", "width", "side"))


class StemInput(ctypes.Structure):
    """The images that the stem reads, and the number of its output channels."""

    _fields_ = (("pixels", POINTER), *((name, LONG) for name in ("floats", "count", "height", "width", "outputs")))


class Shape(ctypes.Structure):
    """The shape of a 1x1 convolution."""

    _fields_ = tuple((name, LONG) for name in ("pixels", "inputs", "outputs"))


class Copy(ctypes.Structure):
    """A copy of numbers, or a sum: see ``csrc/training/copy.cpp``."""

    _fields_ = (
        *((name, POINTER) for name in ("source", "added", "target")),
        *(("source_type", LONG), ("target_type", LONG)),
        *((name, LONG * 6) for name in ("size", "source_stride", "added_stride", "target_stride")),
    )


_PARAMETERS = {
    "norm_act_statistics": (POINTER, LONG, LONG, POINTER),
    "norm_act_moments": (POINTER, DOUBLE, DOUBLE, LONG, Norm, Running),
    "norm_act_parameter_gradients": (POINTER, LONG, Norm, POINTER, POINTER),
    "norm_act_forward": (POINTER, POINTER, LONG, LONG, Norm, Residual),
    "norm_act_gradient_sums": (Gradient, POINTER, Norm, POINTER),
    "norm_act_backward": (POINTER, POINTER, LONG, LONG, Norm, POINTER, DOUBLE),
    "depthwise_forward": (POINTER, Norm, POINTER, Images, POINTER, POINTER),
    "depthwise_backward": (
        *(POINTER, POINTER, Norm, POINTER, DOUBLE),
        *(POINTER, Norm, POINTER, Images, POINTER, POINTER, POINTER),
    ),
    "pointwise_forward": (SplitTensor, POINTER, Shape, POINTER, POINTER, SplitTensor, POINTER),
    "pointwise_backward": (
        *(SplitTensor, SplitTensor, POINTER),
        *(SplitTensor, POINTER, SplitTensor, SplitTensor, Shape, POINTER, POINTER, POINTER),
    ),
    "copy_numbers": (Copy,),
    "max_pool_forward": (POINTER, POINTER, POINTER, Window),
    "max_pool_backward": (POINTER, POINTER, POINTER, Window),
    "stem_forward": (StemInput, POINTER, POINTER, POINTER),
    "stem_backward": (POINTER, POINTER, Norm, POINTER, DOUBLE, StemInput, POINTER),
}


class CallRecorder(Protocol):
    """What wants to see the calls of kernels."""

    def native(self, name: str, values: Sequence[Any], kinds: Sequence[Any]) -> None:
        """Take the name of a kernel with its type, the arguments, and their types in C, before the kernel is called."""

    def fail(self, reason: str) -> None:
        """Note that what is computed now cannot be recorded."""


class Watch(threading.local):
    """Who wants to see the calls of kernels on this thread."""

    recorder: CallRecorder | None = None


watch = Watch()

_STRUCTURES: tuple[type[ctypes.Structure], ...] = (
    *(Activation, Norm, Running, SplitTensor, Gradient, Residual, NextNorm, Images, StemInput, Shape, Copy, Window),
)


@cache
def check_layouts(library: ctypes.CDLL) -> None:
    """Compare the structures with those of the library: their sizes, and where each field lies.

    Raises:
        YoloxError: When the library was built from other sources.
    """
    for structure in _STRUCTURES:
        fields = [str(field[0]) for field in structure._fields_]
        ours = [ctypes.sizeof(structure), *(getattr(structure, field).offset for field in fields)]
        if not hasattr(library, f"layout_{structure.__name__}"):
            continue  # the stem has kernels for some processors alone
        theirs = list((LONG * len(ours)).in_dll(library, f"layout_{structure.__name__}"))
        if ours != theirs:
            raise YoloxError(
                f"the kernels know another {structure.__name__}: {theirs} instead of {ours}. Build them again."
            )


@cache
def _kernel(library: ctypes.CDLL, name: str, dtype: torch.dtype | None) -> Callable[..., int]:
    check_layouts(library)
    function: Any = getattr(library, full_name(name, dtype))
    function.argtypes, function.restype = _PARAMETERS[name], ctypes.c_int
    return cast("Callable[..., int]", function)


def full_name(name: str, dtype: torch.dtype | None) -> str:
    """Return the name of a kernel in the library."""
    return name if dtype is None else f"{name}_{TYPES[dtype]}"


def call(name: str, dtype: torch.dtype | None, *arguments: Any) -> None:
    """Call the kernel of that name and type; tensors go by address.

    Raises:
        MemoryError: Where the memory does not suffice.
    """
    library = kernels()
    assert library is not None
    values = [value.data_ptr() if isinstance(value, Tensor) else value for value in arguments]
    if watch.recorder is not None:
        watch.recorder.native(full_name(name, dtype), values, _PARAMETERS[name])
    if not _kernel(library, name, dtype)(*values):
        raise MemoryError(f"no memory left for the kernel {name}")


def has_pointwise(dtype: torch.dtype = torch.bfloat16) -> bool:
    """Return whether kernels compute products of this type.

    Those of bfloat16 do where the processor has instructions for them, or where the portable kernels are asked for by
    name: these are slower than PyTorch's.
    """
    if dtype not in TYPES or not hasattr(kernels(), f"pointwise_forward_{TYPES[dtype]}"):
        return False
    asked = os.environ.get(SWITCH) == "portable"
    return asked or dtype is not torch.bfloat16 or "avx512_bf16" in host_variants()[0].flags


@cache
def structure_of(kinds: tuple[Any, ...]) -> type[ctypes.Structure]:
    """Return the arguments of a kernel as a structure, as ``csrc/training/program.h`` reads it, in their order."""
    return type(
        "Arguments", (ctypes.Structure,), {"_fields_": [(f"argument{i}", kind) for i, kind in enumerate(kinds)]}
    )


@cache
def addresses_in(kind: Any) -> tuple[int, ...]:
    """Return where the addresses lie in a structure or an array of structures."""
    if kind is ctypes.c_void_p:
        return (0,)
    if issubclass(kind, ctypes.Array):
        step = ctypes.sizeof(kind._type_)
        return tuple(i * step + place for i in range(kind._length_) for place in addresses_in(kind._type_))
    if issubclass(kind, ctypes.Structure):
        each = [(getattr(kind, name).offset, part) for name, part, *_ in kind._fields_]
        return tuple(start + place for start, part in each for place in addresses_in(part))
    return ()


def offsets_in(structure: Any) -> list[int]:
    """Return where the fields of a structure lie."""
    return [getattr(structure, str(name)).offset for name, *_ in structure._fields_]
