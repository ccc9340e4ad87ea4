"""The wrapper that gives every back end the same kind of module."""

from __future__ import annotations

from torch import Tensor, nn

from yolox.inference.artifacts.structure import flatten


class FlatModule(nn.Module):
    """Calls ``model`` with positional tensors and returns the tensors of its output as a flat tuple.

    Args:
        model: Any module.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the model."""
        return flatten(self.model(*inputs))
