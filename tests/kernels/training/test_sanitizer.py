"""The training kernels under the sanitizers of addresses and of undefined behaviour."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from random_networks import train_one
from sanitizers import run_watched

from yolox.kernels.build import compiler
from yolox.kernels.library import host_variants, kernels
from yolox.kernels.variants import Variant

NETWORKS = 1000


def test_random_networks_train() -> None:
    if kernels() is None:
        pytest.skip("no C++ compiler, or YOLOX_KERNELS=0")
    assert sum(train_one(seed) for seed in range(20)) > 40, "most layers have kernels"


@pytest.mark.slow
@pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize("variant", host_variants(), ids=lambda variant: variant.name)
def test_a_sanitizer_sees_no_access_out_of_bounds(variant: Variant, tmp_path: Path) -> None:
    """Networks of all sizes: every entry point, with the pointers and sizes that Python gives it."""
    script = Path(__file__).with_name("random_networks.py")
    networks, layers = map(int, run_watched(variant, tmp_path, script, "0", str(NETWORKS)).split())
    assert networks == NETWORKS
    assert layers > 2 * NETWORKS
    sys.stdout.write(f"{variant.name}: {layers} layers of {networks} networks\n")
