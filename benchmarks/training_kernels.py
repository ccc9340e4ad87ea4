"""Times each call of a training kernel in steps of bf16 training, and counts the products and bytes that it needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch

from benchmarks.training_sides import experiment_of, random_batch
from yolox.cpu.allocator import keep_freed_memory
from yolox.kernels.training import bindings
from yolox.kernels.training.acceleration import accelerate
from yolox.losses.detection_loss import detection_loss
from yolox.models.detector import build_detector

BYTES = 2
"""Of a bf16 number."""
STEM_TAPS = 6 * 6 * 3


class KernelCall(NamedTuple):
    """One call of a kernel.

    Attributes:
        kind: What it computes, in which direction and on how many pixels.
        products: Multiplications and additions that it needs.
        moved: Bytes of the feature maps, images and gradients that it reads and writes, each once.
        seconds: Median time over the steps.
    """

    kind: str
    products: float
    moved: float
    seconds: float


def timed_step(model: str, size: int, batch_size: int, repeats: int) -> tuple[list[KernelCall], float]:
    """Return the kernel calls of a training step without the trainer, and the median seconds of a whole step.

    Args:
        model: Name of the experiment.
        size: Side of the images.
        batch_size: Number of images.
        repeats: Number of steps with, and of steps without a clock around each call.
    """
    whole, planned = (_training_step(model, size, batch_size, repeat=repeat) for repeat in (True, False))
    for step in (whole, planned):
        for _ in range(3):
            step()
    wholes = [_seconds(whole) for _ in range(repeats)]
    steps: list[list[KernelCall]] = []
    for _ in range(repeats):
        with _recorded(
            batch_size
        ) as calls:  # of a step that is not repeated: a program calls the same kernels by itself
            planned()
        steps.append(calls)
    medians = np.median([[call.seconds for call in calls] for calls in steps], axis=0).tolist()
    found = [call._replace(seconds=seconds) for call, seconds in zip(steps[0], medians, strict=True)]
    return found, float(np.median(wholes))


def _training_step(model: str, size: int, batch_size: int, *, repeat: bool) -> Callable[[], None]:
    keep_freed_memory()
    torch.manual_seed(0)
    experiment = experiment_of({"model": model, "size": size})
    detector = accelerate(build_detector(experiment.model).train(), repeat=repeat)
    detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-4, momentum=0.9, nesterov=True, fused=True)
    batch = random_batch(batch_size, size)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            predictions = detector(batch.images)
        detection_loss(predictions, batch.targets, use_l1=False).total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@contextmanager
def _recorded(batch_size: int) -> Iterator[list[KernelCall]]:
    calls: list[KernelCall] = []
    original = bindings.call

    def call(name: str, dtype: torch.dtype | None, *arguments: Any) -> None:
        seconds = _seconds(lambda: original(name, dtype, *arguments))
        calls.append(KernelCall(*_work(name, arguments, batch_size), seconds))

    with mock.patch.object(bindings, "call", call):
        yield calls


def _work(name: str, arguments: tuple[Any, ...], batch_size: int) -> tuple[str, float, float]:
    """Return kind, products and bytes of a call: backwards twice as many as forwards, but for the stem's products."""
    kernel, _, way = name.rpartition("_")
    passes = 2 if way == "backward" else 1
    given = {type(value): value for value in arguments}
    if kernel == "pointwise":
        shape = given[bindings.Shape]
        side = round((shape.pixels / batch_size) ** 0.5)
        moved = passes * BYTES * shape.pixels * (shape.inputs + shape.outputs)
        kind = f"1x1 convolution {way}, {side}x{side} pixels"
        return kind, float(passes * shape.pixels * shape.inputs * shape.outputs), float(moved)
    if kernel == "depthwise":
        shape = given[bindings.Images]
        height, width = ((length - 1) // shape.stride + 1 for length in (shape.height, shape.width))
        outputs = shape.count * shape.channels * height * width
        moved = passes * BYTES * (outputs + shape.count * shape.channels * shape.height * shape.width)
        kind = f"depthwise 3x3 convolution {way}, {height}x{width} pixels"
        return kind, float(passes * 9 * outputs), float(moved)
    if kernel == "stem":
        shape = given[bindings.StemInput]
        pixels = shape.count * shape.height * shape.width
        outputs = pixels // 4 * shape.outputs
        moved = pixels * 3 * (4 if shape.floats else 1) + passes * BYTES * outputs
        return f"6x6 convolution {way}", float(STEM_TAPS * outputs), float(moved)
    if kernel == "max_pool":
        window = given[bindings.Window]
        pixels = window.count * window.channels * window.height * window.width
        return f"maxima over windows {way}", 0.0, float((2 * BYTES + 1) * pixels)
    return "normalisation and activation of their own, moments", 0.0, _bytes_of_normalisation(name, given, arguments)


def _bytes_of_normalisation(name: str, given: dict[type, Any], arguments: tuple[Any, ...]) -> float:
    if name == "norm_act_gradient_sums":
        gradient = given[bindings.Gradient]
        return float(3 * BYTES * gradient.pixels * gradient.channels)
    tensors = {"norm_act_statistics": 1, "norm_act_forward": 2, "norm_act_backward": 3}
    sizes = [value for value in arguments if isinstance(value, int)][:2]
    return float(tensors[name] * BYTES * sizes[0] * sizes[1]) if name in tensors else 0.0
