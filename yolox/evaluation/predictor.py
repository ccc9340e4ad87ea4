"""The detector made quick for a few thousand images: folded normalisation, channels last, fp32 or bf16."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from yolox.evaluation.loop import Predict
from yolox.models.decoding import DecodedDetector
from yolox.models.detector import Detector
from yolox.models.layers import ConvBnAct

__all__ = ["EvalPrecision", "build_predict", "fold_normalisation"]

EvalPrecision = Literal["32", "bf16"]


def fold_normalisation(detector: Detector) -> Detector:
    """Return a copy in evaluation mode whose batch normalisations are part of the convolutions before them."""
    folded = copy.deepcopy(detector).eval()
    for block in folded.modules():
        if isinstance(block, ConvBnAct) and isinstance(block.bn, nn.BatchNorm2d):
            block.conv = fuse_conv_bn_eval(block.conv, block.bn)
            block.bn = nn.Identity()  # type: ignore[assignment]
    return folded


def build_predict(detector: Detector, precision: EvalPrecision = "32") -> Predict:
    """Return a function from uint8 images ``[B, 3, H, W]`` to boxes and scores; ``detector`` stays as it is.

    Args:
        detector: The network.
        precision: ``32``, or ``bf16`` for the network; decoding is float32 in both.
    """
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    model = DecodedDetector(fold_normalisation(detector)).eval()
    model = model.to(kind).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def predict(images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            # whole numbers up to 255 are exact in bf16
            boxes, scores = model(images.to(dtype=kind, memory_format=torch.channels_last))
        return boxes, scores

    return predict
