"""Fold each BatchNorm into the convolution before it: less work, and one rounding less in bf16."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from yolox.inference.artifacts.structure import flatten

TOLERANCE = 1e-3


def fold_normalisations(model: nn.Module, sample: tuple[Tensor, ...]) -> nn.Module:
    """Return a copy of ``model`` without the BatchNorms that directly follow a convolution.

    Symbolic tracing, the usual way to find them, fails for most detectors. Here one run shows what follows what. Where
    the folded copy computes something else, or the outputs are not finite, an unchanged copy is returned.

    Args:
        model: In evaluation mode; left as it is.
        sample: Inputs for a run.
    """
    folded = copy.deepcopy(model)
    expected = _run(folded, sample)
    if not all(bool(values.isfinite().all()) for values in expected):
        return folded  # nothing can be compared
    _fold_(folded, sample)
    same = all(
        torch.allclose(one, two, TOLERANCE, TOLERANCE * _scale(two))
        for one, two in zip(_run(folded, sample), expected, strict=True)
    )
    return folded if same else copy.deepcopy(model)


def _run(model: nn.Module, sample: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return tuple(tensor.float() for tensor in flatten(model(*sample)))


def _scale(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def _fold_(model: nn.Module, sample: tuple[Tensor, ...]) -> None:
    sources: dict[int, tuple[nn.Module, Tensor]] = {}  # keeps the outputs alive, so that no id is used twice
    pairs: list[tuple[Any, Any]] = []
    uses: dict[nn.Module, int] = {}

    def leave(part: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        sources[id(output)] = (part, output)
        uses[part] = uses.get(part, 0) + 1

    def enter(part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        uses[part] = uses.get(part, 0) + 1
        if id(inputs[0]) in sources:
            pairs.append((sources[id(inputs[0])][0], part))

    hooks = [part.register_forward_hook(leave) for part in model.modules() if isinstance(part, nn.Conv2d)]
    hooks += [part.register_forward_pre_hook(enter) for part in model.modules() if type(part) is nn.BatchNorm2d]
    try:
        _run(model, sample)
    finally:
        for hook in hooks:
            hook.remove()
    replacements: dict[nn.Module, nn.Module] = {}
    for convolution, normalisation in pairs:
        if uses[convolution] == uses[normalisation] == 1:
            replacements[convolution] = torch.nn.utils.fuse_conv_bn_eval(convolution, normalisation)
            replacements[normalisation] = nn.Identity()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child in replacements:
                parent.add_module(name, replacements[child])
