"""What tests of the int8 kernels have in common."""

from __future__ import annotations

import pytest

from yolox.kernels.library import SWITCH, host_variants
from yolox.kernels.variants import Variant


@pytest.fixture(params=host_variants(), ids=lambda variant: variant.name)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Variant:
    """Everything is tested with each instruction set that this processor has."""
    monkeypatch.setenv(SWITCH, request.param.name)
    chosen: Variant = request.param
    return chosen
