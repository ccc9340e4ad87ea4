from __future__ import annotations

import os
import subprocess
import sys

import pytest

from yolox.cpu.allocator import glibc_version, keep_freed_memory, malloc_library, reason_to_leave_alone

LIBC = "/lib/x86_64-linux-gnu/libc.so.6"


@pytest.mark.parametrize(
    ("glibc", "malloc_file", "environment", "part"),
    [
        (None, LIBC, {}, "not glibc"),
        ("glibc 2.36", None, {}, "cannot be found"),
        ("glibc 2.36", "/usr/lib/libjemalloc.so.2", {}, "libjemalloc.so.2"),
        ("glibc 2.36", "/usr/lib/libtcmalloc_minimal.so.4", {}, "libtcmalloc_minimal.so.4"),
        ("glibc 2.36", LIBC, {"MALLOC_TRIM_THRESHOLD_": "1"}, "MALLOC_TRIM_THRESHOLD_"),
        ("glibc 2.36", LIBC, {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=1"}, "GLIBC_TUNABLES"),
        ("glibc 2.36", LIBC, {"YOLOX_MALLOPT": "0"}, "YOLOX_MALLOPT=0"),
    ],
)
def test_the_allocator_is_left_alone_with_a_reason(
    glibc: str | None, malloc_file: str | None, environment: dict[str, str], part: str
) -> None:
    reason = reason_to_leave_alone(glibc, malloc_file, environment)
    assert reason is not None
    assert part in reason


@pytest.mark.parametrize("malloc_file", [LIBC, "/lib64/libc-2.28.so"])
def test_plain_glibc_is_set(malloc_file: str) -> None:
    assert reason_to_leave_alone("glibc 2.36", malloc_file, {"GLIBC_TUNABLES": "glibc.cpu.x=1"}) is None


def test_setting_says_what_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLOX_MALLOPT", "0")
    setting = keep_freed_memory()
    assert not setting.applied
    assert "left alone" in str(setting)


@pytest.mark.skipif(glibc_version() is None or not os.access("/usr/bin/python3", os.X_OK), reason="needs both")
def test_the_python_of_the_system_has_the_allocator_of_the_c_library() -> None:
    """Debian's interpreter is not position-independent: what it says of its own ``malloc`` is an entry of its own."""
    script = "import sys; sys.version_info >= (3, 10) or sys.exit('old'); from yolox.cpu import allocator as a"
    command = ["/usr/bin/python3", "-c", f"{script}; print(a.malloc_library())"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=_root(), check=False)
    if done.stderr.strip() == "old":
        pytest.skip("the system's Python is too old")
    assert done.stdout.strip().rpartition("/")[2].startswith("libc"), done.stderr


@pytest.mark.skipif(glibc_version() is None, reason="needs glibc")
def test_large_tensors_stay_in_the_process() -> None:
    """A freed large block is used again without a page fault."""
    assert (malloc_library() or "").rpartition("/")[2].startswith("libc")
    script = (
        "import resource, sys; from yolox.cpu.allocator import keep_freed_memory\n"
        "assert sys.argv[1] == 'no' or keep_freed_memory().applied\n"
        "size = 64 * 2**20\n"
        "def touch():\n    block = bytearray(size)\n    block[::4096] = b'x' * (size // 4096)\n"
        "touch()\nbefore = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\ntouch()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )

    def faults(apply: str) -> int:
        command = [sys.executable, "-c", script, apply]
        return int(subprocess.run(command, check=True, capture_output=True, text=True, cwd=_root()).stdout)

    assert faults("yes") < 200
    assert faults("yes") < faults("no")


@pytest.mark.skipif(glibc_version() is None, reason="needs glibc")
def test_what_the_heap_keeps_free_counts_for_a_limit_on_memory() -> None:
    """The heap reserves half of the memory for huge pages; a limit holds in spite of that, and they come back."""
    script = (
        "from yolox.cpu.allocator import keep_freed_memory; from yolox.cpu.cgroups import kernel_bytes\n"
        "from yolox.cpu.memory_limit import limited_memory; from pathlib import Path\n"
        "assert keep_freed_memory().applied\n"
        "reserved = kernel_bytes(Path('/proc/self/status'), 'VmData')\n"
        "with limited_memory(2**20):\n"
        "    try:\n        bytearray(2**26)\n    except MemoryError:\n        print('refused')\n"
        "bytearray(2**26)\n"
        "print(kernel_bytes(Path('/proc/self/status'), 'VmData') >= reserved)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=_root())
    assert done.stdout.split() == ["refused", "True"]


def _root() -> str:
    from pathlib import Path

    return str(Path(__file__).resolve().parents[2])
