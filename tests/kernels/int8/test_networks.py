"""Networks that are no YOLOX become int8 programs: near the module, and exactly what the program says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from networks import NETWORKS, build, images, prepare, signal_to_noise
from reference import interpret

from yolox.inference.convert.flat import FlatModule
from yolox.kernels.library import SWITCH, host_variants

pytestmark = pytest.mark.backends
pytest.importorskip("onnx")


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
