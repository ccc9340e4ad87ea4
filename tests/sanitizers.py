"""Programs whose kernels run under the sanitizers of addresses and of undefined behaviour."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from yolox.kernels.build import compile_library, library_name
from yolox.kernels.library import SWITCH, host_variants
from yolox.kernels.variants import Variant

_SANITIZERS = (
    "-fsanitize=address,undefined",
    "-fno-sanitize=alignment",
    "-fno-sanitize-recover=undefined",
    "-O0",  # compiles in a third of the time of -O1
    "-g",
)
QUICK = ("avx2", "portable")
"""Variants that the quick tests take besides the best of the processor."""


def watched_runs(few: int, many: int) -> list[Any]:
    """Return variants and numbers of inputs: few on the quick tests' variants, and in a slow test many on each."""
    variants = host_variants()
    quick = [variant for variant in variants if variant is variants[0] or variant.name in QUICK]
    return [
        *(pytest.param(variant, few, id=f"{variant.name}-{few}") for variant in quick),
        *(pytest.param(variant, many, id=f"{variant.name}-{many}", marks=pytest.mark.slow) for variant in variants),
    ]


def run_watched(variant: Variant, cache: Path, script: Path, *arguments: str) -> str:
    """Run a script with kernels compiled under the sanitizers, once into a cache folder, and return what it prints."""
    library = cache / library_name(variant)
    if not library.exists():
        compile_library(variant, library, _SANITIZERS)
    libraries = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = {
        **os.environ,
        SWITCH: variant.name,
        "YOLOX_CACHE": str(cache),
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
