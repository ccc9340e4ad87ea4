"""What other programs left in the environment does not change a training of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes
SLURM = {"SLURM_JOB_ID": "1234", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"} | {
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
LSF = {"LSB_JOBID": "1", "LSB_DJOB_RANKFILE": "/nofile", "JSM_NAMESPACE_RANK": "1", "JSM_NAMESPACE_SIZE": "2"} | {
    "JSM_NAMESPACE_LOCAL_RANK": "1"
}
TORCH = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
TRAIN = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from tiny import make_loader, make_module
from pytorch_lightning.loggers import CSVLogger
from yolox.trainer import Trainer

if __name__ == "__main__":
    quiet = dict(logger=CSVLogger("logs"), log_every_n_steps=1, enable_progress_bar=False)
    trainer = Trainer(max_epochs=1, **quiet, {arguments})
    trainer.fit(make_module(), make_loader())
    assert trainer.global_rank == 0 and trainer.is_global_zero
    assert list(Path("logs").rglob("metrics.csv")), "rank 0 writes the log"
    assert trainer.global_step > 0
    print("trained")
"""


def run(tmp_path: Path, variables: dict[str, str], arguments: str = "", stdin: bool = False) -> str:
    script = TRAIN.format(tests=str(Path(__file__).parent), arguments=arguments)
    command = [sys.executable, "-"] if stdin else [sys.executable, "-c", script]
    answer = subprocess.run(
        command,
        input=script if stdin else None,
        cwd=tmp_path,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@pytest.mark.parametrize("variables", [SLURM, LSF, TORCH], ids=["Slurm", "LSF", "RANK"])
def test_left_over_variables_change_nothing(tmp_path: Path, variables: dict[str, str]) -> None:
    assert "trained" in run(tmp_path, variables)


def test_processes_start_from_standard_input(tmp_path: Path) -> None:
    assert "trained" in run(tmp_path, {}, "num_processes=2", stdin=True)
