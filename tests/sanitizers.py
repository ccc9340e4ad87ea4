"""Programs whose kernels run under the sanitizers of addresses and of undefined behaviour."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from yolox.kernels.build import compile_library, library_name
from yolox.kernels.library import SWITCH
from yolox.kernels.variants import Variant

_SANITIZERS = (
    "-fsanitize=address,undefined",
    "-fno-sanitize=alignment",
    "-fno-sanitize-recover=undefined",
    "-O1",
    "-g",
)


def run_watched(variant: Variant, cache: Path, script: Path, *arguments: str) -> str:
    """Run a script with kernels compiled under the sanitizers into a cache folder, and return what it prints."""
    compile_library(variant, cache / library_name(variant), _SANITIZERS)
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
