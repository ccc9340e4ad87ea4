"""How threads that compute wait for each other: awake for a moment, then asleep."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping

_COUNT = "GOMP_SPINCOUNT"
_CHOICES = (_COUNT, "OMP_WAIT_POLICY")
_TURNS = "20000"  # some 50 microseconds; 2000 costs a tenth of the speed of training, the default is 300,000


def shorten_waits(environment: MutableMapping[str, str] | None = None) -> bool:
    """Have waiting threads of GNU OpenMP fall asleep soon, so that loaders compute while they wait.

    With the default they keep their core for milliseconds; measured by ``benchmarks.data_pipeline``, training from
    files is 7 % faster this way and training from memory as fast. It acts only before PyTorch is imported, and leaves a
    user's own setting alone.

    Args:
        environment: Variables to change; None for those of this process.

    Returns:
        Whether it was set.
    """
    environment = os.environ if environment is None else environment
    if "torch" in sys.modules or any(name in environment for name in _CHOICES):
        return False
    environment[_COUNT] = _TURNS
    return True
