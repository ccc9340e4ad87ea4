"""The part of an ONNX file that the 8-bit layers compute, and what is left before and after it for another engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yolox.errors import ModelFileError
from yolox.kernels.int8.float_ir import Network
from yolox.kernels.int8.onnx_graph import UnsupportedOperatorError
from yolox.kernels.int8.onnx_reader import SIZE_READERS, read_file, read_model


@dataclass(frozen=True)
class Cut:
    """A network in up to three parts, each of which reads what the parts before it and the inputs give, by name.

    Args:
        network: What the 8-bit layers compute.
        outputs: The names in the file of what ``network`` returns.
        before: An ONNX file that runs first, or ``None``.
        after: An ONNX file that runs last, or ``None``.
        sources: The names of the whole file's inputs.
        results: The names of its outputs.
        share: The part of the file's multiply-accumulates that ``network`` does.
        reason: Why the first operator that is not in ``network`` cannot be; empty if all are.
    """

    network: Network
    outputs: tuple[str, ...]
    before: bytes | None
    after: bytes | None
    sources: tuple[str, ...]
    results: tuple[str, ...]
    share: float
    reason: str


def cut_network(path: Path) -> Cut:
    """Return the largest part of an ONNX file, by its arithmetic, that the 8-bit layers compute in one piece.

    Raises:
        ModelFileError: When the file is absent, damaged or no model.
        UnsupportedOperatorError: When that part has no arithmetic.
    """
    with _as_file_error(path):
        return _cut(_Whole(read_file(path)))


def _cut(whole: _Whole) -> Cut:
    unknown: set[str] = set()
    first: UnsupportedOperatorError | None = None
    while True:
        before, middle, after = whole.split(unknown)
        share = whole.share(middle)
        if first is not None and not share:
            raise first
        model = whole.part(middle, {*whole.closed(before), *whole.closed(after)})
        try:
            network = read_model(model)
        except UnsupportedOperatorError as error:
            if error.output in unknown:  # what it names was taken away already
                raise
            unknown.add(error.output)
            first = first or error
            continue
        files = (whole.part(one, set(whole.nodes)) if one else None for one in (before, after))
        first_file, last_file = (None if file is None else file.SerializeToString() for file in files)
        outputs = tuple(value.name for value in model.graph.output)
        return Cut(
            network,
            outputs,
            first_file,
            last_file,
            whole.sources,
            whole.results,
            share,
            str(first or "").removesuffix(" Use another method."),
        )


class _Whole:
    """A file's graph: its operators by the name of their first output, and who needs whom.

    Args:
        model: The file, with the shapes of its values.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        graph = model.graph
        self.nodes: dict[str, Any] = {node.output[0]: node for node in graph.node}
        self.results = tuple(value.name for value in graph.output)
        self.sources = tuple(value.name for value in graph.input)
        self._values = {value.name: value for value in (*graph.input, *graph.value_info, *graph.output)}
        self._constants = {item.name: item for item in graph.initializer}
        self._makers = {output: name for name, node in self.nodes.items() for output in node.output if output}
        self.needed = self._ancestors(self.results, sizes=False)
        self._order = [name for name in self.nodes if name in self.needed]
        shapes = self._shapes()
        self._products = {name: _multiply_accumulates(self.nodes[name], shapes) for name in self.needed}

    def _reads(self, name: str, *, sizes: bool = True) -> list[str]:
        """Return the operators that an operator reads, those of mere sizes included or not."""
        node = self.nodes[name]
        inputs = node.input[:1] if not sizes and node.op_type in SIZE_READERS else node.input
        return [self._makers[one] for one in inputs if one in self._makers]

    def _ancestors(self, values: Iterable[str], *, sizes: bool) -> set[str]:
        """Return the operators that some values come from."""
        found: set[str] = set()
        left = [self._makers[value] for value in values if value in self._makers]
        while left:
            name = left.pop()
            if name not in found:
                found.add(name)
                left += self._reads(name, sizes=sizes)
        return found

    def split(self, unknown: set[str]) -> tuple[set[str], set[str], set[str]]:
        """Return what comes before, in and after the part with the most arithmetic that holds nothing unknown.

        Args:
            unknown: Outputs of operators that are outside of it.
        """
        outside = [name for name in self._order if {*self.nodes[name].output} & unknown]
        best: tuple[float, set[str], set[str], set[str]] | None = None
        for count in range(len(outside) + 1):
            before = self._ancestors(outside[:count], sizes=False)
            after: set[str] = set(outside[count:])
            for name in self._order:
                if after.intersection(self._reads(name, sizes=False)):
                    after.add(name)
            middle = self.needed - before - after
            share = self.share(middle)
            if best is None or share > best[0]:
                best = (share, before, middle, after)
        assert best is not None
        return best[1:]

    def closed(self, part: set[str]) -> set[str]:
        """Return a part with the operators of the sizes that it reads."""
        found, left = set(part), list(part)
        while left:
            more = [name for name in self._reads(left.pop()) if name not in self.needed and name not in found]
            found.update(more)
            left += more
        return found

    def part(self, names: set[str], readers: set[str]) -> Any:
        """Return a part as a file of its own.

        Args:
            names: Its operators.
            readers: Operators; what they read of the part, and the whole file's outputs, are the part's outputs.
        """
        import onnx

        own = self.closed(names)
        nodes = [node for name, node in self.nodes.items() if name in own]
        made = [output for node in nodes for output in node.output if output]
        read = [value for node in nodes for value in node.input if value]
        elsewhere = {value for name in readers - own for value in self.nodes[name].input} | {*self.results}
        outputs = [one for one in dict.fromkeys((*self.results, *made)) if one in made and one in elsewhere]
        inputs = [one for one in dict.fromkeys(read) if one not in made and one not in self._constants]
        graph = onnx.helper.make_graph(
            nodes,
            self.model.graph.name,
            [self._values[name] for name in inputs],
            [self._values[name] for name in outputs],
            [self._constants[name] for name in dict.fromkeys(read) if name in self._constants],
            value_info=[self._values[name] for name in made if name in self._values and name not in elsewhere],
        )
        return onnx.helper.make_model(graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)

    def share(self, names: set[str]) -> float:
        """Return the part of all multiply-accumulates that some operators do."""
        everything = sum(self._products.values())
        return sum(self._products[name] for name in names) / everything if everything else 0.0

    def _shapes(self) -> Mapping[str, Sequence[int]]:
        """Return the sizes of all values, 1 for free ones such as the batch."""
        shapes = {name: tuple(one.dims) for name, one in self._constants.items()}
        for name, value in self._values.items():
            shapes[name] = tuple(max(dim.dim_value, 1) for dim in value.type.tensor_type.shape.dim)
        return shapes


def _multiply_accumulates(node: Any, shapes: Mapping[str, Sequence[int]]) -> int:
    """Return the products that an operator sums up for one image."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0
    first, second, result = (shapes.get(name, ()) for name in (*node.input[:2], node.output[0]))
    if node.op_type == "Conv":
        return int(np.prod(result[2:])) * int(np.prod(second))
    if node.op_type == "ConvTranspose":
        return int(np.prod(first[2:])) * int(np.prod(second))
    return int(np.prod(result)) * int(first[-1] if first else 1)


@contextmanager
def _as_file_error(path: Path) -> Iterator[None]:
    """Turn whatever a malformed file makes its readers raise into a `ModelFileError`: attributes, shapes, names."""
    try:
        yield
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        why = " ".join(str(error).split())[:160] or type(error).__name__
        raise ModelFileError(f"'{path}' is not a sound ONNX model: {why}. Export it again.") from error
