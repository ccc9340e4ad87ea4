"""Numbers and memory layout of a run: what Lightning calls a precision plug-in, for CPUs first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pytorch_lightning.plugins.precision import DoublePrecision, MixedPrecision, Precision
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.hooks import RemovableHandle

from yolox.errors import UsageError
from yolox.precision_names import PrecisionName
from yolox.trainer.operator_precision import NO_OPERATORS, OperatorLists, OperatorPrecisionMode, hold_in_fp32_
from yolox.trainer.tensors import map_tensors


@dataclass(frozen=True)
class PrecisionOptions:
    """The choices that go with a precision.

    Args:
        channels_last: Whether module and 4-D batches take the channels_last memory format.
        fp32_modules: Parts of the module that compute in float32 under autocast.
        operators: Operators with a precision of their own under autocast.
    """

    channels_last: bool = False
    fp32_modules: tuple[str, ...] = ()
    operators: OperatorLists = NO_OPERATORS

    @property
    def uniform(self) -> bool:
        """Whether there are no exceptions from mixed precision."""
        return not self.fp32_modules and self.operators == NO_OPERATORS


def build_precision(
    precision: PrecisionName, device: str = "cpu", options: PrecisionOptions | None = None
) -> Precision:
    """Return the plug-in for a precision.

    Args:
        precision: One of the canonical names.
        device: Device type, for automatic mixed precision.
        options: Memory format, and exceptions from mixed precision.

    Raises:
        UsageError: When there are exceptions from a precision that is not mixed.
    """
    options = options or PrecisionOptions()
    if precision in ("16", "bf16"):
        return _Mixed("16-mixed" if precision == "16" else "bf16-mixed", device, options)
    if not options.uniform:
        raise UsageError(
            f"fp32_modules and lists of operators make exceptions from mixed precision; precision is {precision}. "
            "Use precision 'bf16', or leave them out."
        )
    return _Double(options) if precision == "64" else _Single(options)


def _to_channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _to_double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _lay_out(module: nn.Module, options: PrecisionOptions) -> nn.Module:
    if options.channels_last:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


def _lay_out_input(data: Any, options: PrecisionOptions) -> Any:
    return map_tensors(_to_channels_last, data) if options.channels_last else data


class _Single(Precision):
    """float32 everywhere."""

    precision = "32-true"

    def __init__(self, options: PrecisionOptions) -> None:
        self.options = options

    def convert_module(self, module: nn.Module) -> nn.Module:
        return _lay_out(module, self.options)

    def convert_input(self, data: Any) -> Any:
        return _lay_out_input(data, self.options)


class _Double(DoublePrecision):
    """float64 everywhere."""

    def __init__(self, options: PrecisionOptions) -> None:
        self.options = options

    def convert_module(self, module: nn.Module) -> nn.Module:
        return _lay_out(module.double(), self.options)

    def convert_input(self, data: Any) -> Any:
        return _lay_out_input(map_tensors(_to_double, data), self.options)


class _Mixed(MixedPrecision):
    """float32 weights; products in bfloat16 or half precision under autocast."""

    def __init__(self, precision: Literal["16-mixed", "bf16-mixed"], device: str, options: PrecisionOptions) -> None:
        # PyTorch starts at 65536, where the first gradients of a detector overflow in half precision: a short
        # fine-tuning lost five of its fifteen steps while the scale fell to 2048.
        scaler = torch.amp.GradScaler(device, init_scale=1024.0) if precision == "16-mixed" else None
        super().__init__(precision, device, scaler)
        self.options = options
        self._hooks: list[RemovableHandle] = []

    def convert_module(self, module: nn.Module) -> nn.Module:
        self.teardown()
        self._hooks = hold_in_fp32_(module, self.options.fp32_modules, self.device)
        return _lay_out(module, self.options)

    def convert_input(self, data: Any) -> Any:
        return _lay_out_input(data, self.options)

    def connect(
        self, model: nn.Module, optimizers: list[Optimizer], lr_schedulers: list[Any]
    ) -> tuple[nn.Module, list[Optimizer], list[Any]]:
        if self.scaler is not None:
            for optimizer in optimizers:
                _start_momentum_(optimizer)
        return super().connect(model, optimizers, lr_schedulers)

    @contextmanager
    def forward_context(self) -> Iterator[None]:
        with super().forward_context():
            if self.options.operators == NO_OPERATORS:
                yield
            else:
                with OperatorPrecisionMode(self.options.operators, self.device):
                    yield

    def teardown(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def _start_momentum_(optimizer: Optimizer) -> None:
    """Give fused SGD its momentum before its first step.

    A step that a gradient scaler skips still counts as the first one of PyTorch's fused SGD, which then goes on from
    momentum that nobody has written (seen with PyTorch 2.13). Momentum of zero makes the first step what it should be.

    Raises:
        UsageError: When the optimizer has dampening, with which zeros are not the same as no momentum.
    """
    if not isinstance(optimizer, SGD):
        return
    for group in optimizer.param_groups:
        if not group["fused"] or group["momentum"] == 0:
            continue
        if group["dampening"] != 0:
            raise UsageError(
                f"precision 16 skips steps, which SGD with fused=True and dampening={group['dampening']} cannot. "
                "Use fused=False or dampening=0."
            )
        for parameter in group["params"]:
            optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
