"""The names of precisions: of a run (Lightning's, ``32``) and of a method of inference (``fp32``)."""

from __future__ import annotations

from enum import Enum
from typing import Literal

from yolox.errors import UsageError

PrecisionName = Literal["64", "32", "16", "bf16"]
"""What a network is trained in."""

EvalPrecision = Literal["32", "bf16"]
"""What a network in PyTorch is evaluated in."""

_SPELLINGS: dict[str, PrecisionName] = {
    **dict.fromkeys(("64", "64-true", "fp64", "float64", "double"), "64"),
    **dict.fromkeys(("32", "32-true", "fp32", "float32", "float"), "32"),
    **dict.fromkeys(("16", "16-mixed", "fp16", "float16", "half"), "16"),
    **dict.fromkeys(("bf16", "bf16-mixed", "bfloat16"), "bf16"),
}
_EVALUATED: dict[str, EvalPrecision] = {"32": "32", "bf16": "bf16"}


class Precision(str, Enum):
    """What the heavy layers of a method of inference compute in."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"


def canonical_precision(precision: int | str) -> PrecisionName:
    """Return the one spelling of a precision.

    Raises:
        UsageError: When it is none of 64, 32, 16 and bf16.
    """
    name = _SPELLINGS.get(str(precision).lower())
    if name is None:
        raise UsageError(f"unknown precision '{precision}'; expected 64, 32, 16 or bf16.")
    return name


def eval_precision(precision: int | str) -> EvalPrecision:
    """Return the one spelling of a precision to evaluate in.

    Raises:
        UsageError: When it is neither 32 nor bf16.
    """
    name = _EVALUATED.get(canonical_precision(precision))
    if name is None:
        raise UsageError(f"precision is '{precision}'; expected 32 or bf16.")
    return name
