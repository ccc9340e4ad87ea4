"""SiLU without an exponential, for OpenVINO graphs.

The CPU plugin computes ``x * sigmoid(x)`` with an exponential and a division behind each convolution; in a small
network that is a third of the time. Here the sigmoid becomes 1/2 plus an odd quotient of polynomials, which the plugin
compiles into one loop of multiply-adds. The coefficients come from a minimax fit on [0, 10] (reweighted least squares).
"""

from __future__ import annotations

from typing import Any

__all__ = ["lighten_silu_"]

LIMIT = 10.0
"""Beyond it the sigmoid is taken as constant: 4.5e-5 from 0 or 1."""
# numerator and denominator of (sigmoid(x) - 1/2) / x as polynomials in x^2, highest power first
HALF = (
    (1.0236026596280398e-05, 0.006358051783650215, 0.2499526291174814),
    (0.000790053134678136, 0.10862767132954804, 1.0),
)
"""Largest error 2.2e-5; bf16 rounds a sigmoid by up to 2e-3."""


def lighten_silu_(graph: Any, opset: Any) -> int:
    """Rewrite every ``x * Sigmoid(x)`` of ``graph`` in place and return how many there were.

    Args:
        graph: An ``openvino.Model``.
        opset: The operations to write with (``openvino.opset13``).
    """
    count = 0
    for node in list(graph.get_ordered_ops()):
        if node.get_type_name() != "Sigmoid":
            continue
        source = node.input_value(0)
        product = _only_user(node)
        if product is None or product.get_type_name() != "Multiply" or not _takes(product, source):
            continue
        silu = _rational_silu(source, opset)
        silu.set_friendly_name(product.get_friendly_name())
        for target in list(product.output(0).get_target_inputs()):
            target.replace_source_output(silu.output(0))
        count += 1
    if count:
        graph.validate_nodes_and_infer_types()
    return count


def _rational_silu(x: Any, opset: Any) -> Any:
    clamped = opset.clamp(x, -LIMIT, LIMIT)
    square = opset.multiply(clamped, clamped)
    numerator, denominator = (_polynomial(square, coefficients, x, opset) for coefficients in HALF)
    odd = opset.divide(opset.multiply(clamped, numerator), denominator)
    return opset.multiply(x, opset.add(odd, _constant(0.5, x, opset)))


def _polynomial(variable: Any, coefficients: tuple[float, ...], like: Any, opset: Any) -> Any:
    """Return Horner's scheme."""
    value = _constant(coefficients[0], like, opset)
    for coefficient in coefficients[1:]:
        value = opset.add(opset.multiply(value, variable), _constant(coefficient, like, opset))
    return value


def _constant(value: float, like: Any, opset: Any) -> Any:
    return opset.constant(value, like.get_element_type())


def _only_user(node: Any) -> Any:
    targets = list(node.output(0).get_target_inputs())
    return targets[0].get_node() if len(targets) == 1 else None


def _takes(product: Any, source: Any) -> bool:
    """Whether one of the two factors is ``source``."""
    name = source.get_node().get_friendly_name()
    return any(
        product.input_value(number).get_node().get_friendly_name() == name
        and product.input_value(number).get_index() == source.get_index()
        for number in (0, 1)
    )
