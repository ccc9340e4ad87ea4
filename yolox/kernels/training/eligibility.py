"""Which layers the kernels can stand in for in training, and the reason where they cannot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.overrides import has_torch_function_unary

from yolox.kernels.training.bindings import TYPES
from yolox.kernels.training.ops import CHANNEL_BLOCK, MOST_CHANNELS
from yolox.kernels.training.sync import SharedNormalisation


def has_hooks(module: nn.Module) -> bool:
    """Return whether a hook wants to see the module being called."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def has_gradient_hooks(x: Tensor) -> bool:
    """Return whether a hook wants to see the gradient of ``x`` on its way."""
    return bool(x._backward_hooks)


def keeps_graph() -> bool:
    """Return whether the backward pass that runs now keeps its graph, so that it may run again."""
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())  # type: ignore[attr-defined]


def own_tensors(module: nn.Module) -> tuple[Mapping[str, Tensor | None], ...]:
    """Return where a module keeps its own parameters and buffers; as attributes they are found ten times slower."""
    return module._parameters, module._buffers


def has_own_forward(module: nn.Module) -> bool:
    """Return whether this object was given a forward method that its class does not have."""
    forward = vars(module).get("forward")
    if forward is None or isinstance(getattr(forward, "__self__", None), StandIn):
        return False
    return getattr(forward, "__func__", None) is not type(module).forward


class ModuleState(NamedTuple):
    """A module as it was when it was looked at.

    Attributes:
        module: The module.
        kind: Its class.
        training: Whether it was in training.
        watched: Whether it had hooks.
        forward: The forward method of its own, or the stand-in.
        children: The modules in it, by name.
    """

    module: nn.Module
    kind: type[nn.Module]
    training: bool
    watched: bool
    forward: Any
    children: dict[str, nn.Module | None]

    @classmethod
    def all_in(cls, module: nn.Module) -> list[ModuleState]:
        """Return the states of a module and of all modules in it."""
        return [
            cls(x, type(x), x.training, has_hooks(x), vars(x).get("forward"), dict(x._modules))
            for x in module.modules()
        ]

    def is_same(self) -> bool:
        """Return whether the module is as it was."""
        module, kind, training, watched, forward, children = self
        return (
            type(module) is kind
            and module.training is training
            and vars(module).get("forward") == forward
            and module._modules == children
            and has_hooks(module) is watched
        )


class StandIn:
    """Base of what holds the method that `accelerate` puts in the place of a forward method."""


def has_global_hooks() -> bool:
    """Return whether a hook wants to see every module being called."""
    return bool(_has_any_global_hook())  # type: ignore[no-untyped-call]


def is_plain_tensor(x: Tensor) -> bool:
    """Return whether ``x`` is an ordinary tensor on the CPU that no mode or subclass watches."""
    return type(x) in {Tensor, nn.Parameter} and x.device.type == "cpu" and not has_torch_function_unary(x)


def supports_tensor(x: Tensor) -> bool:
    """Return whether the kernels can read ``x``: feature maps ``[B, C, H, W]`` in float32 or bfloat16, not empty."""
    return x.ndim == 4 and x.dtype in TYPES and x.numel() > 0 and x.device.type == "cpu"


def is_depthwise(conv: nn.Conv2d) -> bool:
    """Return whether there is one kernel a channel."""
    return conv.groups == conv.in_channels == conv.out_channels > 1


def why_not_norm(norm: nn.Module) -> str:
    """Return why the kernels cannot do this normalisation; nothing where they can."""
    if type(norm) is not nn.BatchNorm2d and not isinstance(norm, SharedNormalisation):
        return f"{type(norm).__name__} is not BatchNorm2d"
    if has_hooks(norm):
        return "the normalisation has a hook"
    if not norm.training:
        return "the normalisation is in evaluation mode"
    if not (norm.affine and norm.track_running_stats) or norm.momentum is None:
        return "the normalisation has no weights, no running statistics or no momentum"
    assert norm.num_batches_tracked is not None
    types = norm.weight.dtype, norm.num_batches_tracked.dtype
    if types != (torch.float32, torch.int64):
        return f"the normalisation has weights in {types[0]} and counts batches in {types[1]}"
    return ""


def why_not_conv(conv: nn.Module) -> str:
    """Return why nothing can stand in for this convolution; nothing where something can."""
    if type(conv) is not nn.Conv2d:
        return f"{type(conv).__name__} is not Conv2d"
    if has_hooks(conv):
        return "the convolution has a hook"
    if conv.weight.dtype != torch.float32:
        return f"the convolution's weights are {conv.weight.dtype}"
    return ""


def why_not_pointwise(conv: nn.Conv2d) -> str:
    """Return why the kernel for 1x1 convolutions cannot compute this one; nothing where it can."""
    reason = why_not_conv(conv) or _why_not_one_by_one(conv)
    if reason:
        return reason
    if conv.bias is not None:
        return "1x1 convolution with a bias before a normalisation"
    if conv.in_channels % CHANNEL_BLOCK or conv.out_channels % CHANNEL_BLOCK:
        return f"{conv.in_channels} and {conv.out_channels} channels are not both multiples of {CHANNEL_BLOCK}"
    if conv.in_channels + conv.out_channels > MOST_CHANNELS:
        return f"{conv.in_channels} and {conv.out_channels} channels are more than {MOST_CHANNELS} together"
    return ""


def why_not_prediction(conv: nn.Conv2d) -> str:
    """Return why the kernel for 1x1 convolutions with a bias cannot compute this one; nothing where it can."""
    reason = why_not_conv(conv) or _why_not_one_by_one(conv)
    if reason:
        return reason
    if conv.bias is None:
        return "1x1 convolution without a bias or normalisation"
    if conv.in_channels % CHANNEL_BLOCK:
        return f"{conv.in_channels} channels are no multiple of {CHANNEL_BLOCK}"
    return ""


def why_not_depthwise(conv: nn.Conv2d) -> str:
    """Return why the kernel for depthwise convolutions cannot compute this one; nothing where it can."""
    reason = why_not_conv(conv)
    if reason:
        return reason
    usual = conv.kernel_size == (3, 3) and conv.padding == (1, 1) and conv.stride in {(1, 1), (2, 2)}
    if not usual or conv.dilation != (1, 1) or conv.padding_mode != "zeros":
        return "depthwise, but not 3x3 with padding 1 and stride 1 or 2"
    if conv.bias is not None:
        return "depthwise with a bias"
    if conv.in_channels % CHANNEL_BLOCK:
        return f"{conv.in_channels} channels are no multiple of {CHANNEL_BLOCK}"
    return ""


def _why_not_one_by_one(conv: nn.Conv2d) -> str:
    side, stride = conv.kernel_size, conv.stride
    if side != (1, 1):
        return f"{side[0]}x{side[1]} convolution" + (f" in {conv.groups} groups" if conv.groups > 1 else "")
    if stride != (1, 1) or conv.padding not in {(0, 0), "valid", "same"} or conv.groups != 1:
        return "1x1 convolution with a stride, padding or groups"
    return ""
