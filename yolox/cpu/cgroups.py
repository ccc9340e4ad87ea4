"""Limits that a container puts on its processes, from cgroup version 1 and version 2."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from yolox.errors import UsageError

_MEMORY_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
_NO_MEMORY_LIMIT = 2**60  # version 1 writes a number near 2**63 where there is no limit


@dataclass(frozen=True, slots=True)
class _Mount:
    """One mounted hierarchy: where it is, which of its folders it shows as its root, its controllers (empty: v2)."""

    point: str
    root: str
    controllers: frozenset[str]


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the CPUs' worth of time that this process may use, None without a limit."""
    quotas = []
    for folder in _folders(root, "cpu"):
        quota, period = [*read_or_empty(folder / "cpu.max").split(), "", ""][:2]
        if not quota:
            quota, period = (read_or_empty(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
        if quota.isdigit() and period.isdigit() and int(period) > 0:  # "max" and -1 mean no limit
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def cpuset(root: Path = Path("/")) -> set[int]:
    """Return the hardware threads of this process's cpuset; empty when there is none."""
    for folder in _folders(root, "cpuset"):
        for name in ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"):
            numbers = parse_cpu_list(read_or_empty(folder / name))
            if numbers:
                return numbers
    return set()


def memory_limit(root: Path = Path("/")) -> int | None:
    """Return the memory in bytes that this process's group may use, None without a limit."""
    return min((limit for limit, _ in _memory(root)), default=None)


def available_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process may still use, within its group and those above; None where it is unknown."""
    free = [max(0, limit - used) for limit, used in _memory(root)]
    available = kernel_bytes(root / "proc/meminfo", "MemAvailable")
    return min(free if available is None else [*free, available], default=None)


def require_memory(needed: int, what: str, advice: str, available: int | None = None) -> None:
    """Check that memory suffices before it is taken.

    Args:
        needed: Bytes.
        what: Takes them, as the beginning of a sentence.
        advice: What to do otherwise.
        available: Bytes; by default what this process may use.

    Raises:
        UsageError: Where it does not.
    """
    available = available_memory() if available is None else available
    if available is not None and needed > available:
        gib = f"{needed / 2**30:.1f} GiB; {available / 2**30:.1f} GiB are available"
        raise UsageError(f"{what} {gib}. {advice}")


def kernel_bytes(path: Path, name: str) -> int | None:
    """Return a size in a file such as ``/proc/meminfo`` in bytes, None where there is none of that name."""
    lines = (line for line in read_or_empty(path).splitlines() if line.startswith(f"{name}:"))
    return next((int(line.split()[1]) * 1024 for line in lines), None)


def _memory(root: Path) -> Iterator[tuple[int, int]]:
    """Yield limit and use in bytes of this process's group and of each group above it that has a limit."""
    for folder in _folders(root, "memory"):
        for limit_file, use_file in _MEMORY_FILES:
            limit, use = read_or_empty(folder / limit_file).strip(), read_or_empty(folder / use_file).strip()
            if limit.isdigit() and int(limit) < _NO_MEMORY_LIMIT:
                yield int(limit), int(use) if use.isdigit() else 0


def parse_cpu_list(text: str) -> set[int]:
    """Return the numbers of a list such as ``0-3,8,10-11``."""
    numbers: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.strip().partition("-")
        if first.isdigit() and (last.isdigit() or not last):
            numbers.update(range(int(first), int(last or first) + 1))
    return numbers


def format_cpu_list(numbers: Iterable[int]) -> str:
    """Return numbers as a list such as ``0-3,8``: what `parse_cpu_list` reads."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][-1] == number - 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ",".join("-".join(str(end) for end in part) for part in parts)


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders with limits of a controller: this process's own, then each one above, which binds as well."""
    groups = _groups(read_or_empty(root / "proc/self/cgroup"))
    for mount in _mounts(read_or_empty(root / "proc/self/mountinfo")):
        if mount.controllers and controller not in mount.controllers:
            continue
        group = PurePosixPath(groups.get(controller if mount.controllers else "", "/"))
        shown = group.relative_to(mount.root) if group.is_relative_to(mount.root) else PurePosixPath()
        top = root / mount.point.lstrip("/")
        for path in (shown, *shown.parents):
            yield top / str(path)


def _groups(text: str) -> dict[str, str]:
    """Return ``{controller: group}`` from ``/proc/self/cgroup``; the key of version 2 is the empty string."""
    groups = {}
    for line in text.splitlines():
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        groups.update({controller: group or "/" for controller in controllers.split(",")})
    return groups


def _mounts(text: str) -> list[_Mount]:
    mounts = []
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if not separator or len(fields) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        controllers = frozenset(kind[2].split(",")) if kind[0] == "cgroup" else frozenset[str]()
        mounts.append(_Mount(point=fields[4], root=fields[3], controllers=controllers))
    return mounts or [_Mount(point="/sys/fs/cgroup", root="/", controllers=frozenset())]


def read_or_empty(path: Path) -> str:
    """Return the text of a file of the kernel, empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
