"""The rows of the table: every engine in every precision, and the environment that has it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.protocol import ROOT, native_precisions


@dataclass(frozen=True)
class Engine:
    """One row.

    Args:
        name: Name of the row.
        adapter: Module of this package that prepares and loads it.
        options: What the adapter needs to tell its rows apart.
        environment: ``.venv-NAME`` that has the library; empty for our own.
        keeps_accuracy: Whether layers stay in float until the accuracy holds; such rows need labelled images.
        reason: Why there is no such row to measure, in one line; empty where there is.
    """

    name: str
    adapter: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: str = ""
    keeps_accuracy: bool = False
    reason: str = ""

    @property
    def interpreter(self) -> Path:
        """The Python that has the library."""
        return ROOT / f".venv-{self.environment}" / "bin" / "python" if self.environment else Path(sys.executable)

    @property
    def is_stock(self) -> bool:
        """Whether this is plain PyTorch as it comes, the allocator included."""
        return self.name == ORIGINAL

    @property
    def obstacle(self) -> str:
        """Why the row cannot be measured on this machine, or nothing."""
        if self.reason:
            return self.reason
        if not self.interpreter.exists():
            return f"there is no {self.interpreter.parents[1].name}: make engines"
        if "bf16" in self.name and "bf16" not in native_precisions():
            return "this processor has no bf16 arithmetic"
        return ""


ORIGINAL = "original"
MIXED = ", mixed"


def _ours(method: str, **more: Any) -> Engine:
    return Engine(method, "ours", {"method": method, **more})


def _mixed(method: str) -> Engine:
    return Engine(f"{method}{MIXED}", "ours", {"method": method}, keeps_accuracy=True)


ENGINES = (
    _ours(ORIGINAL, needs_module=True),
    _ours("channels_last", needs_module=True),
    _ours("bf16", needs_module=True),
    *(_ours(f"inductor_{kind}") for kind in ("fp32", "bf16", "int8")),
    *(_ours(f"openvino_{kind}") for kind in ("fp32", "bf16", "int8")),
    _mixed("openvino_int8"),
    *(_ours(f"onnxruntime_{kind}") for kind in ("fp32", "int8_qlinear")),
    _mixed("onnxruntime_int8_qlinear"),
    Engine("ncnn_fp32", "ncnn", environment="ncnn"),
    Engine("ncnn_bf16", "ncnn", {"bf16": True}, "ncnn"),
    Engine("ncnn_int8", reason="ncnn's Python package lacks the programs that calibrate and quantize (ncnn2table)"),
    Engine("litert_fp32", "litert", environment="litert"),
    Engine("litert_int8", "litert", {"int8": True}, "litert"),
    Engine(f"litert_int8{MIXED}", "litert", {"int8": True, "mixed": True}, "litert", keeps_accuracy=True),
    Engine("executorch_fp32", "executorch", environment="executorch"),
    Engine("executorch_int8", "executorch", {"int8": True}, "executorch"),
    Engine(f"executorch_int8{MIXED}", "executorch", {"int8": True, "mixed": True}, "executorch", keeps_accuracy=True),
    _ours("native_int8"),
    _mixed("native_int8"),
)
