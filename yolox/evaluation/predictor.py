"""The detector made quick for a few thousand images: folded normalisation, channels last, fp32 or bf16."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from yolox.evaluation.loop import Predict
from yolox.inference.convert.folding import fold_normalisations
from yolox.models.decoding import DecodedDetector
from yolox.models.detector import Detector
from yolox.precision_names import EvalPrecision

SMALL = (64, 64)
"""Height and width of an image that shows the order of the layers."""


def build_predict(detector: Detector, precision: EvalPrecision = "32") -> Predict:
    """Return a function from uint8 images ``[B, 3, H, W]`` to boxes and scores; ``detector`` stays as it is.

    Args:
        detector: The network.
        precision: ``32``, or ``bf16`` for the network; decoding is float32 in both.
    """
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    plain = DecodedDetector(copy.deepcopy(detector)).eval()
    model = fold_normalisations(plain, (torch.zeros(1, 3, *SMALL),))
    model = model.to(kind).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def predict(images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            # whole numbers up to 255 are exact in bf16
            boxes, scores = model(images.to(dtype=kind, memory_format=torch.channels_last))
        return boxes, scores

    return predict
