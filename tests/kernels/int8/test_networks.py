"""Networks that are no YOLOX become int8 programs: near the module, and exactly what the program says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from networks import NETWORKS, build
from reference import interpret
from torch import nn

from yolox.inference.backends import get_backend
from yolox.inference.backends.base import PrepareContext
from yolox.inference.backends.native import NativeRunner
from yolox.inference.convert.flat import FlatModule
from yolox.inference.methods import get_method
from yolox.kernels.library import SWITCH, host_variants

pytestmark = pytest.mark.backends
pytest.importorskip("onnx")


def images(height: int = 32, width: int = 32, count: int = 8) -> np.ndarray:
    """Smooth pictures, another one each."""
    source = torch.from_numpy(np.random.default_rng(0).random((count, 3, 9, 9)).astype(np.float32))
    smooth = nn.functional.interpolate(source, (height, width), mode="bicubic", align_corners=False)
    return np.asarray(smooth.clamp(0, 1).mul(255).round().numpy())


def prepare(module: nn.Module, folder: Path, sample: np.ndarray) -> NativeRunner:
    folder.mkdir(exist_ok=True)
    context = PrepareContext((sample,), ((sample,),), 2, folder)
    runner = get_backend("native").prepare(FlatModule(module).eval(), get_method("native_int8"), context)
    assert isinstance(runner, NativeRunner)
    return runner


def signal_to_noise(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return how much stronger the outputs are than the difference, in decibels."""
    return float(10 * np.log10(np.var(theirs) / np.square(ours - theirs).mean()))


@pytest.mark.parametrize("name", NETWORKS)
def test_common_networks_are_computed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for height, width in ((32, 32), (48, 24)):
        sample = images(height, width)
        module = build(name, torch.from_numpy(sample))
        with torch.inference_mode():
            theirs = [output.numpy() for output in FlatModule(module).eval()(torch.from_numpy(sample))]
        for variant in host_variants():
            monkeypatch.setenv(SWITCH, variant.name)
            runner = prepare(module, tmp_path / f"{variant.name} {height}", sample)
            assert runner.int8_share == 1.0
            exact = interpret(runner.executable.program, (sample[:2],))
            for whole, wanted, as_written in zip(runner(sample), theirs, exact, strict=True):
                assert whole.shape == wanted.shape
                assert signal_to_noise(whole, wanted) > 25
                assert signal_to_noise(whole[:2], as_written) > 30
            for ours, whole in zip(runner(sample[:1]), runner(sample), strict=True):
                np.testing.assert_array_equal(ours, whole[:1])
