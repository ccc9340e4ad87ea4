"""What no kernel computes runs in ONNX Runtime before and after the program; the row says how much is ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from int8_networks import NETWORKS, images, prepare, signal_to_noise
from torch import Tensor, nn

from yolox.errors import ModelFileError, YoloxError
from yolox.inference import InferenceOptimizer
from yolox.inference.artifacts.model import load_model, save_model
from yolox.inference.backends.torch_runner import FlatModule

pytestmark = pytest.mark.backends
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


class Surrounded(nn.Module):
    """A network of ours between operators that are not, and a small one beside it that is not ours at all."""

    def __init__(self) -> None:
        super().__init__()
        self.network = NETWORKS["mobilenet_v2"]()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.attention = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = self.network(torch.sin(x / 255) * 255)
        return found, self.attention(self.patches(x).flatten(2).transpose(1, 2)), (found * 2).softmax(1)


@pytest.fixture(scope="module")
def surrounded() -> nn.Module:
    torch.manual_seed(0)
    module = Surrounded()
    with torch.no_grad():
        module.train()(torch.from_numpy(images()))
    return module.eval()


def expected(module: nn.Module) -> list[np.ndarray]:
    with torch.inference_mode():
        return [output.numpy() for output in FlatModule(module).eval()(torch.from_numpy(images()))]


def test_unknown_operators_run_on_both_sides(surrounded: nn.Module, tmp_path: Path) -> None:
    runner = prepare(surrounded, tmp_path, images())
    assert runner.int8_share is not None
    assert 0.9 < runner.int8_share < 1.0
    for ours, theirs in zip(runner(images()), expected(surrounded), strict=True):
        assert ours.shape == theirs.shape
        assert signal_to_noise(ours, theirs) > 25
    for ours, whole in zip(runner(images()[:3]), runner(images()), strict=True):
        np.testing.assert_allclose(ours, whole[:3], atol=1e-4)


class Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


def test_a_network_of_unknown_operators_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(YoloxError, match=r"^no 8-bit kernel for Sin .*Use another method\.$") as caught:
        prepare(Unknown(), tmp_path, images())
    assert "\n" not in str(caught.value)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = NETWORKS["resnet"]()

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.network(x).softmax(1)
        return scores


@pytest.mark.slow
def test_the_optimizer_gives_a_row_that_is_saved_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Classifier().eval()
    sample = torch.from_numpy(images())
    loader = [(sample, torch.zeros(len(sample)))]
    optimizer = InferenceOptimizer()
    optimizer.optimize(module, training_data=loader, accelerator="native", precision="int8", latency_sample_num=5)
    row = optimizer.report["native_int8"]
    assert row.status == "successful", row
    assert row.int8_share is not None
    assert row.int8_share > 0.99
    model = optimizer.get_model("native_int8")
    save_model(model, tmp_path / "saved")
    loaded = load_model(tmp_path / "saved")
    with torch.inference_mode():
        assert signal_to_noise(np.asarray(loaded(images())), module(sample).numpy()) > 20
    (tmp_path / "saved" / "after.onnx").unlink()
    with pytest.raises(ModelFileError, match=r"after\.onnx"):
        load_model(tmp_path / "saved")
