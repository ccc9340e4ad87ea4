"""Files that describe no sound program are refused before a kernel sees them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mutations import survive
from programs import every_kind_of_step, every_kind_of_window, small_network

from yolox.kernels.build import compile_library, compiler, library_name
from yolox.kernels.int8.executable import Executable
from yolox.kernels.int8.storage import load_program, save_program
from yolox.kernels.library import SWITCH, host_variants

SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize=alignment", "-fno-sanitize-recover=undefined", "-O1", "-g")


@pytest.fixture(params=[small_network, every_kind_of_step, every_kind_of_window], ids=["network", "steps", "windows"])
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    (tmp_path / "changed").mkdir()
    save_program(request.param(), tmp_path)
    return tmp_path


def test_unchanged_programs_run(folder: Path) -> None:
    Executable(load_program(folder)).run((np.ones((1, 3, 20, 20), np.float32),))


def test_changed_programs_run_or_are_refused(folder: Path) -> None:
    ran, refused = survive(folder, folder / "changed", 0, 300)
    assert ran > 30, "harmless changes are no errors"
    assert refused > 100


@pytest.mark.slow
@pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize("variant", host_variants(), ids=lambda variant: variant.name)
def test_a_sanitizer_sees_no_access_out_of_bounds(variant: object, folder: Path, tmp_path: Path) -> None:
    chosen = next(one for one in host_variants() if one == variant)
    compile_library(chosen, tmp_path / "cache" / library_name(chosen), SANITIZERS)
    libraries = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = {
        **os.environ,
        SWITCH: chosen.name,
        "YOLOX_CACHE": str(tmp_path / "cache"),
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    command = [sys.executable, str(Path(__file__).with_name("mutations.py")), str(folder), "0", "10000"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    ran, refused = map(int, done.stdout.split())
    assert ran + refused == 10_000
