"""The decoupled, anchor-free head: class, box and objectness predictions for every cell of every level."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from yolox.models.layers import ConvBnAct, conv_block
from yolox.structures import Predictions, Size

PRIOR_PROBABILITY = 0.01  # of an object and of a class before training (RetinaNet, section 4.1)


def _rows(feature: Tensor) -> Tensor:
    """Turn ``[B, C, H, W]`` into ``[B, H * W, C]``, without a copy where memory is channels_last."""
    return feature.permute(0, 2, 3, 1).flatten(1, 2)


class DetectionHead(nn.Module):
    """Predicts one box, one objectness and the classes for every cell.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of each level.
        width: Factor on the hidden channels.
        strides: Pixels per cell of each level.
        depthwise: Depthwise 3x3 convolutions (nano).
        act: See `yolox.models.layers.activation`.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: Sequence[int],
        width: float = 1.0,
        *,
        strides: Sequence[int] = (8, 16, 32),
        depthwise: bool = False,
        act: str = "silu",
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.strides = tuple(strides)
        hidden = int(256 * width)
        levels = range(len(self.strides))

        def branch() -> nn.Sequential:
            return nn.Sequential(*(conv_block(hidden, hidden, 3, depthwise=depthwise, act=act) for _ in range(2)))

        def prediction(out_channels: int) -> nn.ModuleList:
            return nn.ModuleList(nn.Conv2d(hidden, out_channels, 1) for _ in levels)

        self.cls_convs = nn.ModuleList(branch() for _ in levels)
        self.reg_convs = nn.ModuleList(branch() for _ in levels)
        self.cls_preds = prediction(num_classes)
        self.reg_preds = prediction(4)
        self.obj_preds = prediction(1)
        self.stems = nn.ModuleList(ConvBnAct(channels, hidden, 1, act=act) for channels in in_channels)
        self.reset_prior_()

    @torch.no_grad()
    def reset_prior_(self) -> None:
        """Set the biases so that every probability starts near 0.01: few of thousands of cells hold an object."""
        bias = -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY)
        for conv in (*self.cls_preds, *self.obj_preds):
            nn.init.constant_(conv.bias, bias)

    def forward(self, features: Sequence[Tensor]) -> Predictions:
        """Map one feature map per stride to raw predictions for all their cells."""
        boxes: list[Tensor] = []
        objectness: list[Tensor] = []
        classes: list[Tensor] = []
        for level, feature in enumerate(features):
            x = self.stems[level](feature)
            class_feature, box_feature = self.cls_convs[level](x), self.reg_convs[level](x)
            classes.append(_rows(self.cls_preds[level](class_feature)))
            boxes.append(_rows(self.reg_preds[level](box_feature)))
            objectness.append(_rows(self.obj_preds[level](box_feature)))
        return Predictions(
            torch.cat(boxes, dim=1),
            torch.cat(objectness, dim=1),
            torch.cat(classes, dim=1),
            tuple(Size(feature.shape[-2], feature.shape[-1]) for feature in features),
            self.strides,
        )
