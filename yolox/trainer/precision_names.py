"""The spellings of the precisions of a run."""

from __future__ import annotations

from typing import Literal

from yolox.errors import UsageError

__all__ = ["PRECISIONS", "PrecisionName", "canonical_precision"]

PrecisionName = Literal["64", "32", "16", "bf16"]
PRECISIONS: dict[str, PrecisionName] = {
    **dict.fromkeys(("64", "64-true", "fp64", "float64", "double"), "64"),
    **dict.fromkeys(("32", "32-true", "fp32", "float32", "float"), "32"),
    **dict.fromkeys(("16", "16-mixed", "fp16", "float16", "half"), "16"),
    **dict.fromkeys(("bf16", "bf16-mixed", "bfloat16"), "bf16"),
}
"""Every spelling that is understood, and the one used from there on."""


def canonical_precision(precision: int | str) -> PrecisionName:
    """Return the one spelling of a precision.

    Raises:
        UsageError: When it is none of 64, 32, 16 and bf16.
    """
    name = PRECISIONS.get(str(precision).lower())
    if name is None:
        raise UsageError(f"unknown precision '{precision}'; expected 64, 32, 16 or bf16.")
    return name
