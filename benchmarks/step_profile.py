"""Where the time of a training step goes, in a handful of groups."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from unittest import mock

from torch.profiler import ProfilerActivity, profile, record_function

GROUPS = (
    ("loss and assignment", r"^detection_loss$"),
    ("optimizer and averages", r"^Optimizer\.|_foreach_lerp_|_fused_sgd"),
    (
        "convolution, BatchNorm and activation backward",
        r"(PointwiseBlock|DepthwiseBlock|StemBlock|Prediction|RepeatStep)Backward",
    ),
    ("convolution, BatchNorm and activation", r"^(_PointwiseBlock|_DepthwiseBlock|_StemBlock|_Prediction|RepeatStep)$"),
    ("convolution backward", r"[Cc]onvolution_?[Bb]ackward|DepthwiseBackward"),
    ("convolution", r"convolution|conv2d|mkldnn|^_Depthwise$"),
    (
        "BatchNorm and activation backward",
        r"(batch_norm|silu|leaky_relu|threshold|[Nn]orm\w*[Ss]i[lL]u\w*).*[Bb]ackward|(Activate|LeavePending)Backward",
    ),
    ("BatchNorm and activation", r"batch_norm|silu|leaky_relu|relu|[Nn]orm\w*[Ss]i[lL]u|^_(Activate|LeavePending)$"),
    ("pooling, upsampling, concatenation", r"max_pool|upsample|aten::cat\b|CatBackward|slice_backward|narrow"),
    ("fills", r"aten::(fill_|zero_|zeros)"),
    ("copies and casts", r"aten::(copy_|_to_copy|clone|contiguous)"),
    ("gradient sums", r"aten::add_?$|AccumulateGrad"),
)
_PATTERNS = tuple((name, re.compile(pattern)) for name, pattern in GROUPS)
OTHER = "other"


class StepProfile:
    """Context manager; afterwards ``groups`` holds the share of each group in the time of all operators."""

    def __init__(self) -> None:
        self.groups: dict[str, float] = {}
        self._stack = ExitStack()
        self._profile: Any = None

    def __enter__(self) -> StepProfile:
        for place in ("benchmarks.training_sides", "yolox.recipe.module"):
            self._stack.enter_context(mock.patch(f"{place}.detection_loss", _recorded_loss))
        self._profile = self._stack.enter_context(profile(activities=[ProfilerActivity.CPU]))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        totals: dict[str, float] = {}
        for event in self._profile.events():
            name = _group_of(event)
            totals[name] = totals.get(name, 0.0) + event.self_cpu_time_total
        whole = sum(totals.values()) or 1.0
        self.groups = {name: totals[name] / whole for name in sorted(totals, key=lambda key: -totals[key])}


def _recorded_loss(*args: Any, **kwargs: Any) -> Any:
    from yolox.losses.detection_loss import detection_loss

    with record_function("detection_loss"):
        return detection_loss(*args, **kwargs)


def _line(event: Any) -> Iterator[str]:
    """Yield the names of an operator and of those it runs inside, innermost first."""
    while event is not None:
        yield str(event.name)
        event = event.cpu_parent


def _group_of(event: Any) -> str:
    """Return the group of an operator: the loss if it runs inside it, else the first that fits, from the inside out."""
    names = [name for name in _line(event) if not name.startswith("autograd::engine")]
    if "detection_loss" in names:
        return GROUPS[0][0]
    for name in names:
        for group, pattern in _PATTERNS:
            if pattern.search(name):
                return group
    return OTHER
