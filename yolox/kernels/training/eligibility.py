"""Which layers the kernels can stand in for, and the reason where they cannot."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.module import _has_any_global_hook

__all__ = ["has_hooks", "has_own_forward"]


def has_hooks(module: nn.Module) -> bool:
    """Return whether a hook wants to see the module being called."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
