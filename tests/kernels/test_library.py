"""Which library of kernels is opened, where it comes from, and whose threads it uses; each case in a fresh process."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from yolox.kernels.build import built_library, compile_library, compiler, library_name
from yolox.kernels.library import SWITCH, host_variants
from yolox.kernels.variants import VARIANTS, machine_variants, supported_variants

needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
OPEN = "import logging; logging.basicConfig(); from yolox.kernels.library import kernels, required_kernels; "
ZEN2 = {"avx2", "fma", "f16c", "bmi1", "bmi2", "movbe"}
SKYLAKE = ZEN2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512cd"}
SAPPHIRE = SKYLAKE | {"avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8"}


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name != SWITCH} | environment
    return subprocess.run(
        [sys.executable, "-c", OPEN + code], env=variables, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("flags", "fastest"),
    [
        (set[str](), "portable"),
        ({"asimd", "i8mm"}, "portable"),
        ({"asimd", "asimddp"}, "neon-dotprod"),
        ({"asimd", "asimddp", "i8mm", "bf16"}, "neon-i8mm"),
        (ZEN2, "avx2"),
        (ZEN2 | {"avx_vnni"}, "avx-vnni"),
        (SKYLAKE, "avx512"),
        (SKYLAKE | {"avx512_vnni"}, "avx512-vnni"),
        (SAPPHIRE - {"amx_int8"}, "avx512-bf16"),
        (SAPPHIRE, "amx"),
    ],
)
def test_the_widest_instruction_set_is_taken(flags: set[str], fastest: str) -> None:
    found = supported_variants(flags)
    assert found[0].name == fastest
    assert found[-1] is VARIANTS[-1], "the portable one runs anywhere"


@pytest.mark.parametrize(
    ("machine", "names"),
    [
        ("x86_64", ["amx", "avx512-bf16", "avx512-vnni", "avx-vnni", "avx512", "avx2", "portable"]),
        ("aarch64", ["neon-i8mm", "neon-dotprod", "portable"]),
        ("riscv64", ["portable"]),
    ],
)
def test_a_wheel_holds_the_variants_of_its_architecture(
    monkeypatch: pytest.MonkeyPatch, machine: str, names: list[str]
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert [variant.name for variant in machine_variants()] == names


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="no cross compiler for aarch64")
def test_every_source_compiles_for_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "aarch64-linux-gnu-g++")
    variant = next(variant for variant in VARIANTS if variant.name == "neon-dotprod")
    compile_library(variant, tmp_path / "kernels.so", ("-O0",))
    assert (tmp_path / "kernels.so").read_bytes()[18:20] == b"\xb7\0", "the ELF header names the architecture"


def test_every_variant_has_a_file_of_its_own() -> None:
    names = {library_name(variant) for variant in VARIANTS}
    assert len(names) == len(VARIANTS)


def test_without_a_compiler_one_note_is_written(tmp_path: Path) -> None:
    done = run("assert kernels() is kernels() is None", CXX="no-such-compiler", YOLOX_CACHE=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("C++ compiler") == 1
    assert "slower" in done.stderr


def test_a_compiler_that_fails_is_named(tmp_path: Path) -> None:
    done = run("assert kernels() is None", CXX="false", YOLOX_CACHE=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "cannot be compiled: the compiler ended with code 1" in done.stderr
    assert list(tmp_path.iterdir()) == [], "nothing half done is left"


def test_what_a_killed_build_left_is_removed_later(tmp_path: Path) -> None:
    """The object files of a build that goes on now, which may be that of another process, stay."""
    left, fresh = (tmp_path / f".kernels-avx2-0.so.{pid}.tmp.int8.run.o" for pid in (1, 2))
    left.touch()
    fresh.touch()
    os.utime(left, (0, 0))
    run("assert kernels() is None", CXX="false", YOLOX_CACHE=str(tmp_path))
    assert list(tmp_path.iterdir()) == [fresh]


@needs_compiler
def test_a_ready_library_needs_no_compiler() -> None:
    built_library(host_variants()[0])
    done = run("assert kernels() is not None", CXX="no-such-compiler")
    assert done.returncode == 0, done.stderr


def test_the_switch() -> None:
    assert run("assert kernels() is None", YOLOX_KERNELS="0").returncode == 0
    done = run("required_kernels()", YOLOX_KERNELS="mmx")
    assert "UsageError" in done.stderr
    assert "portable" in done.stderr, "what could be named is listed"


@needs_compiler
def test_threads_are_those_of_pytorch() -> None:
    code = "import torch; required_kernels(); maps = open('/proc/self/maps').read().splitlines(); "
    found = run(code + "print(*{line.split()[-1] for line in maps if 'gomp' in line})").stdout.split()
    assert len(found) == 1, f"one OpenMP library, not {found}"


@needs_compiler
def test_without_openmp_one_thread_computes() -> None:
    code = f"""
import ctypes
library = ctypes.CDLL({str(built_library(host_variants()[0]))!r})
assert not [line for line in open('/proc/self/maps') if 'gomp' in line]
values, sums = (ctypes.c_float * 64)(*range(64)), (ctypes.c_double * 32)()
library.norm_act_statistics_float32(values, ctypes.c_long(4), ctypes.c_long(16), sums)
assert sums[0] == 0 + 16 + 32 + 48, sums[0]
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.processes
@needs_compiler
def test_processes_may_compile_at_once(tmp_path: Path) -> None:
    environment = {**os.environ, "YOLOX_CACHE": str(tmp_path), SWITCH: "portable"}
    command = [sys.executable, "-c", OPEN + "assert kernels() is not None"]
    both = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    assert [path.suffix for path in tmp_path.iterdir()] == [".so"], "nothing half done is left"


@needs_compiler
def test_the_library_runs_on_the_c_library_of_pytorchs_wheels() -> None:
    """``auditwheel`` would refuse the tag ``manylinux_2_28``, that of PyTorch's wheels, for what asks for more."""
    content = built_library(host_variants()[0]).read_bytes()
    needed = {tuple(map(int, version.split(b"."))) for version in re.findall(rb"\0GLIBC_([\d.]+)\0", content)}
    assert needed
    assert max(needed) <= (2, 28)
    assert b"GLIBCXX_" not in content, "the C++ library is linked in"
    assert b"libgomp" not in content, "a process must not have two OpenMP libraries"
