"""Training acceleration as a pass over a module: `accelerate` and `restore`."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from yolox.kernels.library import kernels
from yolox.kernels.training import eligibility
from yolox.kernels.training.bindings import TYPES, has_pointwise, watch
from yolox.kernels.training.capture import CaptureError, capture, has_own_code, tensors_in
from yolox.kernels.training.choose import Precision, Row
from yolox.kernels.training.eligibility import ModuleState, StandIn
from yolox.kernels.training.plan import Plan
from yolox.kernels.training.repeat import ProgramRow, RepeatedPlan

_log = logging.getLogger(__name__)
_MOST_PLANS = 64
"""So often is one module planned; one that changes at each step is left to PyTorch after that."""


def accelerate(module: nn.Module, *, repeat: bool = True) -> nn.Module:
    """Have the convolutions and normalisations of ``module`` computed by the kernels in training, wherever they can.

    The module stays the same object, with its parameters, buffers, keys and hooks; each part that has code of its own
    gets a forward method that captures and plans that code at its first call in training, in milliseconds, and runs the
    plan. What contains the other parts is asked first, so that usually the whole network is one plan. In evaluation,
    without gradients, while a graph is recorded, and where the code cannot be captured, PyTorch's layers run as ever.

    Args:
        module: The module.
        repeat: Whether steps are recorded and repeated as programs.

    Returns:
        ``module``.
    """
    for part in module.modules():
        if _may_be_planned(part):
            part.forward = _PlannedForward(part, repeat).forward  # a bound method: recorders of graphs ask for its code
    return module


def restore(module: nn.Module) -> nn.Module:
    """Undo `accelerate`, and return ``module``."""
    for part in module.modules():
        if _planned_forward(part) is not None:
            del part.forward
    return module


def table(module: nn.Module) -> list[Row]:
    """Return what computes each layer of an accelerated module after a step of training, and the reasons."""
    rows: list[Row] = []
    for name, part in module.named_modules():
        planned = _planned_forward(part)
        if planned is not None:
            prefix = f"{name}." if name else ""
            rows += [Row(prefix + row.layer, row.kernel, row.reason) for row in planned.rows()]
    return rows


def programs(module: nn.Module) -> list[ProgramRow]:
    """Return, for each part of an accelerated module of which a step has been recorded, what that step consists of."""
    found = []
    for name, part in module.named_modules():
        planned = _planned_forward(part)
        if planned is not None:
            found += [row._replace(part=name) for row in planned.programs()]
    return found


def _planned_forward(module: nn.Module) -> _PlannedForward | None:
    planned = getattr(vars(module).get("forward"), "__self__", None)
    return planned if isinstance(planned, _PlannedForward) else None


def _may_be_planned(module: nn.Module) -> bool:
    if type(module).__module__.startswith("torch.nn") and not isinstance(module, nn.Sequential):
        return False
    known = any(isinstance(part, nn.Conv2d | _BatchNorm) for part in module.modules())
    return known and has_own_code(module) and "forward" not in vars(module)


class _Planned(NamedTuple):
    """A plan, or the reason why there is none; and how the modules were when it was made."""

    plan: RepeatedPlan | None
    reason: str
    modules: list[ModuleState]

    def is_current(self) -> bool:
        return all(state.is_same() for state in self.modules) and (
            self.plan is None or self.plan.plan.capture.is_current()
        )


class _PlannedForward(StandIn):
    """The forward method of one module, by plan where there is one.

    Args:
        module: The module; its class has the forward method that is meant.
        repeat: Whether steps are repeated as programs.
    """

    def __init__(self, module: nn.Module, repeat: bool) -> None:
        self.module, self.repeat = module, repeat
        self._plans: dict[Any, _Planned] = {}
        self._made = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.module, self.repeat)  # a copy of the module makes its own plans

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Do what the forward method of the module's class does."""
        if watch.recorder is not None:
            watch.recorder.fail("a module is computed again in the backward pass")
        if self.module.training and torch.is_grad_enabled() and not _is_recorded():
            tensors = list(tensors_in((args, kwargs)))
            if tensors and all(map(eligibility.is_plain_tensor, tensors)) and not eligibility.has_global_hooks():
                plan = self._plan(args, kwargs)
                if plan is not None:
                    return plan.run(tensors)
        return type(self.module).forward(self.module, *args, **kwargs)

    def rows(self) -> list[Row]:
        """Return the rows of the plan that was made last."""
        if not self._plans:
            return []
        plan, reason, _ = list(self._plans.values())[-1]
        return list(plan.plan.rows) if plan is not None else [Row("(all)", "its parts on their own", reason)]

    def programs(self) -> list[ProgramRow]:
        """Return a row for the plan that was made last; nothing where none of its steps has been recorded."""
        plan = list(self._plans.values())[-1].plan if self._plans else None
        row = None if plan is None else plan.row()
        return [] if row is None else [row]

    def _plan(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> RepeatedPlan | None:
        key = _signature((args, kwargs)), _products(self.module)
        known = self._plans.get(key)
        if known is None or not known.is_current():
            if self._made == _MOST_PLANS:
                return None
            self._made += 1
            if self._made == _MOST_PLANS:
                _log.warning(
                    "%s changes so often that PyTorch's layers train it from here on", type(self.module).__name__
                )
            known = self._plans[key] = self._make(args, kwargs, key[1], ModuleState.all_in(self.module))
        return known.plan

    def _make(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], products: torch.dtype, modules: list[ModuleState]
    ) -> _Planned:
        if kernels() is None:
            return _Planned(None, "there are no compiled kernels", modules)
        if products not in TYPES:
            return _Planned(None, f"there are no kernels for {products}", modules)
        precision = Precision(products, has_pointwise(products))
        try:
            plan = Plan(capture(self.module, args, kwargs), precision)
            return _Planned(RepeatedPlan(self.module, plan, repeat=self.repeat), "", modules)
        except CaptureError as error:
            _log.debug("%s is not planned as a whole: %s", type(self.module).__name__, error)
            return _Planned(None, str(error), modules)


def _is_recorded() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]


def _products(module: nn.Module) -> torch.dtype:
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu")
    return next(parameter.dtype for parameter in module.parameters())


def _signature(value: Any) -> Any:
    """Return what a plan depends on: types and kinds of tensors, and all other values."""
    if isinstance(value, Tensor):
        return value.dtype, value.ndim, value.requires_grad
    if isinstance(value, tuple | list):
        return type(value), tuple(map(_signature, value))
    if isinstance(value, dict):
        return dict, tuple((key, _signature(item)) for key, item in value.items())
    return type(value), value if isinstance(value, bool | int | float | str) else None
