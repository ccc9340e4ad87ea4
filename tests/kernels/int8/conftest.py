"""What tests of the int8 kernels have in common."""

from __future__ import annotations

import pytest
from tile_model import variants

from yolox.kernels import library
from yolox.kernels.library import SWITCH
from yolox.kernels.variants import Variant


@pytest.fixture(params=variants(), ids=lambda variant: variant.name)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Variant:
    """Everything is tested with each instruction set that this processor has, and with a model of Intel's tiles."""
    monkeypatch.setattr(library, "host_variants", variants)
    monkeypatch.setenv(SWITCH, request.param.name)
    chosen: Variant = request.param
    return chosen
