"""Files that describe no sound program are refused before a kernel sees them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mutations import survive
from programs import every_kind_of_step, every_kind_of_window, small_network
from sanitizers import run_watched, watched_runs
from tile_model import with_tile_model

from yolox.kernels.int8.executable import Executable
from yolox.kernels.int8.storage import load_program, save_program
from yolox.kernels.variants import Variant


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


@pytest.mark.parametrize(
    ("variant", "amount"), [*watched_runs(150, 10_000), pytest.param(with_tile_model(), 20, id="amx-model-20")]
)
def test_a_sanitizer_sees_no_access_out_of_bounds(variant: Variant, amount: int, folder: Path, sanitized: Path) -> None:
    script = Path(__file__).with_name("mutations.py")
    ran, refused = map(int, run_watched(variant, sanitized, script, str(folder), "0", str(amount)).split())
    assert ran + refused == amount
