"""The one way from a module to a prepared model: its back end converts it, and a manifest says what it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from yolox.inference.artifacts.manifest import Manifest
from yolox.inference.artifacts.model import AcceleratedModel
from yolox.inference.artifacts.structure import unflatten
from yolox.inference.backends import get_backend
from yolox.inference.backends.base import Arrays, Method, PrepareContext
from yolox.inference.backends.torch_runner import FlatModule

if TYPE_CHECKING:
    from torch import nn

    from yolox.inference.search.scorer import Scorer


@dataclass(frozen=True)
class OutputFacts:
    """What only running the original tells.

    Args:
        structure: How the flat outputs fold into what it returns; see ``artifacts.structure``.
        count: How many tensors that is.
    """

    structure: Any = None
    count: int = 0


def prepare_model(
    module: nn.Module,
    method: Method,
    context: PrepareContext,
    outputs: OutputFacts,
    metadata: Mapping[str, Any] = MappingProxyType({}),
) -> AcceleratedModel:
    """Return ``module`` prepared for ``method``.

    Args:
        module: In evaluation mode, the caller's own copy.
        method: The method.
        context: Data, threads and limits.
        outputs: What the module returns.
        metadata: The user's values for the artifact.
    """
    runner = get_backend(method.backend).prepare(FlatModule(module).eval(), method, context)
    manifest = Manifest(
        method=method.name,
        backend=method.backend,
        precision=method.precision.value,
        options=dict(method.options),
        settings=runner.settings,
        input_shapes=tuple(tuple(array.shape) for array in context.sample),
        input_dtypes=tuple(str(array.dtype) for array in context.sample),
        num_outputs=outputs.count,
        dynamic_batch=context.dynamic_batch,
        int8_share=runner.int8_share,
        structure=outputs.structure,
        metadata=dict(metadata),
    )
    # the artifacts of other back ends stand alone
    return AcceleratedModel(runner, manifest, module=module if method.backend == "eager" else None)


def accuracy_of(scorer: Scorer | None, structure: Any) -> Callable[[Callable[..., Arrays]], float] | None:
    """Return a function from a runnable to its accuracy, larger is better; ``None`` without a metric."""
    if scorer is None:
        return None

    def accuracy(predict: Callable[..., Arrays]) -> float:
        return scorer.signed(scorer.score(lambda *inputs: unflatten(structure, predict(*inputs))))

    return accuracy
