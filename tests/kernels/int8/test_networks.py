"""Networks that are no YOLOX become int8 programs: near the module, and exactly what the program says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from int8_networks import NETWORKS, build, images, prepare, signal_to_noise
from reference import interpret

from yolox.inference.backends.torch_runner import FlatModule
from yolox.kernels.int8.executable import Executable
from yolox.kernels.library import SWITCH, host_variants

pytestmark = pytest.mark.backends
pytest.importorskip("onnx")


SIZES = {"resnet": [(32, 32), (48, 24)], "unet": [(32, 32), (40, 56)]}


@pytest.mark.parametrize(("name", "size"), [(name, size) for name in NETWORKS for size in SIZES.get(name, [(32, 32)])])
def test_common_networks_are_computed(
    name: str, size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = images(*size)
    module = build(name, torch.from_numpy(sample))
    with torch.inference_mode():
        theirs = [output.numpy() for output in FlatModule(module).eval()(torch.from_numpy(sample))]
    runner = prepare(module, tmp_path, sample)
    assert runner.int8_share == 1.0
    program = runner.executable.program
    exact = interpret(program, (sample[:2],))
    for variant in host_variants():
        monkeypatch.setenv(SWITCH, variant.name)
        executable = Executable(program)
        results = executable.run((sample,), 2, 1)
        for whole, wanted, as_written in zip(results, theirs, exact, strict=True):
            assert whole.shape == wanted.shape
            assert signal_to_noise(whole, wanted) > 25
            assert signal_to_noise(whole[:2], as_written) > 30
        for team in (1, 2):
            for ours, whole in zip(executable.run((sample[:1],), 1, team), results, strict=True):
                np.testing.assert_array_equal(ours, whole[:1])


def test_weights_rounded_in_pairs_give_nearly_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "avx2" not in [variant.name for variant in host_variants()]:
        pytest.skip("this processor has no AVX2")
    monkeypatch.setenv(SWITCH, "avx2")
    module = build("resnext", torch.from_numpy(images()))
    (ours,) = prepare(module, tmp_path, images())(images())
    with torch.inference_mode():
        assert signal_to_noise(ours, module(torch.from_numpy(images())).numpy()) > 25
