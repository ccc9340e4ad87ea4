"""Fixtures shared by every test: where the real data lies, and when it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _need(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"real data is absent: {path} does not exist")
    return path


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    return _need(SHARED)


@pytest.fixture(scope="session")
def coco_mini() -> Path:
    return _need(SHARED / "data" / "coco_mini")


@pytest.fixture(scope="session")
def nano_weights() -> Path:
    return _need(SHARED / "data" / "weights" / "yolox_nano.pth")


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    return _need(SHARED / "golden")


@pytest.fixture
def bf16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use kernels that multiply bfloat16: this processor's, or the portable ones where it has none."""
    from yolox.kernels.library import SWITCH, kernels
    from yolox.kernels.training.bindings import has_pointwise

    if kernels() is None:
        pytest.skip("no C++ compiler, or YOLOX_KERNELS=0")
    if not has_pointwise():
        monkeypatch.setenv(SWITCH, "portable")
