from __future__ import annotations

from pathlib import Path

import pytest

from yolox.cpu.cgroups import available_memory, cpu_quota, cpuset, memory_limit, parse_cpu_list
from yolox.cpu.machine import parse_cpuinfo, pretend_machine, read_machine, restricted

V2 = "34 30 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
V1 = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "33 31 0:30 {root} /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
    "34 31 0:31 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def two_sockets(root: Path) -> Path:
    """2 sockets x 2 cores x 2 threads, second threads numbered after all first ones, as Linux does."""
    files = {
        "sys/devices/system/cpu/online": "0-7\n",
        "sys/devices/system/node/node0/cpulist": "0-1,4-5\n",
        "sys/devices/system/node/node1/cpulist": "2-3,6-7\n",
        "proc/cpuinfo": "processor\t: 0\nmodel name\t: Xeon\nflags\t\t: fpu avx2 avx512f avx512_vnni amx_bf16\n",
        "proc/meminfo": "MemTotal:       1048576 kB\n",
    }
    for number in range(8):
        first = number % 4
        topology = f"sys/devices/system/cpu/cpu{number}/topology"
        files[f"{topology}/thread_siblings_list"] = f"{first},{first + 4}\n"
        files[f"{topology}/physical_package_id"] = f"{first // 2}\n"
        files[f"{topology}/core_id"] = f"{first % 2}\n"
    return write(root, files)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0-3,8", {0, 1, 2, 3, 8}), ("", set()), ("5\n", {5}), ("0-0", {0}), ("nonsense", set())],
)
def test_cpu_lists(text: str, numbers: set[int]) -> None:
    assert parse_cpu_list(text) == numbers


def test_topology_counts_cores_not_threads(tmp_path: Path) -> None:
    machine = read_machine(two_sockets(tmp_path), affinity=range(8))
    assert (machine.num_logical, machine.num_cores, machine.num_sockets, machine.num_nodes) == (8, 4, 2, 2)
    assert [[cpu.number for cpu in core] for core in machine.cores] == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert machine.model_name == "Xeon"
    assert machine.has_bf16
    assert machine.has_vnni
    assert not machine.has_fp16
    assert machine.memory_bytes == 2**30


def test_taskset_is_respected(tmp_path: Path) -> None:
    machine = read_machine(two_sockets(tmp_path), affinity=[2, 6, 7])
    assert (machine.num_logical, machine.num_cores, machine.num_nodes) == (3, 2, 1)
    assert restricted(machine, [6]).num_cores == 1


def test_quota_of_version_2_is_the_least_of_all_levels(tmp_path: Path) -> None:
    root = write(
        two_sockets(tmp_path),
        {
            "proc/self/cgroup": "0::/pod/box\n",
            "proc/self/mountinfo": V2,
            "sys/fs/cgroup/cpu.max": "max 100000\n",
            "sys/fs/cgroup/pod/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/pod/box/cpu.max": "300000 100000\n",
            "sys/fs/cgroup/pod/box/cpuset.cpus.effective": "0-2\n",
            "sys/fs/cgroup/pod/memory.max": "1000000\n",
            "sys/fs/cgroup/pod/memory.current": "400000\n",
            "proc/meminfo": "MemTotal: 8000 kB\nMemAvailable: 7000 kB\n",
            "sys/fs/cgroup/pod/box/memory.max": "max\n",
        },
    )
    assert cpu_quota(root) == 1.5
    assert cpuset(root) == {0, 1, 2}
    assert memory_limit(root) == 1_000_000
    assert available_memory(root) == 600_000, "the group above limits it, less what is used there"
    machine = read_machine(root, affinity=range(8))
    assert machine.allowed == (0, 1, 2)
    assert machine.num_threads == 2
    assert machine.memory_bytes == 1_000_000


@pytest.mark.parametrize("shown_as_root", ["/", "/docker/abc"])
def test_version_1_in_a_container(tmp_path: Path, shown_as_root: str) -> None:
    group = "/docker/abc" if shown_as_root != "/" else "/"
    root = write(
        two_sockets(tmp_path),
        {
            "proc/self/cgroup": f"4:memory:{group}\n3:cpuset:{group}\n1:cpu,cpuacct:{group}\n0::/\n",
            "proc/self/mountinfo": V1.format(root=shown_as_root),
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpuset/cpuset.cpus": "4-7\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    assert cpu_quota(root) == 2.0
    assert cpuset(root) == {4, 5, 6, 7}
    assert memory_limit(root) is None


def test_no_limit_where_nothing_is_mounted(tmp_path: Path) -> None:
    root = two_sockets(tmp_path)
    assert cpu_quota(root) is None
    assert cpuset(root) == set()
    write(root, {"proc/self/mountinfo": V2, "sys/fs/cgroup/cpu.max": "max 100000\n"})
    assert cpu_quota(root) is None


def test_a_host_without_sys_counts_every_thread_as_a_core(tmp_path: Path) -> None:
    machine = read_machine(tmp_path)
    assert machine.num_cores >= 1
    assert machine.num_threads >= 1


def test_arm_flags() -> None:
    name, flags = parse_cpuinfo("processor : 0\nFeatures : fp asimd asimdhp bf16 i8mm\n")
    assert name == ""
    assert {"bf16", "i8mm", "asimdhp"} <= flags


def test_this_host_can_be_described() -> None:
    machine = read_machine()
    assert machine.num_threads <= machine.num_cores <= machine.num_logical <= len(machine.cpus)
    assert str(machine.num_cores) in str(machine)
    assert machine.as_dict()["usable_cores"] == machine.num_cores


@pytest.mark.parametrize(("sockets", "cores"), [(2, 28), (2, 112)])
def test_pretended_machines(sockets: int, cores: int) -> None:
    machine = pretend_machine(sockets, cores)
    assert machine.num_cores == sockets * cores
    assert machine.num_logical == 2 * sockets * cores
    assert machine.num_nodes == sockets
