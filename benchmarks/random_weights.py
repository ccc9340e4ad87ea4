"""What makes a network with random weights as fast, or slow, as one with trained weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def set_statistics_(module: nn.Module, images: Tensor) -> None:
    """Give normalisations the mean and variance of some images, and switch to evaluation.

    With those that they are created with, values shrink from layer to layer until no 16-bit table of an activation has
    scales that small, and an 8-bit engine computes by other kernels than those of a trained network.

    Args:
        module: A network with random weights.
        images: Float32, a batch of the network's inputs.
    """
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None  # the mean of all batches
    with torch.no_grad():
        module.train()(images)
    module.eval()
