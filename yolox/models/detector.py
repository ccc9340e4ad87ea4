"""The detector as one module, how to build it from a configuration, and its size in numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from yolox.config import ModelConfig
from yolox.cpu.cgroups import require_memory
from yolox.models.head import DetectionHead
from yolox.models.necks import PaFpn, YoloFpn
from yolox.structures import Predictions, Size

_LARGEST_PUBLISHED = ModelConfig(depth=1.33, width=1.25)


class Detector(nn.Module):
    """A YOLOX network. Its state-dict keys are those of the official weights.

    Args:
        backbone: Maps images to one feature map per stride.
        head: Maps the feature maps to predictions.
    """

    def __init__(self, backbone: PaFpn | YoloFpn, head: DetectionHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    @property
    def num_classes(self) -> int:
        """Number of classes it predicts."""
        return self.head.num_classes

    def forward(self, images: Tensor) -> Predictions:
        """Return raw predictions, in training and in evaluation alike.

        Args:
            images: ``[B, 3, H, W]`` BGR 0...255, float or uint8; H and W multiples of 32.
        """
        predictions: Predictions = self.head(self.backbone(images))
        return predictions


def build_detector(config: ModelConfig) -> Detector:
    """Return the network that ``config`` describes, with fresh weights from torch's default generator.

    Raises:
        UsageError: When its weights do not fit into memory.
    """
    check_memory(config)
    return _build(config)


def check_memory(config: ModelConfig, copies: int = 1, available: int | None = None) -> None:
    """Check, before any is taken, that there is memory for the weights of a network.

    Args:
        config: The network. One that is no larger than YOLOX-X is not counted.
        copies: Arrays as large as the weights.
        available: Bytes; by default what this process may use.

    Raises:
        UsageError: When there is not.
    """
    if config.width <= _LARGEST_PUBLISHED.width and config.depth <= _LARGEST_PUBLISHED.depth:
        return
    with torch.device("meta"):
        count = sum(weights.numel() for weights in _build(config).state_dict().values())
    shape = f"width {config.width:g}, depth {config.depth:g} and {config.num_classes} classes"
    what = f"a network of {shape} has {count / 1e6:,.0f} million weights, which take"
    require_memory(4 * count * copies, what, "Choose a smaller width or depth.", available)


def _build(config: ModelConfig) -> Detector:
    if config.backbone == "darknet53":
        backbone: PaFpn | YoloFpn = YoloFpn(act=config.act)
    else:
        backbone = PaFpn(config.depth, config.width, depthwise=config.depthwise, act=config.act)
    head = DetectionHead(
        config.num_classes,
        backbone.out_channels,
        config.width,
        strides=config.fpn_strides,
        depthwise=config.depthwise,
        act=config.act,
    )
    return Detector(backbone, head)


@dataclass(frozen=True)
class ModelSummary:
    """Size of a network.

    Args:
        num_parameters: Trained numbers.
        macs: Multiply-accumulate operations of all convolutions for one image.
        size: Size of that image.
    """

    num_parameters: int
    macs: int
    size: Size

    @property
    def gflops(self) -> float:
        """Floating-point operations for one image, in 10^9, two for each multiply-accumulate."""
        return 2e-9 * self.macs

    def __str__(self) -> str:
        """Return one line for a log."""
        size = f"{self.size.height}x{self.size.width}"
        return f"{self.num_parameters / 1e6:.2f} M parameters, {self.gflops:.2f} GFLOPs at {size}"


def summarize(config: ModelConfig, size: Size) -> ModelSummary:
    """Count parameters and operations of a network without computing or storing anything."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        detector = _build(config).eval()
        detector(torch.empty(1, 3, *size))
    num_parameters = sum(parameter.numel() for parameter in detector.parameters())
    return ModelSummary(num_parameters, counter.get_total_flops() // 2, size)
