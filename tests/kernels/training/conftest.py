"""What tests of the training kernels need."""

from __future__ import annotations

import pytest

from yolox.kernels import library
from yolox.kernels.training.bindings import has_pointwise


@pytest.fixture
def need_compiler() -> None:
    """Skip where no kernels can be compiled."""
    if library.kernels() is None:
        pytest.skip("no C++ compiler, or YOLOX_KERNELS=0")


@pytest.fixture
def bf16_products(need_compiler: None) -> None:
    """Skip where no kernel multiplies bfloat16."""
    if not has_pointwise():
        pytest.skip("this processor does not multiply bfloat16 (AVX512-BF16), so nothing does here")
