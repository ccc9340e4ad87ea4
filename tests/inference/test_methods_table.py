from __future__ import annotations

import pytest

from yolox.errors import UsageError
from yolox.inference import methods
from yolox.inference.backends import BACKENDS
from yolox.inference.backends.base import Method
from yolox.inference.methods import (
    ALIASES,
    DEFAULT_METHODS,
    INSTALL,
    METHODS,
    MethodQuery,
    describe_method,
    get_method,
    missing_package,
    select_methods,
)

NANO = [
    *(
        "original",
        "fp32_channels_last",
        "fp32_ipex",
        "fp32_ipex_channels_last",
        "bf16",
        "bf16_channels_last",
        "bf16_ipex",
        "bf16_ipex_channels_last",
        "static_int8",
        "static_int8_ipex",
        "jit_fp32",
        "jit_fp32_channels_last",
        "jit_bf16",
        "jit_bf16_channels_last",
        "jit_fp32_ipex",
        "jit_fp32_ipex_channels_last",
        "jit_bf16_ipex",
        "jit_bf16_ipex_channels_last",
        "jit_int8",
        "jit_int8_channels_last",
        "openvino_fp32",
        "openvino_bf16",
        "openvino_fp16",
        "openvino_int8",
        "onnxruntime_fp32",
        "onnxruntime_int8_qlinear",
        "onnxruntime_int8_integer",
    ),
]
NEW = [
    *("channels_last", "inductor_fp32", "inductor_bf16", "inductor_int8", "inductor_int8_bf16", "openvino_int8_bf16"),
    "native_int8",
]
PUBLISHED = [
    *(
        "original",
        "fp32_ipex",
        "bf16",
        "bf16_ipex",
        "static_int8",
        "jit_fp32",
        "jit_fp32_ipex",
        "jit_fp32_ipex_channels_last",
        "openvino_fp32",
        "openvino_int8",
        "onnxruntime_fp32",
        "onnxruntime_int8_qlinear",
        "onnxruntime_int8_integer",
    ),
]


def names(query: MethodQuery) -> list[str]:
    return [method.name for method in select_methods(query)]


def test_all_methods_of_nano_and_the_new_ones_are_there_once() -> None:
    assert len(NANO) == 27
    assert sorted(method.name for method in METHODS) == sorted([*NANO, *NEW])


def test_the_default_holds_the_published_table() -> None:
    assert set(PUBLISHED) <= set(DEFAULT_METHODS)
    assert set(DEFAULT_METHODS) <= {method.name for method in METHODS}
    assert names(MethodQuery())[0] == "original"
    assert set(names(MethodQuery())) == set(DEFAULT_METHODS)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_rows_are_consistent(method: Method) -> None:
    assert method.backend in BACKENDS
    assert all(package in INSTALL for package in method.requires)
    assert (method.precision.value in method.name) or method.precision.value == "fp32"
    assert ("channels_last" in method.name) == bool(method.options.get("channels_last"))
    assert method.uses_ipex == ("ipex" in method.name)
    assert describe_method(method)


def test_aliases() -> None:
    assert get_method("int8").name == "static_int8"
    assert not set(ALIASES) & {method.name for method in METHODS}


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"'opnvino_int8'.*Did you mean 'openvino_int8'"):
        get_method("opnvino_int8")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (MethodQuery(accelerators=("openvino",)), {"openvino_fp32", "openvino_bf16", "openvino_int8"}),
        (MethodQuery(accelerators=("native",)), {"native_int8"}),
        (MethodQuery(precisions=("bf16",)), {"bf16", "jit_bf16", "openvino_bf16", "bf16_ipex", "inductor_bf16"}),
        (MethodQuery(use_ipex=True), {"fp32_ipex", "static_int8_ipex", "jit_bf16_ipex"}),
        (MethodQuery(includes=("jit_bf16",)), {"jit_bf16", "openvino_int8"}),
        (MethodQuery(only=("int8",)), {"static_int8"}),
        (MethodQuery(search_mode="all"), set(NANO)),
    ],
)
def test_selection_contains(query: MethodQuery, expected: set[str]) -> None:
    assert {"original"} | expected <= set(names(query))


def test_filters_exclude_and_leave_no_trace() -> None:
    assert "fp32_ipex" not in names(MethodQuery(use_ipex=False))
    assert all("openvino" in name or name == "original" for name in names(MethodQuery(accelerators=("openvino",))))
    assert names(MethodQuery(excludes=("original", "bf16")))[0] == "original"
    assert "bf16" not in names(MethodQuery(excludes=("bf16",)))
    names(MethodQuery(includes=("openvino_fp16",)))
    assert "openvino_fp16" not in names(MethodQuery())  # bigdl-nano kept included methods for later calls
    assert names(MethodQuery(only=("bf16",))) == ["original", "bf16"]


@pytest.mark.parametrize(
    "query",
    [
        MethodQuery(search_mode="fast"),
        MethodQuery(accelerators=("openvin",)),
        MethodQuery(precisions=("int4",)),
        MethodQuery(excludes=("nothing",)),
    ],
)
def test_unknown_values_are_refused(query: MethodQuery) -> None:
    with pytest.raises(UsageError, match=r"expected one of|unknown method"):
        select_methods(query)


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "find_spec", lambda name: None)
    error = missing_package(get_method("openvino_int8"))
    assert error is not None
    assert "pip install openvino" in str(error)
    assert missing_package(get_method("bf16")) is None
