from __future__ import annotations

from dataclasses import replace

import pytest

from yolox.cpu.cgroups import format_cpu_list
from yolox.cpu.machine import Machine, pretend_machine
from yolox.errors import MissingDependencyError, UsageError
from yolox.trainer.plan import ExecutionPlan, Request, make_plan

SMALL = pretend_machine(1, 4)  # 4 cores, 8 threads, one node
BIG = pretend_machine(2, 28)  # 56 cores
HUGE = pretend_machine(4, 56)  # 224 cores
PLAIN = replace(SMALL, isa=frozenset({"avx2"}))


def threads(plan: ExecutionPlan) -> list[int]:
    return [slot.threads for slot in plan.slots]


def nodes(plan: ExecutionPlan, machine: Machine) -> list[int]:
    of = {cpu.number: cpu.node for cpu in machine.cpus}
    found = [{of[number] for number in slot.cpus} for slot in plan.slots]
    assert all(len(one) == 1 for one in found), "a process computes on two nodes"
    return [one.pop() for one in found]


@pytest.mark.parametrize(
    ("machine", "processes", "expected"),
    [
        (SMALL, 1, [4]),
        (SMALL, 2, [2, 2]),
        (SMALL, 3, [1, 1, 1]),
        (SMALL, 4, [1, 1, 1, 1]),
        (SMALL, 6, [1] * 6),
        (BIG, 4, [14] * 4),
        (BIG, 3, [14] * 3),
        (BIG, 8, [7] * 8),
        (HUGE, 1, [224]),
        (HUGE, 2, [112, 112]),
        (HUGE, 8, [28] * 8),
        (HUGE, 224, [1] * 224),
    ],
)
def test_every_core_gets_one_thread(machine: Machine, processes: int, expected: list[int]) -> None:
    plan = make_plan(Request(processes), machine)
    assert threads(plan) == expected
    assert plan.world == processes
    if 1 < processes <= machine.num_cores:
        used = [number for slot in plan.slots for number in slot.cpus]
        assert len(used) == len(set(used)), "two processes share a core"


@pytest.mark.parametrize(("processes", "expected"), [(2, [0, 1]), (4, [0, 0, 1, 1]), (8, [0] * 4 + [1] * 4)])
def test_no_process_crosses_a_numa_node(processes: int, expected: list[int]) -> None:
    assert nodes(make_plan(Request(processes), BIG), BIG) == expected


def test_three_processes_on_two_nodes_stay_inside_them() -> None:
    assert nodes(make_plan(Request(3), BIG), BIG) == [0, 0, 1]


def test_a_process_is_bound_to_both_threads_of_its_cores() -> None:
    plan = make_plan(Request(2), SMALL)
    assert [slot.cpus for slot in plan.slots] == [(0, 1, 4, 5), (2, 3, 6, 7)]


def test_one_process_trains_here_and_is_not_bound() -> None:
    plan = make_plan(Request(), SMALL)
    assert plan.launcher == "none"
    assert plan.slots[0].cpus == ()
    assert make_plan(Request(supervised=True), SMALL).launcher == "subprocess"


def test_more_processes_than_cores_is_allowed_and_noted() -> None:
    plan = make_plan(Request(6), SMALL)
    assert any("6 processes share 4 cores" in note for note in plan.notes)


def test_taskset_and_quota_limit_the_plan() -> None:
    machine = replace(SMALL, allowed=(0, 1, 4, 5), quota=1.0)
    plan = make_plan(Request(1), machine)
    assert threads(plan) == [1]
    assert any("quota" in note for note in plan.notes)
    used = {number for slot in make_plan(Request(2), replace(machine, quota=None)).slots for number in slot.cpus}
    assert used == {0, 1, 4, 5}


def test_omp_num_threads_is_respected() -> None:
    plan = make_plan(Request(2, omp_num_threads=1), SMALL)
    assert threads(plan) == [1, 1]
    assert any("OMP_NUM_THREADS=1" in note for note in plan.notes)


def test_given_cpus_are_used_and_count_cores() -> None:
    plan = make_plan(Request(cpu_for_each_process=[[0, 4], [1, 2]]), SMALL)
    assert [(slot.cpus, slot.threads) for slot in plan.slots] == [((0, 4), 1), ((1, 2), 2)]
    shared = make_plan(Request(2, cpu_for_each_process=[[0], [0]]), SMALL)
    assert any("share" in note for note in shared.notes)


@pytest.mark.parametrize(
    ("request_", "part"),
    [
        (Request(0), "num_processes is 0"),
        (Request(True), "num_processes is True"),
        (Request(2, "subproces"), "Did you mean 'subprocess'"),
        (Request(2, "k8s"), "Kubernetes"),
        (Request(2, process_group_backend="nccl"), "process_group_backend 'nccl'"),
        (Request(3, cpu_for_each_process=[[0], [1]]), "2 lists for 3 processes"),
        (Request(cpu_for_each_process=[[0], [99]]), "rank 1"),
        (Request(cpu_for_each_process=[[0], []]), "rank 1"),
        (Request(cpu_for_each_process=[]), "0 lists"),
        (Request(precision="int8"), "unknown precision 'int8'"),
        (Request(2, cluster="10.0.0.1:6379"), "stays on this machine"),
        (Request(2, "ray", cpu_for_each_process=[[0], [1]], importable=frozenset({"ray"})), "ray chooses machines"),
    ],
)
def test_refusals(request_: Request, part: str) -> None:
    with pytest.raises(UsageError, match=part.replace("(", r"\(")):
        make_plan(request_, SMALL)


@pytest.mark.parametrize("request_", [Request(2, "ray"), Request(2, "spark"), Request(2, process_group_backend="ccl")])
def test_missing_libraries(request_: Request) -> None:
    with pytest.raises(MissingDependencyError, match="pip install"):
        make_plan(request_, SMALL)


def test_one_process_needs_no_cluster() -> None:
    (note,) = make_plan(Request(1, "ray", cluster="10.0.0.1:6379"), SMALL).notes
    assert "10.0.0.1:6379 is not used" in note


def test_spawn_is_another_name_of_subprocess() -> None:
    assert make_plan(Request(2, "spawn"), SMALL) == make_plan(Request(2), SMALL)


@pytest.mark.parametrize("backend", ["ray", "spark"])
def test_processes_of_a_cluster_are_not_bound(backend: str) -> None:
    plan = make_plan(Request(2, backend, importable=frozenset({"ray", "pyspark"})), SMALL)
    assert all(slot.cpus == () and slot.threads == 0 for slot in plan.slots)
    assert "hardware threads" not in plan.summary, "that is for its machine to decide"
    limited = make_plan(Request(2, backend, omp_num_threads=3, importable=frozenset({"ray", "pyspark"})), SMALL)
    assert threads(limited) == [3, 3]


@pytest.mark.parametrize(
    ("precision", "name", "noted"),
    [(64, "64", False), ("32-true", "32", False), (16, "16", True), ("16-mixed", "16", True), ("bf16", "bf16", True)],
)
def test_precision_without_hardware_is_allowed_and_noted(precision: int | str, name: str, noted: bool) -> None:
    plan = make_plan(Request(precision=precision), PLAIN)
    assert plan.precision == name
    assert any("slower" in note for note in plan.notes) == noted
    assert not make_plan(Request(precision="bf16"), SMALL).notes


def test_ipex_is_noted_or_with_strict_refused() -> None:
    assert any("use_ipex" in note for note in make_plan(Request(use_ipex=True), SMALL).notes)
    with pytest.raises(MissingDependencyError):
        make_plan(Request(use_ipex=True, strict=True), SMALL)
    there = frozenset({"intel_extension_for_pytorch"})
    plan = make_plan(Request(use_ipex=True, strict=True, importable=there), SMALL)
    assert plan.ipex
    assert "with IPEX" in plan.describe()
    assert not plan.notes
    double = make_plan(Request(use_ipex=True, precision=64, importable=there), SMALL)
    assert not double.ipex
    assert any("precision 64" in note for note in double.notes)


@pytest.mark.parametrize("machine", [BIG, HUGE, replace(SMALL, system="Darwin")])
def test_a_plan_explains_itself(machine: Machine) -> None:
    plan = make_plan(Request(4), machine)
    text = plan.describe()
    assert text.count("\n") >= 7
    assert "4 processes started by subprocess" in text
    assert all(note in text for note in plan.notes)
    assert plan.as_dict()["launcher"] == "subprocess"


def test_ranges() -> None:
    assert format_cpu_list([3, 0, 1, 2, 7]) == "0-3,7"
    assert format_cpu_list([]) == ""
