"""SiLU without an exponential, for OpenVINO graphs.

The CPU plugin computes ``x * sigmoid(x)`` with an exponential and a division behind each convolution; in a small
network that is a third of the time. Here ``sigmoid(x) - 1/2`` becomes an odd quotient of polynomials, which the plugin
compiles into one loop of a dozen operations.
"""

from __future__ import annotations

from typing import Any

LIMIT = 10.0
"""Beyond it the sigmoid is taken as constant: 4.5e-5 from 0 or 1."""
# With v = x / SCALE, sigmoid(x) - 1/2 is about v (v^4 + P1 v^2 + P0) / (v^4 + Q1 v^2 + Q0): a minimax fit on [0, 10]
# (reweighted least squares), scaled so that both leading coefficients are 1. The error is at most 2.2e-5; bf16 rounds a
# sigmoid by up to 2e-3.
SCALE = 77.18357579934661
P1, P0 = 0.10426603659473142, 0.0006880606540395073
Q1, Q0 = 0.023079924255534845, 3.566515532781435e-05


def use_rational_silu_(graph: Any, opset: Any) -> int:
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
    def constant(value: float) -> Any:
        return opset.constant(value, x.get_element_type())

    v = opset.clamp(opset.multiply(x, constant(1 / SCALE)), -LIMIT / SCALE, LIMIT / SCALE)
    square = opset.multiply(v, v)
    numerator = opset.add(opset.multiply(opset.add(square, constant(P1)), square), constant(P0))
    denominator = opset.add(opset.multiply(opset.add(square, constant(Q1)), square), constant(Q0))
    return opset.multiply(x, opset.add(opset.divide(opset.multiply(v, numerator), denominator), constant(0.5)))


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
