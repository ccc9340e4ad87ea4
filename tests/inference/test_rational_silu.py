"""SiLU as a quotient of polynomials: how close it is, and that nothing else is rewritten."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from yolox.inference.backends.rational_silu import use_rational_silu_

pytestmark = pytest.mark.backends
openvino = pytest.importorskip("openvino", reason="needs openvino: pip install openvino")


def _run(graph: Any, values: np.ndarray) -> np.ndarray:
    compiled = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    result: np.ndarray = compiled([values])[compiled.output(0)]
    return result


def _silu_graph(factor_is_input: bool) -> Any:
    opset = openvino.opset13
    x = opset.parameter([1, 4001], np.float32)
    factor = x if factor_is_input else opset.add(x, opset.constant(np.float32(1)))
    return openvino.Model([opset.multiply(factor, opset.sigmoid(x))], [x])


def test_the_error_is_below_the_rounding_of_bf16() -> None:
    x = np.linspace(-30, 30, 4001, dtype=np.float32)[None]
    graph = _silu_graph(factor_is_input=True)
    exact = x / (1 + np.exp(-x.astype(np.float64)))
    assert use_rational_silu_(graph, openvino.opset13) == 1
    assert not any(node.get_type_name() == "Sigmoid" for node in graph.get_ops())
    error = np.abs(_run(graph, x) - exact)
    assert (error <= np.abs(x) * 5e-5 + 1e-6).all()  # of the sigmoid; bf16 rounds it by up to 2e-3


def test_other_uses_of_a_sigmoid_are_left_alone() -> None:
    graph = _silu_graph(factor_is_input=False)
    assert use_rational_silu_(graph, openvino.opset13) == 0
    assert any(node.get_type_name() == "Sigmoid" for node in graph.get_ops())
