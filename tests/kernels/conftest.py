"""What tests of the kernels need."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolox.kernels import library
from yolox.kernels.build import compiler


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the kernels that sanitizers watch."""
    if compiler() is None:
        pytest.skip("no C++ compiler")
    return tmp_path_factory.mktemp("sanitized")


@pytest.fixture
def need_compiler() -> None:
    """Skip where no kernels can be compiled."""
    if library.kernels() is None:
        pytest.skip("no C++ compiler, or YOLOX_KERNELS=0")
