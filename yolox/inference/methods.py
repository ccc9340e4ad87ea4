"""The table of methods: every way to run a model that the optimizer knows. A new method is one row here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from yolox.errors import MissingDependencyError, UsageError, did_you_mean
from yolox.inference.backends.base import Method
from yolox.precision_names import Precision

IPEX = "intel_extension_for_pytorch"
_FP32, _BF16, _FP16, _INT8 = Precision.FP32, Precision.BF16, Precision.FP16, Precision.INT8


def _row(name: str, backend: str, precision: Precision, *requires: str, **options: Any) -> Method:
    return Method(name, backend, precision, options, requires)


METHODS: tuple[Method, ...] = (
    # name, back end, precision, needed packages, options
    _row("original", "eager", _FP32),
    _row("channels_last", "eager", _FP32, channels_last=True),
    _row("fp32_channels_last", "eager", _FP32, channels_last=True),
    _row("fp32_ipex", "ipex", _FP32, IPEX),
    _row("fp32_ipex_channels_last", "ipex", _FP32, IPEX, channels_last=True),
    _row("bf16", "eager", _BF16),
    _row("bf16_channels_last", "eager", _BF16, channels_last=True),
    _row("bf16_ipex", "ipex", _BF16, IPEX),
    _row("bf16_ipex_channels_last", "ipex", _BF16, IPEX, channels_last=True),
    _row("static_int8", "inductor", _INT8, "neural_compressor", quantizer="neural_compressor"),
    _row("static_int8_ipex", "ipex", _INT8, IPEX, jit=True),
    _row("jit_fp32", "jit", _FP32),
    _row("jit_fp32_channels_last", "jit", _FP32, channels_last=True),
    _row("jit_bf16", "jit", _BF16),
    _row("jit_bf16_channels_last", "jit", _BF16, channels_last=True),
    _row("jit_fp32_ipex", "ipex", _FP32, IPEX, jit=True),
    _row("jit_fp32_ipex_channels_last", "ipex", _FP32, IPEX, jit=True, channels_last=True),
    _row("jit_bf16_ipex", "ipex", _BF16, IPEX, jit=True),
    _row("jit_bf16_ipex_channels_last", "ipex", _BF16, IPEX, jit=True, channels_last=True),
    _row("jit_int8", "jit", _INT8),
    _row("jit_int8_channels_last", "jit", _INT8, channels_last=True),
    _row("inductor_fp32", "inductor", _FP32),
    _row("inductor_bf16", "inductor", _BF16),
    _row("inductor_int8", "inductor", _INT8, "torchao", quantizer="pt2e"),
    _row("inductor_int8_bf16", "inductor", _INT8, "torchao", quantizer="pt2e", rest="bf16"),
    _row("openvino_fp32", "openvino", _FP32, "openvino", "onnx"),
    _row("openvino_bf16", "openvino", _BF16, "openvino", "onnx"),
    _row("openvino_fp16", "openvino", _FP16, "openvino", "onnx"),
    _row("openvino_int8", "openvino", _INT8, "openvino", "onnx", "nncf"),
    _row("openvino_int8_bf16", "openvino", _INT8, "openvino", "onnx", "nncf", rest="bf16"),
    _row("native_int8", "native", _INT8, "onnx"),
    _row("onnxruntime_fp32", "onnxruntime", _FP32, "onnx", "onnxruntime"),
    _row("onnxruntime_int8_qlinear", "onnxruntime", _INT8, "onnx", "onnxruntime", quantizer="qlinear"),
    _row("onnxruntime_int8_integer", "onnxruntime", _INT8, "onnx", "onnxruntime", quantizer="integer"),
)

ALIASES = {"int8": "static_int8", "fp32": "original", "ipex": "fp32_ipex"}

# the 13 of the published table and what today's libraries add
DEFAULT_METHODS = (
    *("original", "fp32_ipex", "bf16", "bf16_ipex", "static_int8", "jit_fp32", "jit_fp32_ipex"),
    *("jit_fp32_ipex_channels_last", "openvino_fp32", "openvino_int8", "onnxruntime_fp32"),
    *("onnxruntime_int8_qlinear", "onnxruntime_int8_integer", "channels_last", "jit_int8", "inductor_fp32"),
    *("inductor_bf16", "inductor_int8", "inductor_int8_bf16", "openvino_bf16", "openvino_int8_bf16"),
    "native_int8",
)

# how to get each package
INSTALL = {
    IPEX: "make ipex",
    "neural_compressor": "pip install 'neural-compressor[pt]'",
    "torchao": "pip install torchao",
    "openvino": "pip install openvino",
    "nncf": "pip install nncf",
    "onnx": "pip install onnx onnxscript",
    "onnxruntime": "pip install onnxruntime",
}

ACCELERATORS = (None, "openvino", "native", "onnxruntime", "jit", "inductor")
SEARCH_MODES = ("default", "all", "grid")
_BY_NAME = {method.name: method for method in METHODS}


@dataclass(frozen=True)
class MethodQuery:
    """Which methods a user wants.

    Args:
        search_mode: ``default``, ``all``, or ``grid`` (all that match the filters).
        only: These names and ``original``, nothing else; ``()`` lets the search mode decide.
        accelerators: Keep methods of these (``None``: plain PyTorch); ``()`` means any.
        precisions: Keep methods of these precisions; ``()`` means any.
        use_ipex: Keep only methods with, or only methods without IPEX; ``None`` means either.
        includes: Names added to the set.
        excludes: Names taken out of it.
    """

    search_mode: str = "default"
    only: tuple[str, ...] = ()
    accelerators: tuple[str | None, ...] = ()
    precisions: tuple[str, ...] = ()
    use_ipex: bool | None = None
    includes: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()

    @property
    def has_filter(self) -> bool:
        """Whether any filter is set; that switches the search mode to ``grid``."""
        return bool(self.accelerators or self.precisions or self.use_ipex is not None)

    def matches(self, method: Method) -> bool:
        """Whether ``method`` passes the filters."""
        return (
            (not self.accelerators or method.accelerator in self.accelerators)
            and (not self.precisions or method.precision.value in self.precisions)
            and (self.use_ipex is None or method.uses_ipex == self.use_ipex)
        )


def get_method(name: str) -> Method:
    """Return the method of that name or alias.

    Raises:
        UsageError: When there is none; the message names the nearest.
    """
    method = _BY_NAME.get(ALIASES.get(name, name))
    if method is None:
        hint = did_you_mean(name, (*_BY_NAME, *ALIASES))
        raise UsageError(f"unknown method '{name}'.{hint} Known methods: {', '.join(_BY_NAME)}.")
    return method


def select_methods(query: MethodQuery) -> tuple[Method, ...]:
    """Return the methods that ``query`` asks for, in the order of the table; ``original`` is always the first.

    Raises:
        UsageError: When a name or a filter value is unknown.
    """
    _check_values("search_mode", (query.search_mode,), SEARCH_MODES)
    _check_values("accelerator", query.accelerators, ACCELERATORS)
    _check_values("precision", query.precisions, tuple(precision.value for precision in Precision))
    if query.only:
        chosen = {get_method(name).name for name in query.only}
    elif query.search_mode == "default" and not query.has_filter:
        chosen = set(DEFAULT_METHODS)
    else:
        chosen = {method.name for method in METHODS if query.matches(method)}
    chosen |= {get_method(name).name for name in query.includes}
    chosen -= {get_method(name).name for name in query.excludes}
    chosen.add("original")
    return tuple(method for method in METHODS if method.name in chosen)


def missing_package(method: Method) -> MissingDependencyError | None:
    """Return the error that names the first package of ``method`` that is not importable, or ``None``.

    IPEX is not asked for here: its back end looks for an interpreter that has it.
    """
    for package in method.requires:
        if package != IPEX and find_spec(package) is None:
            return MissingDependencyError(package, INSTALL[package])
    return None


def _check_values(what: str, values: Iterable[str | None], known: tuple[str | None, ...]) -> None:
    for value in values:
        if value not in known:
            names = [str(name) for name in known]
            raise UsageError(
                f"{what} is '{value}'; expected one of {', '.join(names)}.{did_you_mean(str(value), names)}"
            )


def describe_method(method: Method) -> str:
    """Return what a method uses in a few words: ``openvino + int8``, ``ipex + jit + channels_last``."""
    parts = [method.backend] if method.backend != "eager" else []
    if method.backend == "ipex" and method.options.get("jit"):
        parts.append("jit")
    if method.precision is not Precision.FP32:
        parts.append(method.precision.value)
    parts += [str(method.options[key]) for key in ("quantizer", "rest") if key in method.options]
    if method.options.get("channels_last"):
        parts.append("channels_last")
    return " + ".join(parts) or method.name
