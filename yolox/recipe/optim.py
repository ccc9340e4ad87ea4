"""What is trained and how: frozen parts, and SGD with Nesterov momentum, weight decay on convolution weights alone."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from yolox.errors import UsageError, did_you_mean

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def freeze_(network: nn.Module, patterns: Sequence[str]) -> tuple[nn.Module, ...]:
    """Take the parameters of the named parts out of training and return these parts.

    The statistics of their normalisations only stay where the parts are kept in evaluation mode.

    Args:
        network: Its parameters are changed.
        patterns: Dotted names of its parts, such as ``backbone.backbone``; ``*`` and ``?`` stand for other letters.

    Raises:
        UsageError: When a pattern matches no part, or nothing is left to train.
    """
    parts = {name: part for name, part in network.named_modules() if name}
    frozen: list[nn.Module] = []
    for pattern in patterns:
        matching = [part for name, part in parts.items() if fnmatchcase(name, pattern)]
        if not matching:
            raise UsageError(f"freeze: the network has no part '{pattern}'.{did_you_mean(pattern, parts)}")
        frozen += matching
    for part in frozen:
        part.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UsageError(f"freeze: {', '.join(patterns)} leaves nothing to train. Name fewer parts.")
    return tuple(frozen)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters into BatchNorm weights, other weights (decayed) and biases, in official order."""
    norm_weights: list[nn.Parameter] = []
    weights: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if name == "bias":
                biases.append(parameter)
            elif isinstance(module, _NORMS):
                norm_weights.append(parameter)
            else:
                weights.append(parameter)
    groups = ((norm_weights, 0.0), (weights, weight_decay), (biases, 0.0))
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]


def build_optimizer(
    model: nn.Module, learning_rate: float, momentum: float, weight_decay: float, *, fused: bool = True
) -> torch.optim.SGD:
    """Return SGD over ``model``.

    Args:
        model: Its trainable parameters are optimised.
        learning_rate: The highest rate of the schedule.
        momentum: Nesterov momentum; without momentum the steps are plain.
        weight_decay: Weight decay of convolution weights.
        fused: Update all parameters in one pass over memory. A gradient scaler (precision 16) cannot unscale gradients
            before the step of a fused optimizer, so they could be neither clipped nor checked.
    """
    groups = parameter_groups(model, weight_decay)
    return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, nesterov=momentum > 0, fused=fused)
