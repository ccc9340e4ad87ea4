"""Decides when a plan runs as programs: the second step with tensors of some sizes is recorded, later ones repeat it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from yolox.kernels.training.capture import tensors_in
from yolox.kernels.training.eligibility import has_gradient_hooks, has_hooks, has_own_forward, own_tensors
from yolox.kernels.training.plan import Plan
from yolox.kernels.training.program import KEPT, RETURNED, SCRATCH, Program, Run, programs
from yolox.kernels.training.recording import Kind, Phase, Recorder
from yolox.kernels.training.sync import SharedNormalisation

_MOST_PROGRAMS = 64
_PLAIN = (bool, int, float, str, type(None))
_TENSOR = object()
_FUNCTIONS = ("torch", "_operator", "builtins", "math")


class _Owned(NamedTuple):
    """A parameter or buffer as it was recorded."""

    owner: dict[str, Tensor | None]
    name: str
    tensor: Tensor
    address: int
    wants_gradient: bool

    @classmethod
    def all_of(cls, module: nn.Module) -> list[_Owned]:
        owners = [owner for part in module.modules() for owner in own_tensors(part)]
        pairs = [(owner, name, x) for owner in owners for name, x in owner.items() if x is not None]
        return [cls(owner, name, x, x.data_ptr(), x.requires_grad) for owner, name, x in pairs]

    def is_same(self) -> bool:
        owner, name, tensor, address, wants_gradient = self
        return (
            owner.get(name) is tensor and tensor.data_ptr() == address and tensor.requires_grad == wants_gradient
        )


class _Step(NamedTuple):
    """A recorded step and what it relies on.

    Attributes:
        forward: The forward pass.
        backward: The backward pass.
        outputs: What the forward pass returns, with a placeholder for each tensor.
        grads: Shape, strides and type of the gradients that it was given; None for outputs without one.
        saved: Numbers of the tensors whose values the backward pass reads, among the arguments and parameters.
        owned: Parameters and buffers.
        settings: Layers and their plain attributes.
    """

    forward: Program
    backward: Program
    outputs: list[Any]
    grads: list[Tensor | None]
    saved: list[int]
    owned: list[_Owned]
    settings: list[tuple[nn.Module, dict[str, Any]]]

    def is_current(self) -> bool:
        return all(one.is_same() for one in self.owned) and all(
            values.items() <= vars(module).items() for module, values in self.settings
        )


class ProgramRow(NamedTuple):
    """What a recorded step consists of.

    Attributes:
        part: Name of the part of the module; empty for all of it.
        kernels: Calls of kernels, forwards and backwards.
        operators: Calls of PyTorch's operators between them.
        kept: Bytes that the forward pass keeps for the backward pass, besides what PyTorch's operators returned.
        reason: Why the step is not repeated from its recording; empty where it is.
    """

    part: str
    kernels: int
    operators: int
    kept: int
    reason: str


class RepeatedPlan:
    """Runs a plan, as programs wherever that gives the same.

    Args:
        module: What the plan computes; all parameters and buffers are its own.
        plan: The plan.
    """

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        self._module, self.plan = module, plan
        self._steps: dict[Any, _Step | None] = {}
        self._seen: set[Any] = set()
        self._reason = _why_not(plan)
        self._failure = ""

    def run(self, tensors: Sequence[Tensor]) -> Any:
        """Return what the forward method returns.

        Args:
            tensors: Those among its arguments, depth first.
        """
        key = tuple((x.shape, x.stride(), x.dtype, x.requires_grad) for x in tensors)
        step = self._steps.get(key)
        if step is not None and step.is_current():
            parameters = [one.tensor for one in step.owned if one.wants_gradient]
            outputs = _Repeat.apply(step, len(tensors), *tensors, *parameters)  # type: ignore[no-untyped-call]
            return self.plan.result(_filled(step.outputs, iter(outputs)))
        if self._reason or len(self._steps) == _MOST_PROGRAMS or (key in self._steps and step is None):
            return self.plan.run(tensors)
        if key not in self._seen:
            self._seen.add(key)
            return self.plan.run(tensors)
        return self._record(key, tensors)

    def row(self) -> ProgramRow | None:
        """Return what the step that was recorded last consists of; None where none was."""
        if self._reason or self._failure:
            return ProgramRow("", 0, 0, 0, self._reason or self._failure)
        step = list(self._steps.values())[-1] if self._steps else None
        if step is None:
            return None
        passes = step.forward, step.backward
        kernels, operators = (sum(count) for count in zip(*(one.calls() for one in passes), strict=True))
        return ProgramRow("", kernels, operators, step.forward.sizes[KEPT], "")

    def _record(self, key: Any, tensors: Sequence[Tensor]) -> Any:
        owned = _Owned.all_of(self._module)
        self._seen.discard(key)  # a step without a backward pass is no recording: the next but one is the next try
        parameters = [one.tensor for one in owned if one.wants_gradient]
        if any(map(has_gradient_hooks, parameters)):
            return self.plan.run(tensors)
        places: list[Tensor | None] = [*(None for _ in tensors), *parameters]

        def done(grads: list[Tensor | None]) -> None:
            self._steps[key] = self._made(recording, grads, places, owned)

        recording = _Recording(Recorder([one.tensor for one in owned]), self.plan, done)
        outputs = _Record.apply(recording, len(tensors), *tensors, *parameters)  # type: ignore[no-untyped-call]
        return self.plan.result(_filled(recording.outputs, iter(outputs)))

    def _made(
        self,
        recording: _Recording,
        grads: list[Tensor | None],
        tensors: list[Tensor | None],
        owned: list[_Owned],
    ) -> _Step | None:
        recorder = recording.recorder
        reason = recorder.failure or _why_not_returned(recorder.phases)
        if reason:
            self._failure = reason
            return None
        forward, backward = programs(recorder)
        read = {
            (buffer.kind, buffer.number if buffer.kind is Kind.INPUT else buffer.tensor.untyped_storage().data_ptr())  # type: ignore[union-attr]
            for buffer in recorder.read_backwards()
        }
        saved = [
            number
            for number, tensor in enumerate(tensors)
            if ((Kind.INPUT, number) if tensor is None else (Kind.CONSTANT, tensor.untyped_storage().data_ptr())) in read
        ]
        settings = [
            (part, {key: value for key, value in vars(part).items() if isinstance(value, _PLAIN)})
            for part in self._module.modules()
            if not any(True for _ in part.children())
        ]
        return _Step(forward, backward, recording.outputs, grads, saved, owned, settings)


@dataclass(eq=False)
class _Recording:
    """A step that is being recorded.

    Args:
        recorder: Sees it.
        plan: What it runs.
        done: Is called after the backward pass, with the gradients that this was given.

    Attributes:
        outputs: What the forward pass returned, with a placeholder for each tensor.
    """

    recorder: Recorder
    plan: Plan
    done: Callable[[list[Tensor | None]], None]
    outputs: list[Any] = field(default_factory=list)


def _why_not(plan: Plan) -> str:
    """Return why the plan cannot be repeated without its Python; nothing where it can."""
    modules = plan.capture.modules
    for node in plan.capture.graph.nodes:
        target: Any = node.target
        if node.op == "call_module":
            module = modules[target]
            if not type(module).__module__.startswith("torch.nn") and not isinstance(module, SharedNormalisation):
                return f"{type(module).__name__} has code of its own"
            if isinstance(module, SharedNormalisation):
                return "its normalisations talk to other processes"
            if has_hooks(module) or has_own_forward(module):
                return f"{target} has a hook"
        if isinstance(target, type) and issubclass(target, tuple):
            continue
        if node.op == "call_function" and str(getattr(target, "__module__", "")).partition(".")[0] not in _FUNCTIONS:
            return f"{target} is a function of its own"
    return ""


def _why_not_returned(phases: Sequence[Phase]) -> str:
    if len(phases) != 2:
        return "it has no backward pass"
    for number, phase in enumerate(phases):
        for ref in phase.outputs:
            if ref is None:
                continue
            if ref.buffer.kind not in {Kind.PLANNED, Kind.RESULT} or ref.buffer.phase != number:
                return "it returns memory that it was given"
            if max(ref.buffer.used) > number:
                return "its backward pass reads what the forward pass returned"
    return ""


class _Record(torch.autograd.Function):
    """Runs a plan and records it: forwards, and backwards the first time."""

    @staticmethod
    def forward(ctx: Any, recording: _Recording, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        inputs = [x.detach().requires_grad_(x.requires_grad) for x in tensors[:count]]
        recorder = recording.recorder
        recorder.add_inputs(inputs)
        with recorder, torch.enable_grad():
            values = recording.plan.compute(inputs)
        outputs = list(tensors_in(values))
        recording.outputs = _filled(values, iter([_TENSOR] * len(outputs)))
        recorder.set_outputs(outputs)
        ctx.set_materialize_grads(False)
        ctx.recording, ctx.outputs = recording, outputs
        ctx.wanted = [x for x in (*inputs, *tensors[count:])]
        returned = [output.detach() for output in outputs]
        ctx.mark_non_differentiable(*(r for r, o in zip(returned, outputs, strict=True) if not o.requires_grad))
        return tuple(returned)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        recorder: Recorder = ctx.recording.recorder
        given = [None if grad is None else _dense(grad) for grad in grads]
        differentiable = [output.requires_grad for output in ctx.outputs]
        if any(grad is None and known for grad, known in zip(given, differentiable, strict=True)):
            recorder.fail("an output has no gradient")
        pairs = [
            (output, grad)
            for output, grad, known in zip(ctx.outputs, given, differentiable, strict=True)
            if known and grad is not None
        ]
        wanted = [x for x in ctx.wanted if x.requires_grad]
        first = len(recorder.phases) == 1

        def run() -> Sequence[Tensor | None]:
            return torch.autograd.grad(
                [output for output, _ in pairs], wanted, [grad for _, grad in pairs], retain_graph=True, allow_unused=True
            )

        if first:
            recorder.add_inputs([grad for grad in given if grad is not None])
            with recorder:
                found = run()
            recorder.set_outputs(found)
            ctx.recording.done([None if grad is None else grad.to("meta") for grad in given])
        else:
            found = run()
        each = iter(found)
        return None, None, *[next(each) if x.requires_grad else None for x in ctx.wanted]


class _Repeat(torch.autograd.Function):
    """Runs a recorded step."""

    @staticmethod
    def forward(ctx: Any, step: _Step, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        run = Run(tensors[:count], _blocks(step.forward), {})
        outputs = step.forward.run(run)
        run.blocks[SCRATCH] = run.blocks[RETURNED] = run.blocks[SCRATCH][:0]
        ctx.save_for_backward(*(tensors[number] for number in step.saved))
        run.inputs = ()
        ctx.step, ctx.run, ctx.count = step, run, count
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(o for o, g in zip(outputs, step.grads, strict=True) if o is not None and g is None))
        return tuple(outputs)  # type: ignore[arg-type]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        step, earlier = ctx.step, ctx.run
        inputs: list[Any] = [None] * ctx.count
        for number, tensor in zip(step.saved, ctx.saved_tensors, strict=True):
            if number < ctx.count:
                inputs[number] = tensor
        before = Run(inputs, earlier.blocks, earlier.results)
        given = [_like(grad, known) for grad, known in zip(grads, step.grads, strict=True) if known is not None]
        run = Run(given, _blocks(step.backward), dict(earlier.results), before)
        found = iter(step.backward.run(run))
        return None, None, *[next(found) if wants else None for wants in ctx.needs_input_grad[2:]]


def _filled(value: Any, tensors: Iterator[Any]) -> Any:
    """Return nested tuples, lists and dictionaries with other tensors, or other placeholders, in them."""
    if isinstance(value, Tensor) or value is _TENSOR:
        return next(tensors)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_filled(item, tensors) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(_filled(item, tensors) for item in value)
    if isinstance(value, dict):
        return {key: _filled(item, tensors) for key, item in value.items()}
    return value


def _blocks(program: Program) -> list[Tensor]:
    return [torch.empty(program.sizes[block], dtype=torch.uint8) for block in (KEPT, SCRATCH, RETURNED)]


def _dense(grad: Tensor) -> Tensor:
    dense = grad.is_contiguous() or (grad.ndim == 4 and grad.is_contiguous(memory_format=torch.channels_last))
    return grad if dense else grad.contiguous()


def _like(grad: Tensor | None, known: Tensor) -> Tensor:
    """Return a gradient laid out as the one that was recorded."""
    if grad is None:
        return torch.empty_strided(known.shape, known.stride(), dtype=known.dtype).zero_()
    if grad.stride() == known.stride() and grad.dtype == known.dtype:
        return grad
    return torch.empty_strided(known.shape, known.stride(), dtype=known.dtype).copy_(grad)
