"""Which operators run in bf16 and which in fp32: the two list files of the Gaudi port, and named parts of a module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from yolox.errors import UsageError, did_you_mean
from yolox.text_files import read_lines
from yolox.trainer.tensors import map_tensors

_SAME = {"truediv": "div", "max_pool2d_with_indices": "max_pool2d", "rtruediv": "div", "rmul": "mul", "radd": "add"}
_FIRST_ONLY = {"batch_norm", "layer_norm", "group_norm", "instance_norm"}  # statistics and scales stay in fp32


@dataclass(frozen=True)
class OperatorLists:
    """Names of PyTorch functions with a precision of their own under autocast.

    Args:
        bf16: These compute in bfloat16.
        fp32: These compute in float32.
        unknown: Names of the files that PyTorch does not have.
    """

    bf16: frozenset[str] = frozenset()
    fp32: frozenset[str] = frozenset()
    unknown: tuple[str, ...] = ()


NO_OPERATORS = OperatorLists()


def read_operator_lists(bf16_file: str | Path | None, fp32_file: str | Path | None) -> OperatorLists:
    """Read lists of operators, one name a line, ``#`` for remarks.

    Raises:
        UsageError: When a file cannot be read, or a name is in both.
    """
    bf16, fp32 = _read(bf16_file), _read(fp32_file)
    both = sorted(bf16 & fp32)
    if both:
        raise UsageError(f"operators in both lists: {', '.join(both)}; expected each in one.")
    unknown = tuple(sorted(name for name in bf16 | fp32 if not _exists(name)))
    return OperatorLists(bf16.difference(unknown), fp32.difference(unknown), unknown)


class OperatorPrecisionMode(TorchFunctionMode):
    """While entered, the operators of the lists compute in their precision.

    The lists are exceptions from autocast: where it is disabled, as in the loss, which computes in float32, they do
    nothing.

    Args:
        operators: The lists.
        device: Device type of autocast.
    """

    def __init__(self, operators: OperatorLists, device: str) -> None:
        super().__init__()
        self.operators = operators
        self.device = device

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call ``func`` with arguments of its own precision."""
        if not torch.is_autocast_enabled(self.device):
            return func(*args, **(kwargs or {}))
        name = _plain_name(getattr(func, "__name__", ""))
        if name in self.operators.fp32:
            dtype = torch.float32
        elif name in self.operators.bf16:
            dtype = torch.bfloat16
        else:
            return func(*args, **(kwargs or {}))
        count = 1 if name in _FIRST_ONLY else len(args)
        with torch.autocast(self.device, enabled=False):
            return func(*_cast(tuple(args[:count]), dtype), *args[count:], **(kwargs or {}))


def hold_in_fp32_(module: nn.Module, patterns: Sequence[str], device: str) -> list[RemovableHandle]:
    """Have the parts of ``module`` whose names match compute in float32 under autocast; return the hooks.

    Args:
        module: Gets the hooks.
        patterns: Names, whole or their last parts, with ``*`` and ``?``.
        device: Device type of autocast.

    Raises:
        UsageError: When a pattern matches nothing.
    """
    names = [name for name, _ in module.named_modules() if name]
    handles: list[RemovableHandle] = []
    for pattern in patterns:
        matching = [name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")]
        if not matching:
            raise UsageError(f"fp32_modules: no part is called '{pattern}'.{did_you_mean(pattern, names)}")
        handles += (handle for name in matching for handle in _hooks(module.get_submodule(name), device))
    return handles


def _hooks(part: nn.Module, device: str) -> Iterable[RemovableHandle]:
    entered: list[ExitStack] = []

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        context = ExitStack()
        context.enter_context(torch.autocast(device, enabled=False))
        entered.append(context)
        return _cast(args, torch.float32), _cast(kwargs, torch.float32)

    def after(*_: Any) -> None:
        entered.pop().close()

    yield part.register_forward_pre_hook(before, with_kwargs=True, prepend=True)
    yield part.register_forward_hook(after, always_call=True)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor

    return map_tensors(cast, value)


def _read(file: str | Path | None) -> frozenset[str]:
    if file is None:
        return frozenset()
    lines = (line for _, line in read_lines(Path(file), "a list of operators", UsageError))
    return frozenset(_SAME.get(name, name) for line in lines if (name := line.partition("#")[0].strip()))


def _plain_name(name: str) -> str:
    name = name.strip("_")
    return _SAME.get(name, name)


def _exists(name: str) -> bool:
    return any(hasattr(place, name) for place in (torch, F, Tensor))
