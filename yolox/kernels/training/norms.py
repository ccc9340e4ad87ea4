"""Normalisations over a batch with the activation after them, as layers and as the kernels read them."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

from torch import Tensor, nn

from yolox.kernels.training import bindings


class Activation(NamedTuple):
    """The activation that follows a normalisation.

    Attributes:
        silu: Whether it is SiLU; otherwise it is z from 0 to ``most``, ``below`` times z under 0, ``most`` beyond.
        below: Slope under 0: 0 for ReLU, 1 for the identity.
        most: Upper bound: 6 for ReLU6.
    """

    silu: bool
    below: float = 0.0
    most: float = math.inf


SILU, IDENTITY, RELU, RELU6 = Activation(True), Activation(False, 1.0), Activation(False), Activation(False, most=6.0)


class BatchNorm(NamedTuple):
    """A normalisation over a batch, and the activation after it.

    Attributes:
        weight: ``[C]``.
        bias: ``[C]``.
        moments: Float32 ``[2, C]`` without gaps: the batch's mean, and 1 / its deviation.
        activation: SiLU unless something else is said.
    """

    weight: Tensor
    bias: Tensor
    moments: Tensor
    activation: Activation = SILU

    def __call__(self) -> bindings.Norm:
        """Return what the kernels take."""
        mean = self.moments.data_ptr()
        rstd = mean + 4 * self.moments.shape[1]
        return bindings.Norm(self.weight.data_ptr(), self.bias.data_ptr(), mean, rstd, _structure(self.activation))


@cache
def _structure(activation: Activation) -> bindings.Activation:
    return bindings.Activation(*activation)


class NextNorm(NamedTuple):
    """A normalisation and activation that read what a convolution returned, as its gradients need them.

    Attributes:
        dz: The gradient after the normalisation and before its activation.
        sums: Its sums, as `gradient_sums` returns them.
        pixels: The number of pixels in those sums.
        value: What was normalised.
        norm: The normalisation.
    """

    dz: Tensor
    sums: Tensor
    pixels: float
    value: Tensor
    norm: BatchNorm


class NormAct(NamedTuple):
    """A batch normalisation layer in training and the activation after it.

    Attributes:
        layer: ``nn.BatchNorm2d``, or a `SharedNormalisation`.
        activation: What follows.
    """

    layer: nn.BatchNorm2d
    activation: Activation = SILU
