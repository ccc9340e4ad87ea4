"""The training kernels under the sanitizers of addresses and of undefined behaviour."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from random_networks import train_one

from yolox.kernels.build import compile_library, compiler, library_name
from yolox.kernels.library import SWITCH, host_variants, kernels

SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize=alignment", "-fno-sanitize-recover=undefined", "-O1", "-g")

NETWORKS = 1000


def test_random_networks_train() -> None:
    if kernels() is None:
        pytest.skip("no C++ compiler, or YOLOX_KERNELS=0")
    assert sum(train_one(seed) for seed in range(20)) > 40, "most layers have kernels"


@pytest.mark.slow
@pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize("variant", host_variants(), ids=lambda variant: variant.name)
def test_a_sanitizer_sees_no_access_out_of_bounds(variant: object, tmp_path: Path) -> None:
    """Networks of all sizes: every entry point, with the pointers and sizes that Python gives it."""
    chosen = next(one for one in host_variants() if one == variant)
    compile_library(chosen, tmp_path / library_name(chosen), SANITIZERS)
    libraries = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = {
        **os.environ,
        SWITCH: chosen.name,
        "YOLOX_CACHE": str(tmp_path),
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    command = [sys.executable, str(Path(__file__).with_name("random_networks.py")), "0", str(NETWORKS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    networks, layers = map(int, done.stdout.split())
    assert networks == NETWORKS
    assert layers > 2 * NETWORKS
    sys.stdout.write(f"{chosen.name}: {layers} layers of {networks} networks\n")
