"""Kernels whose tile instructions are computed by ``tile_model.h``: for processors that have none."""

from __future__ import annotations

import zlib
from pathlib import Path

from yolox.kernels.library import host_variants
from yolox.kernels.variants import Variant

_HEADER = Path(__file__).with_suffix(".h")


def without_tiles() -> Variant:
    """Return the variant that the model stands on: the widest with AVX-512 VNNI of this processor, or portable."""
    others = [variant for variant in host_variants() if "amx_tile" not in variant.flags]
    return next((variant for variant in others if "avx512_vnni" in variant.flags), others[-1])


def with_tile_model() -> Variant:
    """Return the variant of AMX with the model in place of its instructions."""
    base = without_tiles()
    content = zlib.crc32(_HEADER.read_bytes())  # the name of a library changes with its options
    options = (*base.options, "-include", str(_HEADER), f"-DTILE_MODEL={content}")
    return Variant("amx-model", base.flags, options, base.architecture)


def variants() -> tuple[Variant, ...]:
    """Return the variants that this processor can run, and the one with the model."""
    return (*host_variants(), with_tile_model())
