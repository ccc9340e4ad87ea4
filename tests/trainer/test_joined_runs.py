"""Runs that torchrun or srun has started: this process is one rank of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import QUIET, make_loader, make_module, make_trainer

from yolox.cpu.machine import pretend_machine
from yolox.errors import UsageError
from yolox.trainer.launchers.joined import JoinedRank, joined_rank
from yolox.trainer.plan import Request, make_plan

pytestmark = QUIET

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"} | {
    "GROUP_RANK": "1"
}
SRUN = {"SLURM_JOB_ID": "41", "SLURM_STEP_NUM_TASKS": "5", "SLURM_PROCID": "4", "SLURM_LOCALID": "0"} | {
    "SLURM_NODEID": "2",
    "SLURM_STEP_NODELIST": "cpu[03-05,7],other",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
}
REAL_SRUN = {
    "SLURM_CPUS_ON_NODE": "2",
    "SLURM_GTIDS": "0,1",
    "SLURM_JOB_ID": "1",
    "SLURM_JOB_NAME": "bash",
    "SLURM_JOB_NODELIST": "vm",
    "SLURM_LOCALID": "1",
    "SLURM_NNODES": "1",
    "SLURM_NODEID": "0",
    "SLURM_NPROCS": "2",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_STEPID": "0",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "vm",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2",
    "SLURM_TASKS_PER_NODE": "2",
}
"""Of the second process of ``srun -n 2 bash train.sh``, from Slurm 22.05."""
SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import torch
from tiny import make_loader, make_module, make_trainer

module = make_module()
trainer = make_trainer("out")
trainer.fit(module, make_loader())
assert trainer.world_size == 2 and trainer.plan.launcher == "torchrun", trainer.plan
torch.save(module.state_dict(), f"rank-{{trainer.global_rank}}.pt")
"""


def test_ranks_of_torchrun_and_srun_are_read() -> None:
    assert joined_rank(TORCHRUN) == JoinedRank("torchrun", 3, 4, 1, 2, 1, "env://")
    assert joined_rank(SRUN) == JoinedRank("srun", 4, 5, 0, 1, 2, "tcp://cpu03:18977")
    assert joined_rank({**SRUN, "SLURM_NODEID": "1", "MASTER_ADDR": "a", "MASTER_PORT": "7"}) == JoinedRank(
        "srun", 4, 5, 0, 2, 1, "tcp://a:7"
    )


@pytest.mark.parametrize("name", ["bash", "interactive", "train"])  # a script, a step of salloc, sbatch
def test_a_step_of_two_tasks_is_a_run_whatever_the_job_is_called(name: str) -> None:
    expected = JoinedRank("srun", 1, 2, 1, 2, 0, "tcp://vm:15097")
    assert joined_rank({**REAL_SRUN, "SLURM_JOB_NAME": name}) == expected


def test_a_shell_of_srun_is_no_run_but_the_steps_that_it_starts_are(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = {**REAL_SRUN, "SLURM_PTY_PORT": "34535"}  # of srun --pty; its steps inherit it
    monkeypatch.setattr(os, "isatty", lambda _: True)
    assert joined_rank(shell) is None
    monkeypatch.setattr(os, "isatty", lambda _: False)
    assert joined_rank(shell) is not None


def test_steps_side_by_side_in_one_job_do_not_meet() -> None:
    steps = [joined_rank({**REAL_SRUN, "SLURM_STEP_ID": str(number)}) for number in range(3)]
    assert len({step.rendezvous for step in steps if step is not None}) == 3


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"},
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"},
        {**SRUN, "SLURM_STEP_NUM_TASKS": "1"},
        {**TORCHRUN, "WORLD_SIZE": "1"},
    ],
)
def test_one_task_and_left_over_variables_are_no_run(environment: dict[str, str]) -> None:
    assert joined_rank(environment) is None


def test_the_plan_shares_the_cores_of_the_machine_and_refuses_other_numbers() -> None:
    joined = joined_rank(TORCHRUN)
    plan = make_plan(Request(joined=joined), pretend_machine(1, 8))
    assert (plan.launcher, plan.world, plan.slots[3].threads) == ("torchrun", 4, 4)
    assert make_plan(Request(num_processes=4, joined=joined), pretend_machine(1, 8)).world == 4
    with pytest.raises(UsageError, match="torchrun has started 4 processes, which contradicts num_processes=2"):
        make_plan(Request(num_processes=2, joined=joined), pretend_machine(1, 8))


def test_nothing_is_said_about_an_srun_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "srun").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    trainer = make_trainer(tmp_path / "out", max_epochs=1)
    trainer.fit(make_module(), make_loader())
    trainer.validate(make_module(), make_loader())


@pytest.mark.processes
def test_torchrun_gives_the_weights_of_one_process(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "train.py"]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert answer.returncode == 0, answer.stderr
    alone = make_module()
    make_trainer(tmp_path / "alone").fit(alone, make_loader())
    for rank in (0, 1):
        weights = torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True)
        torch.testing.assert_close(weights, dict(alone.state_dict()))
