"""The training kernels under the sanitizers of addresses and of undefined behaviour."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from random_networks import train_one
from sanitizers import run_watched, watched_runs

from yolox.kernels.library import kernels
from yolox.kernels.variants import Variant


def test_random_networks_train() -> None:
    if kernels() is None:
        pytest.skip("no C++ compiler, or YOLOX_KERNELS=0")
    assert sum(train_one(seed) for seed in range(20)) > 40, "most layers have kernels"


@pytest.mark.parametrize(("variant", "amount"), watched_runs(10, 1000))
def test_a_sanitizer_sees_no_access_out_of_bounds(variant: Variant, amount: int, sanitized: Path) -> None:
    """Networks of all sizes: every entry point, with the pointers and sizes that Python gives it."""
    script = Path(__file__).with_name("random_networks.py")
    networks, layers = map(int, run_watched(variant, sanitized, script, "0", str(amount)).split())
    assert networks == amount
    assert layers > 2 * amount
    sys.stdout.write(f"{variant.name}: {layers} layers of {networks} networks\n")
