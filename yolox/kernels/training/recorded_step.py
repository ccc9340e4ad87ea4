"""A step as one node of autograd: while it is recorded, and when it is repeated from its recording."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from yolox.kernels.training.buffers import Placement
from yolox.kernels.training.capture import tensors_in
from yolox.kernels.training.eligibility import keeps_graph, own_tensors
from yolox.kernels.training.plan import Plan
from yolox.kernels.training.program import Program, Run
from yolox.kernels.training.recording import Recorder
from yolox.kernels.training.step_memory import BLOCKS

_TENSOR = object()


class Owned(NamedTuple):
    """A parameter or buffer as it was recorded."""

    owner: Mapping[str, Tensor | None]
    name: str
    tensor: Tensor
    address: int
    wants_gradient: bool

    @classmethod
    def all_of(cls, module: nn.Module) -> list[Owned]:
        """Return all parameters and buffers of a module as they are."""
        owners = [owner for part in module.modules() for owner in own_tensors(part)]
        pairs = [(owner, name, x) for owner in owners for name, x in owner.items() if x is not None]
        return [cls(owner, name, x, x.data_ptr(), x.requires_grad) for owner, name, x in pairs]

    def is_same(self) -> bool:
        """Return whether it is still there, where it was."""
        owner, name, tensor, address, wants_gradient = self
        return owner.get(name) is tensor and tensor.data_ptr() == address and tensor.requires_grad == wants_gradient


class RecordedStep(NamedTuple):
    """A recorded step and what it relies on.

    Attributes:
        forward: The forward pass.
        backward: The backward pass.
        placement: Where their buffers lie.
        outputs: What the forward pass returns, with a placeholder for each tensor.
        grads: Shape, strides and type of the gradients that it was given; None for outputs without one.
        saved: Numbers of the tensors whose values the backward pass reads, among the arguments and parameters.
        parameters: Those that want a gradient.
        owned: Parameters and buffers.
        settings: Layers and their plain attributes.
    """

    forward: Program
    backward: Program
    placement: Placement
    outputs: list[Any]
    grads: list[Tensor | None]
    saved: list[int]
    parameters: list[Tensor]
    owned: list[Owned]
    settings: list[tuple[nn.Module, dict[str, Any]]]

    def is_current(self) -> bool:
        """Return whether the module is as it was recorded."""
        return all(one.is_same() for one in self.owned) and all(
            values.items() <= vars(module).items() for module, values in self.settings
        )


@dataclass(eq=False)
class Recording:
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


class RecordStep(torch.autograd.Function):
    """Runs a plan and records it: forwards, and backwards the first time."""

    @staticmethod
    def forward(ctx: Any, recording: Recording, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the plan on the first ``count`` tensors; the others are parameters."""
        inputs = [x.detach().requires_grad_(x.requires_grad) for x in tensors[:count]]
        recorder = recording.recorder
        recorder.add_inputs(inputs)
        with recorder, torch.enable_grad():
            values = recording.plan.compute(inputs)
        outputs = list(tensors_in(values))
        recording.outputs = filled(values, iter([_TENSOR] * len(outputs)))
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
        """Run autograd over the plan."""
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
            outputs, given = zip(*pairs, strict=True) if pairs else ((), ())
            return torch.autograd.grad(outputs, wanted, given, retain_graph=True, allow_unused=True)

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


class RepeatStep(torch.autograd.Function):
    """Runs a recorded step."""

    @staticmethod
    def forward(ctx: Any, step: RecordedStep, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the forward pass on the first ``count`` tensors; the others are parameters."""
        run = Run(BLOCKS.take(step.placement.size))
        run.inputs.append(tensors[:count])
        outputs = step.forward.run(run)
        ctx.save_for_backward(*(tensors[number] for number in step.saved))
        run.inputs.clear()
        ctx.step, ctx.run, ctx.count = step, run, count
        ctx.wanted = [x.requires_grad for x in tensors]
        ctx.set_materialize_grads(False)
        pairs = zip(outputs, step.grads, strict=True)
        ctx.mark_non_differentiable(*(output for output, grad in pairs if output is not None and grad is None))
        return tuple(outputs)  # type: ignore[arg-type]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Run the backward pass."""
        saved = ctx.saved_tensors  # raises where the graph has been freed
        step, run = ctx.step, ctx.run
        if run is None:
            raise RuntimeError("Trying to backward through the graph a second time; expected retain_graph=True before")
        if keeps_graph():
            kept, run = run, Run(run.step.clone())
            run.results.update(kept.results)
        else:
            ctx.run = None
        inputs: list[Tensor | None] = [None] * ctx.count
        for number, tensor in zip(step.saved, saved, strict=True):
            if number < ctx.count:
                inputs[number] = tensor
        given = [_like(grad, known) for grad, known in zip(grads, step.grads, strict=True) if known is not None]
        run.inputs[:] = [inputs, given]
        found = iter(step.backward.run(run))
        BLOCKS.give(run.step)
        return None, None, *[next(found) if wanted else None for wanted in ctx.wanted]


def filled(value: Any, tensors: Iterator[Any]) -> Any:
    """Return nested tuples, lists and dictionaries with other tensors, or other placeholders, in them."""
    if isinstance(value, Tensor) or value is _TENSOR:
        return next(tensors)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(filled(item, tensors) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(filled(item, tensors) for item in value)
    if isinstance(value, dict):
        return {key: filled(item, tensors) for key, item in value.items()}
    return value


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
