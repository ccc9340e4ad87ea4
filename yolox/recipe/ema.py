"""Exponential moving average of the weights, the model that YOLOX evaluates and saves."""

from __future__ import annotations

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def ema_decay(updates: int, time_constant: float = 2000.0, limit: float = 0.9998) -> float:
    """Return the decay at the given update, 1-based: small at first, so that early weights are soon forgotten.

    Official YOLOX has a time constant of 2000 updates: a run that ends after as many has a decay of 0.63 and averages
    over its last three updates, next to nothing. With 500 it averages over its last 60.
    """
    return limit * (1.0 - math.exp(-updates / time_constant))


Model = TypeVar("Model", bound=nn.Module)


class ModelEma(Generic[Model]):
    """A copy of a model whose floating-point tensors follow the original slowly; other tensors are copied.

    It is no ``nn.Module``, so that a module may hold it without training, saving or counting it twice.

    Args:
        model: The model to follow.
        time_constant: See `ema_decay`.
        limit: The highest decay.
    """

    def __init__(self, model: Model, time_constant: float = 2000.0, limit: float = 0.9998) -> None:
        self.updates = 0
        self.time_constant = time_constant
        self.limit = limit
        self.model: Model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update_(self, model: nn.Module) -> None:
        """Move the averages one step towards ``model``."""
        self.updates += 1
        averages: list[Tensor] = []
        currents: list[Tensor] = []
        state = model.state_dict()  # not the tensors themselves: IPEX keeps packed ones, its state dict does not
        for key, average in self.model.state_dict().items():
            if average.is_floating_point():
                averages.append(average)
                currents.append(state[key].to(average.dtype))
            else:
                average.copy_(state[key])
        average = get_ema_multi_avg_fn(  # type: ignore[no-untyped-call]
            ema_decay(self.updates, self.time_constant, self.limit)
        )
        average(averages, currents, self.updates)

    def load_(self, weights: dict[str, Tensor], updates: int) -> None:
        """Continue from saved averages."""
        self.model.load_state_dict(weights)
        self.updates = updates
