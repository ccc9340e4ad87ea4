"""The instruction sets that the kernels are compiled for, and which of them a processor has."""

from __future__ import annotations

import platform
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """One build of all kernels.

    Args:
        name: How tests, file names and the environment variable ``YOLOX_KERNELS`` call it.
        flags: What the processor must have, as ``/proc/cpuinfo`` names it.
        options: What tells the compiler so.
        architecture: Of which processors the flags are, as ``platform.machine()`` names it; empty for all of them.
    """

    name: str
    flags: frozenset[str]
    options: tuple[str, ...]
    architecture: str = "x86_64"


def _variant(name: str, flags: str, options: str, architecture: str = "x86_64") -> Variant:
    return Variant(name, frozenset(flags.split()), tuple(options.split()), architecture)


_AVX2 = ("avx2 fma f16c bmi1 bmi2 movbe", "-march=x86-64-v3")
_AVX512 = (f"{_AVX2[0]} avx512f avx512bw avx512vl avx512dq avx512cd", "-march=x86-64-v4")
_VNNI = (f"{_AVX512[0]} avx512_vnni", f"{_AVX512[1]} -mavx512vnni")
_DOTPROD = ("asimd asimddp", "-march=armv8.2-a+dotprod")
_BF16 = (f"{_VNNI[0]} avx512_bf16", f"{_VNNI[1]} -mavx512bf16")

VARIANTS = (
    _variant("amx", f"{_BF16[0]} amx_tile amx_bf16 amx_int8", f"{_BF16[1]} -mamx-tile -mamx-bf16 -mamx-int8"),
    _variant("avx512-bf16", *_BF16),
    _variant("avx512-vnni", *_VNNI),
    _variant("avx-vnni", f"{_AVX2[0]} avx_vnni", f"{_AVX2[1]} -mavxvnni"),
    _variant("avx512", *_AVX512),
    _variant("avx2", *_AVX2),
    _variant("neon-i8mm", f"{_DOTPROD[0]} i8mm", f"{_DOTPROD[1]}+i8mm", "aarch64"),
    _variant("neon-dotprod", *_DOTPROD, "aarch64"),
    _variant("portable", "", "", ""),
)
"""The fastest first. The last one is for every processor: no instruction is written by name in it."""


def supported_variants(flags: Collection[str]) -> tuple[Variant, ...]:
    """Return the variants that a processor with these flags can run, the fastest first; there is at least one."""
    return tuple(variant for variant in VARIANTS if variant.flags <= set(flags))


def machine_variants() -> tuple[Variant, ...]:
    """Return the variants that processors with this one's architecture may have; a wheel holds all of them."""
    machine = platform.machine().replace("AMD64", "x86_64")
    return tuple(variant for variant in VARIANTS if variant.architecture in {machine, ""})
