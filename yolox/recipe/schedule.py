"""What a run does when: its phases and sizes, and rates as factors of the highest (official ``lr_scheduler.py``)."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from yolox.config import STRIDE, RecipeConfig
from yolox.structures import Size, Targets

STEPS_PER_SIZE = 10


def highest_learning_rate(recipe: RecipeConfig, batch_size: int) -> float:
    """Return the rate after warm-up: that of an image times the images of a step.

    Args:
        recipe: Gives the rate of an image, and how many batches make one step.
        batch_size: Images of a batch over all processes.
    """
    return recipe.basic_lr_per_img * batch_size * recipe.accumulate


def steps_of_epoch(num_batches: int, recipe: RecipeConfig) -> int:
    """Return the optimizer's steps in an epoch of ``num_batches`` batches; the last step may have fewer of them."""
    return -(-num_batches // recipe.accumulate)


def build_schedule(recipe: RecipeConfig, batch_size: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Return the function that maps the number of finished steps to a factor of the highest rate.

    The next step runs at that rate; hence the first step of a warm-up from zero changes nothing, as in official YOLOX.
    """
    total = recipe.max_epoch * steps_per_epoch
    warmup = recipe.warmup_epochs * steps_per_epoch
    final = min(recipe.no_aug_epochs, recipe.max_epoch) * steps_per_epoch
    start = recipe.warmup_lr / highest_learning_rate(recipe, batch_size)

    def cosine(step: int, begin: float, end: int, lowest: float) -> float:
        share = min(max(step - begin, 0) / max(end - begin, 1), 1.0)
        return lowest + 0.5 * (1.0 - lowest) * (1.0 + math.cos(math.pi * share))

    def yoloxwarmcos(step: int) -> float:
        if step <= warmup and warmup > 0:
            return start + (1.0 - start) * (step / warmup) ** 2
        if step >= total - final:
            return recipe.min_lr_ratio
        return cosine(step, warmup, total - final, recipe.min_lr_ratio)

    def warmcos(step: int) -> float:
        if step <= warmup and warmup > 0:
            return start + (1.0 - start) * step / warmup
        return cosine(step, warmup, total, 0.0)

    def multistep(step: int) -> float:
        passed = bisect_right([epoch * steps_per_epoch for epoch in recipe.milestones], step)
        return float(recipe.gamma**passed)

    schedules: dict[str, Callable[[int], float]] = {
        "yoloxwarmcos": yoloxwarmcos,
        "warmcos": warmcos,
        "cos": lambda step: cosine(step, 0, total, 0.0),
        "multistep": multistep,
    }
    return schedules[recipe.scheduler]


def final_phase_epoch(recipe: RecipeConfig) -> int:
    """Return the 0-based epoch that starts the final phase, the last ``no_aug_epochs`` epochs.

    Official YOLOX starts it one epoch earlier, while its schedule reaches the lowest rate only at this epoch; see
    docs/decisions/0012-final-phase.md.
    """
    return max(0, recipe.max_epoch - recipe.no_aug_epochs)


def size_of_step(step: int, seed: int, input_size: Size, size_range: tuple[int, int]) -> Size:
    """Return the input size of a step: ``input_size`` at first, then a new random one every ten steps.

    It depends on the arguments alone, so that all processes and a resumed run agree without talking.

    Args:
        step: 0-based number of the step in the run.
        seed: Seed of the run.
        input_size: The size that gives the aspect ratio.
        size_range: Smallest and largest height in units of 32 pixels, both included.
    """
    block = step // STEPS_PER_SIZE
    if block == 0:
        return input_size
    units = int(np.random.default_rng([seed, block]).integers(size_range[0], size_range[1] + 1))
    return _size_of_height(units, input_size)


def trained_sizes(input_size: Size, size_range: tuple[int, int]) -> tuple[Size, Size]:
    """Return the smallest and the largest size that `size_of_step` gives."""
    sizes = sorted({input_size, *(_size_of_height(units, input_size) for units in size_range)})
    return sizes[0], sizes[-1]


def _size_of_height(units: int, input_size: Size) -> Size:
    """Return the size with a height of ``units`` and the shape of ``input_size``; no edge is less than one unit."""
    return Size(STRIDE * units, STRIDE * max(1, int(units * input_size.width / input_size.height)))


def resize_batch(images: Tensor, targets: Targets, size: Size) -> tuple[Tensor, Targets]:
    """Return images and boxes scaled to ``size``; the inputs stay as they are.

    Args:
        images: ``[B, 3, H, W]`` float or uint8; float where they are resized.
        targets: Boxes in pixels of ``images``.
        size: The wanted size.
    """
    height, width = images.shape[-2:]
    if (height, width) == tuple(size):
        return images, targets
    floats = images if images.is_floating_point() else images.float()
    resized = F.interpolate(floats, size=tuple(size), mode="bilinear", align_corners=False)
    scale_x, scale_y = size.width / width, size.height / height
    factors = torch.tensor([scale_x, scale_y, scale_x, scale_y], device=images.device)
    return resized, targets._replace(boxes_cxcywh=targets.boxes_cxcywh * factors)
