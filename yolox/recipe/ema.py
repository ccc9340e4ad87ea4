"""Exponential moving average of the weights, the model that YOLOX evaluates and saves."""

from __future__ import annotations

import copy
import math
from typing import Generic, NamedTuple, TypeVar

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


class _Tensors(NamedTuple):
    """The floating-point tensors of averages and of the model they follow, and pairs of the others."""

    model: nn.Module
    averages: list[Tensor]
    currents: list[Tensor]
    copied: list[tuple[Tensor, Tensor]]


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
        self._tensors: _Tensors | None = None

    @torch.no_grad()
    def update_(self, model: nn.Module) -> None:
        """Move the averages one step towards ``model``, whose tensors stay the same objects as an optimizer's do."""
        self.updates += 1
        tensors = self._tensors
        if tensors is None or tensors.model is not model:
            tensors = self._pair(model)
        decay = ema_decay(self.updates, self.time_constant, self.limit)
        get_ema_multi_avg_fn(decay)(tensors.averages, tensors.currents, self.updates)  # type: ignore[no-untyped-call]
        for average, current in tensors.copied:
            average.copy_(current)

    def _pair(self, model: nn.Module) -> _Tensors:
        """Return which tensor follows which, and keep that where it will hold in the next step, too.

        Collecting the state dicts takes ten times as long as averaging. They have to be collected again where they are
        copies: IPEX packs weights, and makes plain ones for each state dict.
        """
        state = model.state_dict()
        own = {_place(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        found, live = _Tensors(model, [], [], []), True
        for key, average in self.model.state_dict(keep_vars=True).items():
            value = state[key].to(average.dtype)
            current = own.get(_place(value))
            live = live and current is not None
            if average.is_floating_point():
                found.averages.append(average)
                found.currents.append(value if current is None else current)
            else:
                found.copied.append((average, value if current is None else current))
        self._tensors = found if live else None
        return found

    def forget_pairs(self) -> None:
        """Look anew which tensor follows which: something may have put others in place of the model's tensors."""
        self._tensors = None

    def load_(self, weights: dict[str, Tensor], updates: int) -> None:
        """Continue from saved averages."""
        self.model.load_state_dict(weights)
        self.updates = updates


def _place(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
