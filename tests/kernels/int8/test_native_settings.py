"""Saved settings are those of the machine that saved them."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from programs import every_kind_of_step

from yolox.cpu.machine import pretend_machine
from yolox.inference.artifacts.manifest import Manifest
from yolox.inference.backends import get_backend
from yolox.inference.backends.base import Settings
from yolox.kernels.int8.storage import save_program


@pytest.mark.parametrize(("saved", "cores", "used"), [((8, 4), 2, (2, 2)), ((2, 1), 2, (2, 1)), ((4, 1), 1, (1, 1))])
def test_settings_for_more_cores_are_chosen_again(
    saved: tuple[int, int],
    cores: int,
    used: tuple[int, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    save_program(every_kind_of_step(), tmp_path)
    monkeypatch.setattr("yolox.inference.backends.native.read_machine", lambda: pretend_machine(1, cores, 1))
    manifest = Manifest("native_int8", "native", "int8", {}, Settings(*saved), ((4, 3, 20, 20),), ("float32",), 2)
    with caplog.at_level(logging.WARNING):
        runner = get_backend("native").load(tmp_path, manifest)
    assert runner.settings == Settings(*used)
    assert ("this machine gives" in caplog.text) == (saved[0] > cores)
    assert [output.shape for output in runner(np.zeros((4, 3, 20, 20), np.float32))] == [(4, 100, 6), (4, 100, 4)]
