"""Every network as a whole: shapes, gradients, priors, layouts."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from yolox.config import ModelConfig
from yolox.errors import UsageError
from yolox.experiments import EXPERIMENTS, get_experiment
from yolox.models.detector import build_detector, check_memory
from yolox.models.layers import SppBottleneck, space_to_depth
from yolox.structures import Predictions, Size

CLASSES = 7


def _config(name: str) -> ModelConfig:
    return replace(EXPERIMENTS[name].model, num_classes=CLASSES)


def _images(batch: int = 2, height: int = 64, width: int = 96) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, 3, height, width, generator=generator) * 255


def _check_shapes(predictions: Predictions, batch: int, size: Size) -> None:
    levels = tuple(Size(size.height // stride, size.width // stride) for stride in (8, 16, 32))
    num_anchors = sum(height * width for height, width in levels)
    assert predictions.level_sizes == levels
    assert predictions.strides == (8, 16, 32)
    assert predictions.boxes.shape == (batch, num_anchors, 4)
    assert predictions.objectness.shape == (batch, num_anchors, 1)
    assert predictions.classes.shape == (batch, num_anchors, CLASSES)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_shapes_of_every_network(name: str) -> None:
    with torch.device("meta"):
        detector = build_detector(_config(name))
        _check_shapes(detector(_images_on_meta()), 2, Size(64, 96))
    assert detector.num_classes == CLASSES


def _images_on_meta() -> Tensor:
    return torch.empty(2, 3, 64, 96, device="meta")


@pytest.mark.parametrize("name", ["yolox_nano", "yolox_tiny", "yolox_s"])
def test_every_parameter_learns(name: str) -> None:
    detector = build_detector(_config(name)).train()
    predictions = detector(_images(height=64, width=64))
    _check_shapes(predictions, 2, Size(64, 64))
    sum(value.square().mean() for value in predictions[:3]).backward()
    for key, parameter in detector.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


def test_a_darknet53_network_runs_backward() -> None:
    detector = build_detector(_config("yolov3")).train()
    sum(value.mean() for value in detector(_images(1, 64, 64))[:3]).backward()
    gradient = detector.get_parameter("backbone.backbone.stem.0.conv.weight").grad
    assert gradient is not None
    assert gradient.isfinite().all()


def test_training_and_evaluation_return_the_same_type() -> None:
    detector = build_detector(_config("yolox_nano"))
    for mode in (True, False):
        assert isinstance(detector.train(mode)(_images()), Predictions)


def test_probabilities_start_at_one_percent() -> None:
    predictions = build_detector(_config("yolox_nano")).eval()(_images() / 255)
    for logits in (predictions.objectness, predictions.classes):
        assert logits.sigmoid().mean().item() == pytest.approx(0.01, rel=0.05)


def test_batch_normalisation_has_the_official_constants() -> None:
    norms = [m for m in build_detector(_config("yolox_nano")).modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 104
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.03)}


@pytest.mark.parametrize("name", ["yolox_nano", "yolov3"])
def test_memory_layout_changes_nothing_but_the_layout(name: str) -> None:
    detector = build_detector(_config(name)).eval()
    with torch.inference_mode():
        expected = detector(_images())
        detector = detector.to(memory_format=torch.channels_last)
        features = detector.backbone(_images().contiguous(memory_format=torch.channels_last))
        assert all(feature.is_contiguous(memory_format=torch.channels_last) for feature in features)
        for value, wanted in zip(detector.head(features)[:3], expected[:3], strict=True):
            torch.testing.assert_close(value, wanted, rtol=1e-3, atol=1e-4)


def test_space_to_depth_has_the_official_order() -> None:
    images = torch.arange(2.0 * 3 * 4 * 4).view(2, 3, 4, 4)
    for layout in (torch.contiguous_format, torch.channels_last):
        blocks = space_to_depth(images.contiguous(memory_format=layout))
        for block, (row, column) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
            assert torch.equal(blocks[:, 3 * block : 3 * block + 3], images[:, :, row::2, column::2])


def test_cascaded_pooling_equals_windows_of_5_9_13() -> None:
    pooling = SppBottleneck(4, 4)
    pooling.conv1 = pooling.conv2 = nn.Identity()  # type: ignore[assignment]
    x = torch.randn(2, 4, 11, 17, generator=torch.Generator().manual_seed(0))
    expected = [x, *(nn.functional.max_pool2d(x, side, 1, side // 2) for side in (5, 9, 13))]
    assert torch.equal(pooling(x), torch.cat(expected, dim=1))


def test_activations() -> None:
    config = get_experiment("yolox_nano").model
    kinds: dict[Literal["silu", "relu", "lrelu"], type[nn.Module]]
    kinds = {"silu": nn.SiLU, "relu": nn.ReLU, "lrelu": nn.LeakyReLU}
    for act, kind in kinds.items():
        with torch.device("meta"):
            detector = build_detector(replace(config, act=act))
        assert sum(isinstance(module, kind) for module in detector.modules()) == 104
    with pytest.raises(UsageError, match="got 'gelu', expected silu, relu or lrelu"):
        build_detector(replace(config, act="gelu"))  # type: ignore[arg-type]


def test_a_network_that_does_not_fit_into_memory_is_refused_before_it_takes_any() -> None:
    large = ModelConfig(num_classes=80, depth=1.33, width=5.0)
    check_memory(large, available=2**40)
    with pytest.raises(UsageError, match=r"width 5, .* 1,[0-9]{3} million weights, which take 5.* GiB; 1.0 GiB are"):
        check_memory(large, available=2**30)
    with pytest.raises(UsageError, match="Choose a smaller width or depth"):
        check_memory(large, copies=4, available=10 * 2**30)
    check_memory(ModelConfig(depth=1.33, width=1.25), available=0)  # as large as the largest published: not counted
