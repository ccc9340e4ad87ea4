"""Parts of a network that training leaves as they are."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from yolox.errors import UsageError, did_you_mean


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
