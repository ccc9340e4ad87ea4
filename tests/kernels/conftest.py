"""What tests of the kernels need."""

from __future__ import annotations

import pytest

from yolox.kernels import library


@pytest.fixture
def need_compiler() -> None:
    """Skip where no kernels can be compiled."""
    if library.kernels() is None:
        pytest.skip("no C++ compiler, or YOLOX_KERNELS=0")
