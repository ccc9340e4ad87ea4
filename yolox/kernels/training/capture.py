"""Capture: the forward method of a module as a graph of calls of layers and functions, and what the graph relies on.

The graph is recorded by ``torch.fx``, which runs ``forward`` once with stand-ins for the tensors. That takes
milliseconds but fixes whatever Python decides on the way, so a module is captured only where that can be noticed: see
`capture`.
"""

from __future__ import annotations

import dis
import inspect
import pickle
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from yolox.kernels.training.eligibility import has_hooks, has_own_forward
from yolox.kernels.training.graph import is_in_place, readers_of_values

_CONSTANTS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, type(...))
_COPIED = (list, dict, set)
_Kind = TypeVar("_Kind")


class CaptureError(Exception):
    """The module cannot be captured; the message says why."""


@dataclass(frozen=True, eq=False)
class Capture:
    """A recorded forward method.

    Attributes:
        graph: Its placeholders are the tensors among the arguments, depth first.
        modules: The captured module and all modules in it by name, as they were.
        state: For each module that was traced through, the values of its attributes that its code reads.
    """

    graph: fx.Graph
    modules: dict[str, nn.Module]
    state: tuple[tuple[nn.Module, dict[str, Any]], ...]

    def is_current(self) -> bool:
        """Return whether every attribute that was read during the recording still has its value."""
        return all(_same(vars(module), values) for module, values in self.state)


def capture(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Capture:
    """Record the forward method of ``module`` for arguments like these.

    Layers of ``torch.nn``, layers with parameters that consist of no other modules, and modules with hooks or a forward
    method that their class does not have appear as one call; all others are traced through. The attributes that the
    traced code reads are noted, so that `Capture.is_current` notices a change.

    Args:
        module: In the mode in which it will run.
        args: Arguments; tensors in tuples, lists and dictionaries are found.
        kwargs: Arguments by name.

    Raises:
        CaptureError: Where Python decides by the values or the sizes of tensors, draws random numbers, changes
            attributes, uses activation checkpointing or properties, or where an argument is neither a tensor nor a
            plain value.
    """
    tracer = _Tracer(args, kwargs)
    before, generators = _attributes(module), _generators()
    try:
        graph = tracer.trace(module)
    except CaptureError:
        raise
    except Exception as error:  # whatever user code raises when it gets a stand-in instead of a tensor
        raise CaptureError(
            f"its forward method depends on values or sizes of tensors ({_first_line(error)})"
        ) from error
    finally:
        changed = _restore_(before)
    if changed:
        raise CaptureError(f"its forward method changes the attribute '{changed}'")
    if not _equal(generators, _generators()):
        raise CaptureError("its forward method draws random numbers outside of layers")
    modules = dict(module.named_modules(remove_duplicate=False))
    for node in graph.nodes:
        if (
            node.op.startswith("call")
            and is_in_place(node, modules)
            and len(set(readers_of_values(node.all_input_nodes[0]))) > 1
        ):
            raise CaptureError("its forward method changes a tensor in place that others read")
    state = tuple((part, _state(part, names)) for part, names in tracer.read.items())
    return Capture(graph, modules, state)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and dictionaries, depth first."""
    return instances_in(Tensor, value)


def instances_in(kind: type[_Kind], value: Any) -> Iterator[_Kind]:
    """Yield the objects of a class in nested tuples, lists and dictionaries, depth first."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from instances_in(kind, item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from instances_in(kind, item)


class _InputProxy(fx.Proxy):
    """Stands for a tensor among the arguments; the facts that decide which plan is used are known."""

    def __init__(self, node: fx.Node, tracer: fx.Tracer, tensor: Tensor) -> None:
        super().__init__(node, tracer)
        self.dtype, self.device, self.ndim, self.requires_grad = (
            *(tensor.dtype, tensor.device),
            *(tensor.ndim, tensor.requires_grad),
        )
        self._is_floating_point = tensor.is_floating_point()

    def is_floating_point(self) -> bool:
        return self._is_floating_point

    def dim(self) -> int:
        return int(self.ndim)


class _Tracer(fx.Tracer):
    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.arguments = (args, kwargs)
        self.read: dict[nn.Module, set[str]] = {}

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Return a function of no arguments that calls ``root_fn`` with stand-ins for the tensors."""
        self._note(self.root)
        args, kwargs = self._stand_in(self.arguments)

        def call() -> Any:
            return root_fn(self.root, *args, **kwargs)

        return call, []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether the module appears as one call."""
        if super().is_leaf_module(m, module_qualified_name) or not has_own_code(m) or _is_layer(m):
            return True
        return has_hooks(m) or has_own_forward(m)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Trace through a module, or record a call of it."""
        if not self.is_leaf_module(m, self.path_of_module(m)):
            self._note(m)
        return super().call_module(m, forward, args, kwargs)

    def _note(self, module: nn.Module) -> None:
        self.read[module] = _names_read_by(module)

    def _stand_in(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            number = sum(node.op == "placeholder" for node in self.graph.nodes)
            node = self.create_node("placeholder", f"input_{number}", (), {})
            node.meta.update(dtype=value.dtype, requires_grad=value.requires_grad)
            return _InputProxy(node, self, value)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(self._stand_in(item) for item in value))
        if type(value) in {list, tuple}:
            return type(value)(self._stand_in(item) for item in value)
        if type(value) is dict:
            return {key: self._stand_in(item) for key, item in value.items()}
        if isinstance(value, _CONSTANTS):
            return value
        raise CaptureError(f"it was given a {type(value).__name__}; expected tensors and plain values")


def has_own_code(module: nn.Module) -> bool:
    """Return whether the module has a forward method in Python that may be traced through."""
    return isinstance(inspect.getattr_static(type(module), "forward", None), FunctionType)


def _is_layer(module: nn.Module) -> bool:
    """Return whether the module computes with parameters or buffers of its own and consists of no other modules."""
    own = any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False))
    return own and not any(True for _ in module.children())


def _names_read_by(module: nn.Module) -> set[str]:
    """Return the attributes of ``self`` that the forward method reads, and the methods that it calls by ``self``.

    Raises:
        CaptureError: Where the code uses a property of the module or activation checkpointing.
    """
    names: set[str] = set()
    waiting = ["forward"]
    while waiting:
        for function in _definitions(type(module), waiting.pop()):
            code = inspect.unwrap(function).__code__
            if any("checkpoint" in name for name in _all_names(code)):
                raise CaptureError("its forward method uses activation checkpointing")
            found = set(_attributes_of_first_argument(code, code.co_varnames[:1]))
            if "" in found:  # ``self`` goes elsewhere: any attribute may be read
                found = (found | vars(module).keys()) - {""}
            waiting += found - names
            names |= found
    for name in names:
        if isinstance(inspect.getattr_static(type(module), name, None), property):
            raise CaptureError(f"its forward method reads the property '{name}'")
    return names


def _definitions(kind: type, name: str) -> Iterator[FunctionType]:
    """Yield what classes define under a name, those that are overridden too: ``super`` may be used."""
    for base in kind.__mro__:
        if base in {nn.Module, object}:
            continue
        function = vars(base).get(name)
        function = getattr(function, "__func__", function)
        if isinstance(function, FunctionType):
            yield function


def _all_names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _all_names(constant)


def _attributes_of_first_argument(code: CodeType, first: tuple[str, ...]) -> Iterator[str]:
    """Yield the names of the attributes that are read; an empty one where the argument itself is handed on."""
    instructions = list(dis.get_instructions(code))
    for number, instruction in enumerate(instructions):
        loaded = instruction.argval if isinstance(instruction.argval, tuple) else (instruction.argval,)
        if not instruction.opname.startswith(("LOAD_FAST", "LOAD_DEREF")) or not set(first) & set(loaded):
            continue
        following = instructions[number + 1]
        direct = loaded[-1:] == first and following.opname in {"LOAD_ATTR", "LOAD_METHOD", "STORE_ATTR"}
        yield following.argval if direct else ""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _attributes_of_first_argument(constant, first)


def _state(module: nn.Module, names: set[str]) -> dict[str, Any]:
    values = vars(module)
    return {name: _copied(values[name]) for name in names if name in values}


def _copied(value: Any) -> Any:
    return value.copy() if type(value) in _COPIED else value


def _same(now: Mapping[str, Any], then: Mapping[str, Any]) -> bool:
    for name, value in then.items():
        current = now.get(name)
        if current is not value and not (type(current) in (*_CONSTANTS, *_COPIED, tuple) and _equal(current, value)):
            return False
    return True


def _equal(one: Any, two: Any) -> bool:
    try:
        return bool(one == two)
    except (RuntimeError, ValueError):  # of tensors and arrays in a list
        return False


def _attributes(module: nn.Module) -> list[tuple[nn.Module, dict[str, Any]]]:
    return [(part, {name: _copied(value) for name, value in vars(part).items()}) for part in module.modules()]


def _restore_(before: list[tuple[nn.Module, dict[str, Any]]]) -> str:
    """Give the modules the attributes that they had; return the name of one that had changed, or nothing."""
    found = ""
    for part, values in before:
        if vars(part).keys() != values.keys() or not _same(vars(part), values):
            found = next(
                (key for key in vars(part) if key not in values or not _same(vars(part), {key: values[key]})), ""
            )
            found = found or "(removed)"
            vars(part).clear()
            vars(part).update(values)
    return found


def _generators() -> tuple[Any, ...]:
    return random.getstate(), pickle.dumps(np.random.get_state()), torch.get_rng_state().numpy().tobytes()


def _first_line(error: Exception) -> str:
    kind = "" if isinstance(error, TraceError) else f"{type(error).__name__}: "
    return kind + (str(error).splitlines() or ["no message"])[0][:120]
