"""When a plan runs as programs: the second step with tensors of some sizes is recorded, those after it repeat it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from yolox.kernels.training.buffers import Kind
from yolox.kernels.training.eligibility import has_gradient_hooks, has_hooks, has_own_forward
from yolox.kernels.training.graph import is_in_place
from yolox.kernels.training.plan import Plan
from yolox.kernels.training.program import passes_of
from yolox.kernels.training.recorded_step import Owned, RecordedStep, Recording, RecordStep, RepeatStep, filled
from yolox.kernels.training.recording import Phase, Recorder
from yolox.kernels.training.step_memory import BLOCKS
from yolox.kernels.training.sync import SharedNormalisation

_MOST_RECORDINGS = 64  # of one plan; a module whose tensors move at each step is not recorded for ever
_PLAIN = (bool, int, float, str, tuple, type(None))
_FUNCTIONS = ("torch", "_operator", "builtins", "math")


class ProgramRow(NamedTuple):
    """What a recorded step consists of.

    Attributes:
        part: Name of the part of the module; empty for all of it.
        kernels: Calls of kernels, forwards and backwards.
        operators: Calls of PyTorch's operators between them.
        memory: Bytes that the step uses, besides what it returns and what PyTorch's operators return.
        reason: Why the step is not repeated from its recording; empty where it is.
    """

    part: str
    kernels: int
    operators: int
    memory: int
    reason: str


class RepeatedPlan:
    """Runs a plan, as programs wherever that gives the same.

    Args:
        module: What the plan computes; all parameters and buffers are its own.
        plan: The plan.
        repeat: Whether to do so at all.
    """

    def __init__(self, module: nn.Module, plan: Plan, *, repeat: bool) -> None:
        self._module, self.plan = module, plan
        self._steps: dict[Any, RecordedStep | None] = {}
        self._seen: set[Any] = set()
        self._recordings = 0
        self._reason = _why_not(plan) if repeat else "it is not asked for"
        self._failure = ""

    def run(self, tensors: Sequence[Tensor]) -> Any:
        """Return what the forward method returns.

        Args:
            tensors: Those among its arguments, depth first.
        """
        key = tuple((x.shape, x.stride(), x.dtype, x.requires_grad) for x in tensors)
        step = self._steps.get(key)
        if step is not None and step.is_current():
            outputs = RepeatStep.apply(step, len(tensors), *tensors, *step.parameters)  # type: ignore[no-untyped-call]
            return self.plan.result(filled(step.outputs, iter(outputs)))
        if step is not None:
            del self._steps[key]
        if self._reason or self._recordings == _MOST_RECORDINGS or key in self._steps:
            return self.plan.run(tensors)
        BLOCKS.release()  # a step that is not repeated needs as much memory elsewhere
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
        return ProgramRow("", kernels, operators, step.placement.size, "")

    def _record(self, key: Any, tensors: Sequence[Tensor]) -> Any:
        self._recordings += 1
        owned = Owned.all_of(self._module)
        self._seen.discard(key)  # a step without a backward pass is no recording: the next but one is the next try
        parameters = list(
            {id(one.tensor): one.tensor for one in owned if one.wants_gradient}.values()
        )  # some are shared
        if any(map(has_gradient_hooks, parameters)):
            return self.plan.run(tensors)

        def done(grads: list[Tensor | None]) -> None:
            self._steps[key] = self._made(recording, grads, [*range(len(tensors)), *parameters], owned)

        recording = Recording(Recorder([one.tensor for one in owned]), self.plan, done)
        outputs = RecordStep.apply(recording, len(tensors), *tensors, *parameters)  # type: ignore[no-untyped-call]
        return self.plan.result(filled(recording.outputs, iter(outputs)))

    def _made(
        self,
        recording: Recording,
        grads: list[Tensor | None],
        given: list[int | Tensor],
        owned: list[Owned],
    ) -> RecordedStep | None:
        recorder = recording.recorder
        reason = recorder.failure or _why_not_returned(recorder.phases)
        if reason:
            self._failure = reason
            return None
        forward, backward, placement = passes_of(recorder.phases)
        read = {
            _identity(buffer.number if buffer.tensor is None else buffer.tensor) for buffer in recorder.read_backwards()
        }
        saved = [number for number, one in enumerate(given) if _identity(one) in read]
        parameters = [one for one in given if isinstance(one, Tensor)]
        settings = [
            (part, {key: value for key, value in vars(part).items() if isinstance(value, _PLAIN)})
            for part in self._module.modules()
            if not any(True for _ in part.children())
        ]
        return RecordedStep(forward, backward, placement, recording.outputs, grads, saved, parameters, owned, settings)


def _identity(given: int | Tensor) -> tuple[str, int]:
    """Return what tells the arguments, known by their numbers, and the parameters from one another."""
    if isinstance(given, int):
        return "argument", given
    return "memory", given.untyped_storage().data_ptr()


def _why_not(plan: Plan) -> str:
    """Return why the plan cannot be repeated without its Python; nothing where it can."""
    modules = plan.capture.modules
    for node in plan.capture.graph.nodes:
        target: Any = node.target
        if node.op.startswith("call") and is_in_place(node, modules) and _may_be_input(node, modules):
            return f"{node.name} changes an argument in place"
        if node.op == "call_module":
            module = modules[target]
            if isinstance(module, SharedNormalisation):
                return "its normalisations talk to other processes"
            if not type(module).__module__.startswith("torch.nn"):
                return f"{type(module).__name__} has code of its own"
            if has_hooks(module) or has_own_forward(module):
                return f"{target} has a hook"
        if isinstance(target, type) and issubclass(target, tuple):
            continue
        if node.op == "call_function" and str(getattr(target, "__module__", "")).partition(".")[0] not in _FUNCTIONS:
            return f"{target} is a function of its own"
    return ""


def _may_be_input(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Return whether the first input of ``node`` may share its memory with an argument of the module."""
    while node.all_input_nodes:
        node = node.all_input_nodes[0]
        if node.op == "call_module" and any(True for _ in modules[str(node.target)].parameters()):
            return False
    return node.op == "placeholder"


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
