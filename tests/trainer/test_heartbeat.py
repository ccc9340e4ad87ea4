from __future__ import annotations

from pathlib import Path

import pytest

from yolox.trainer.launchers.base import Failure, Phase, RankError, first_cause
from yolox.trainer.launchers.heartbeat import (
    CpuActivity,
    HangLimits,
    HangWatch,
    Heartbeat,
    RankActivity,
    is_busy,
    read_cpu_activity,
    read_heartbeat,
)

LIMITS = HangLimits(step=5, lone_step=100)


def look_on(phases: list[Phase], busy: list[bool], seconds: int) -> float | None:
    """Return when the watch gives up on ranks that never beat again."""
    watch = HangWatch(LIMITS)
    for now in range(seconds):
        ranks = [RankActivity(rank, phase, 1, at) for rank, (phase, at) in enumerate(zip(phases, busy, strict=True))]
        if watch.look(float(now), ranks) is not None:
            return float(now)
    return None


def test_a_beat_arrives(tmp_path: Path) -> None:
    heartbeat = Heartbeat(tmp_path / "heartbeat")
    assert read_heartbeat(tmp_path / "heartbeat") == (0, "setup")
    heartbeat("step")
    heartbeat("data")
    assert read_heartbeat(tmp_path / "heartbeat") == (2, "data")
    assert read_heartbeat(tmp_path / "none") == (0, "setup")


@pytest.mark.parametrize(
    ("phases", "expected"),
    [
        (["step", "step"], 5),
        (["step", "data"], None),
        (["data", "data"], None),
        (["step", "other"], None),
        (["setup", "step"], None),
    ],
)
def test_only_idle_steps_are_a_hang(phases: list[Phase], expected: int | None) -> None:
    assert look_on(phases, [False, False], 600) == expected


def test_slow_is_not_stuck() -> None:
    assert look_on(["step", "step"], [True, True], 90) is None
    assert look_on(["step", "step"], [False, True], 90) is None


def test_a_rank_that_computes_one_step_for_ever_is_a_hang() -> None:
    assert look_on(["step", "step"], [True, False], 600) == 100
    assert look_on(["step"], [True], 600) is None, "a single process may take its time"


def test_the_limit_of_a_lone_step_follows_the_longest_step() -> None:
    watch = HangWatch(LIMITS)
    for now in range(0, 300, 10):  # steps of 10 s
        phase: Phase = "data" if now // 10 % 2 else "step"
        assert watch.look(float(now), [RankActivity(0, phase, now, True), RankActivity(1, "step", now, False)]) is None
    gave_up = next(
        now
        for now in range(300, 1000)
        if watch.look(float(now), [RankActivity(0, "step", 999, True), RankActivity(1, "step", 290, False)])
    )
    assert gave_up == 500


def test_cpu_activity_counts_threads_of_a_session(tmp_path: Path) -> None:
    for pid, session, state in ((10, 10, "S"), (11, 10, "R"), (12, 99, "R")):
        task = tmp_path / str(pid) / "task" / str(pid)
        task.mkdir(parents=True)
        stat = f"{pid} (a ) name) {state} 1 {session} {session} 0 -1 0 0 0 0 0 150 50 0 0"
        (tmp_path / str(pid) / "stat").write_text(stat)
        (task / "stat").write_text(stat)
        (task / "schedstat").write_text("2000000000 500000000 7\n")
    assert read_cpu_activity([10], tmp_path) == {10: CpuActivity(4.0, 1.0, False)}
    (tmp_path / "11/task/11/schedstat").unlink()
    (tmp_path / "11/task/11/stat").write_text("11 (x) D 1 10 10 0 -1 0 0 0 0 0 150 50 0 0")
    assert read_cpu_activity([10], tmp_path)[10].disk


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (None, CpuActivity(), True),
        (CpuActivity(1.0), CpuActivity(1.5), True),
        (CpuActivity(1.0), CpuActivity(1.01), False),
        (CpuActivity(1.0, 0.0), CpuActivity(1.01, 0.1), False),
        (CpuActivity(1.0, 0.0), CpuActivity(1.01, 0.9), True),
        (CpuActivity(1.0), CpuActivity(0.2), True),
        (CpuActivity(1.0), CpuActivity(1.0, disk=True), True),
    ],
)
def test_busy(before: CpuActivity | None, after: CpuActivity, expected: bool) -> None:
    assert is_busy(before, after, 1.0) == expected


def test_the_cause_is_found_among_its_consequences() -> None:
    echo = Failure(0, "raised", "RuntimeError: Connection closed by peer [127.0.0.1]:1", "", at=1.0)
    cause = Failure(1, "raised", "ValueError: boom", "", at=2.0)
    killed = Failure(2, "killed", "by SIGKILL", "", at=3.0)
    assert first_cause([echo, cause]) is cause
    assert first_cause([echo, cause, killed]) is killed


def test_rank_error_survives_pickling() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(RankError(1, 2, "raised", "ValueError: boom", "Traceback ...")))
    assert (error.rank, error.kind) == (1, "raised")
    assert "Traceback ..." in str(error)
