"""Keep freed memory in the process: returning large tensors to the kernel at every step costs more than arithmetic."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePath

# parameters of mallopt(3), from glibc's malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_NEVER_TRIM = -1  # glibc reads it as the largest size_t
_TOP_PAD_BYTES = 64 * 1024 * 1024
_MADV_HUGEPAGE, _HUGE_PAGE = 14, 2 * 1024 * 1024  # madvise(2)

SWITCH = "YOLOX_MALLOPT"
"""Environment variable; ``0`` leaves the allocator as it is (to measure what the setting is worth)."""
_USER_SETTINGS = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_")


@dataclass(frozen=True)
class AllocatorSetting:
    """What was done to the memory allocator.

    Args:
        applied: Whether freed memory now stays in the process.
        detail: What was set, or why nothing was.
    """

    applied: bool
    detail: str

    def __str__(self) -> str:
        """Return one line for a log."""
        return f"allocator: {'set' if self.applied else 'left alone'}, {self.detail}"


def keep_freed_memory() -> AllocatorSetting:
    """Tell glibc's malloc to keep freed memory; leave every other allocator and the user's own settings alone.

    May be called at any time and as often as one likes; it acts on memory freed from then on.
    """
    reason = reason_to_leave_alone(glibc_version(), malloc_library(), os.environ)
    if reason is not None:
        return AllocatorSetting(False, reason)
    mallopt = ctypes.CDLL(None).mallopt
    wanted = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER_TRIM), (_M_TOP_PAD, _TOP_PAD_BYTES))
    if not all(mallopt(parameter, value) for parameter, value in wanted):
        return AllocatorSetting(False, "glibc refused a value of mallopt")
    huge = ", huge pages" if _ask_for_huge_pages() else ""
    return AllocatorSetting(True, f"mallopt: M_MMAP_MAX 0, M_TRIM_THRESHOLD never, M_TOP_PAD 64 MiB{huge}")


def release_memory() -> None:
    """Give free pages back to the system, where the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(ctypes.c_size_t(0))


@contextmanager
def freed_memory_returned() -> Iterator[None]:
    """Return to the kernel what malloc keeps free, so that a limit on further memory counts from what is in use.

    Huge pages are asked for again at the end, if they were before.
    """
    release_memory()
    try:
        yield
    finally:
        if _ask_for_huge_pages.cache_info().currsize:
            _ask_for_huge_pages.cache_clear()
            _ask_for_huge_pages()


@lru_cache(maxsize=1)
def _ask_for_huge_pages() -> bool:
    """Ask for pages of 2 MiB in the next part of the heap, half as large as the memory; return whether that worked.

    The heap grows to that size once, and as freed memory is kept from now on, it keeps it: addresses alone, as pages
    become memory when they are used. The processor then knows a tensor of 6 MiB by 3 pages instead of 1536.
    """
    import resource

    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    if any(limit != resource.RLIM_INFINITY for limit in limits):
        return False  # addresses are what the user has limited
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    libc.free.argtypes = (ctypes.c_void_p,)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    block = libc.malloc(size)
    if not block:
        return False
    start, end = -(-block // _HUGE_PAGE) * _HUGE_PAGE, (block + size) // _HUGE_PAGE * _HUGE_PAGE
    refused = libc.madvise(start, end - start, _MADV_HUGEPAGE)
    libc.free(block)
    return not refused


def reason_to_leave_alone(glibc: str | None, malloc_file: str | None, environment: Mapping[str, str]) -> str | None:
    """Return why the allocator must not be touched, or None.

    Args:
        glibc: Version of the C library, None when it is not glibc.
        malloc_file: The file that serves ``malloc`` in this process, None when unknown.
        environment: The process's environment variables.
    """
    if environment.get(SWITCH) == "0":
        return f"{SWITCH}=0 asks for it"
    if glibc is None:
        return "the C library is not glibc"
    if malloc_file is None:
        return "the library that serves malloc cannot be found"
    name = PurePath(malloc_file).name
    if not name.startswith(("libc.so", "libc-")):
        return f"malloc is served by {name}"
    own = [key for key in _USER_SETTINGS if key in environment]
    if "glibc.malloc." in environment.get("GLIBC_TUNABLES", ""):
        own.append("GLIBC_TUNABLES")
    return f"the user has set {', '.join(own)}" if own else None


def glibc_version() -> str | None:
    """Return the version of glibc, or None on musl, macOS and Windows."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, OSError, ValueError):
        return None


class _DlInfo(ctypes.Structure):
    """What dladdr(3) tells of an address."""

    _fields_ = (
        ("dli_fname", ctypes.c_char_p),
        ("dli_fbase", ctypes.c_void_p),
        ("dli_sname", ctypes.c_char_p),
        ("dli_saddr", ctypes.c_void_p),
    )


def malloc_library() -> str | None:
    """Return the file whose ``malloc`` this process uses: the C library, or a preloaded jemalloc or tcmalloc."""
    try:
        process = ctypes.CDLL(None)
        # Every allocator brings it beside malloc, whose own address can be an entry of the interpreter (Debian's).
        address = ctypes.cast(process.malloc_usable_size, ctypes.c_void_p)
        found = _DlInfo()
        known = process.dladdr(address, ctypes.byref(found))
    except (AttributeError, OSError, TypeError):
        return None
    return os.fsdecode(found.dli_fname) if known and found.dli_fname else None
