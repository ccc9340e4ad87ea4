"""Numbers and memory layout of a run: what Lightning calls a precision plug-in, for CPUs first."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pytorch_lightning.plugins.precision import DoublePrecision, MixedPrecision, Precision
from torch import Tensor, nn

from yolox.errors import UsageError
from yolox.trainer.tensors import map_tensors

__all__ = ["PRECISIONS", "build_precision", "canonical_precision"]

PrecisionName = Literal["64", "32", "16", "bf16"]
PRECISIONS: dict[str, PrecisionName] = {
    **dict.fromkeys(("64", "64-true", "fp64", "float64", "double"), "64"),
    **dict.fromkeys(("32", "32-true", "fp32", "float32", "float"), "32"),
    **dict.fromkeys(("16", "16-mixed", "fp16", "float16", "half"), "16"),
    **dict.fromkeys(("bf16", "bf16-mixed", "bfloat16"), "bf16"),
}
"""Every spelling that is understood, and the one used from there on."""


def canonical_precision(precision: int | str) -> PrecisionName:
    """Return the one spelling of a precision.

    Raises:
        UsageError: When it is none of 64, 32, 16 and bf16.
    """
    name = PRECISIONS.get(str(precision).lower())
    if name is None:
        raise UsageError(f"unknown precision '{precision}'; expected 64, 32, 16 or bf16.")
    return name


def build_precision(precision: PrecisionName, device: str = "cpu", channels_last: bool = False) -> Precision:
    """Return the plug-in for a precision.

    Args:
        precision: One of the canonical names.
        device: Device type, for automatic mixed precision.
        channels_last: Whether module and 4-D batches take the channels_last memory format.
    """
    if precision == "64":
        return _Double(channels_last)
    if precision == "32":
        return _Single(channels_last)
    return _Mixed("16-mixed" if precision == "16" else "bf16-mixed", device, channels_last)


def _to_channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _to_double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


class _Single(Precision):
    """float32 everywhere."""

    precision = "32-true"

    def __init__(self, channels_last: bool) -> None:
        self.channels_last = channels_last

    def convert_module(self, module: nn.Module) -> nn.Module:
        return module.to(memory_format=torch.channels_last) if self.channels_last else module  # type: ignore[call-overload, no-any-return]

    def convert_input(self, data: Any) -> Any:
        return map_tensors(_to_channels_last, data) if self.channels_last else data


class _Double(DoublePrecision):
    """float64 everywhere."""

    def __init__(self, channels_last: bool) -> None:
        self.channels_last = channels_last

    def convert_module(self, module: nn.Module) -> nn.Module:
        return module.double().to(memory_format=torch.channels_last) if self.channels_last else module.double()  # type: ignore[call-overload, no-any-return]

    def convert_input(self, data: Any) -> Any:
        data = map_tensors(_to_double, data)
        return map_tensors(_to_channels_last, data) if self.channels_last else data


class _Mixed(MixedPrecision):
    """float32 weights; products in bfloat16 or half precision under autocast."""

    def __init__(self, precision: Literal["16-mixed", "bf16-mixed"], device: str, channels_last: bool) -> None:
        super().__init__(precision, device)
        self.channels_last = channels_last

    def convert_module(self, module: nn.Module) -> nn.Module:
        return module.to(memory_format=torch.channels_last) if self.channels_last else module  # type: ignore[call-overload, no-any-return]

    def convert_input(self, data: Any) -> Any:
        return map_tensors(_to_channels_last, data) if self.channels_last else data
