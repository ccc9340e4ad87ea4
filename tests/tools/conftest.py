"""Data for short trainings; a module with data of its own has a fixture of the same name."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolox.data.sample_dataset import draw_sample_set


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images to train on and four to evaluate on."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    draw_sample_set(folder, num_train=10, num_val=4)
    return folder
