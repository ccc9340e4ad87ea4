"""Chooses for each block of a captured graph what computes it, and for each value whether its readers normalise it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from yolox.kernels.training import eligibility, steps
from yolox.kernels.training.capture import Capture
from yolox.kernels.training.eligibility import is_depthwise
from yolox.kernels.training.graph import (
    Block,
    addends,
    channels_of,
    concatenated,
    find_blocks,
    pooling_window,
)
from yolox.kernels.training.ops import CHANNEL_BLOCK, MOST_CHANNELS
from yolox.kernels.training.space_to_depth import find_space_to_depth
from yolox.kernels.training.steps import Step


@dataclass(frozen=True)
class Precision:
    """The circumstances that a plan is made for.

    Args:
        products: Type in which convolutions compute.
        deferred: Whether there are kernels for products of this type, whose readers may normalise.
    """

    products: torch.dtype
    deferred: bool


class Row(NamedTuple):
    """One line of the table of kernels.

    Attributes:
        layer: Names of the modules that are computed together.
        kernel: What computes them.
        reason: Why no kernel of ours does, or not all of it; empty where there is nothing to explain.
    """

    layer: str
    kernel: str
    reason: str = ""


class Kind(Enum):
    """The kernels that compute a block."""

    POINTWISE = auto()
    DEPTHWISE = auto()
    STEM = auto()
    FOLDED = auto()
    NORM = auto()
    PREDICTION = auto()
    PLAIN = auto()


class Choice(NamedTuple):
    """The kernels that compute a block, and why no others do."""

    kind: Kind
    reason: str = ""


def choose(capture: Capture, precision: Precision) -> tuple[list[Step], list[Row]]:
    """Return the steps that compute the graph, in order, and the table that says what was chosen.

    Args:
        capture: The graph and its modules.
        precision: What convolutions compute in.
    """
    chooser = _Chooser(capture, precision)
    chooser.group()
    return list(chooser.steps()), list(chooser.rows())


@dataclass
class _Chooser:
    capture: Capture
    precision: Precision
    folds: dict[Block, tuple[fx.Node, Callable[[Tensor], Tensor]]] = field(default_factory=dict)
    partners: dict[Block, tuple[Block, ...]] = field(default_factory=dict)  # computed as one, for its first
    parts: dict[Block, tuple[fx.Node, ...]] = field(default_factory=dict)  # of a concatenation that is not made
    residuals: dict[Block, fx.Node] = field(default_factory=dict)
    additions: dict[fx.Node, tuple[fx.Node, fx.Node]] = field(default_factory=dict)
    deferred: set[fx.Node] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.modules = self.capture.modules
        self.blocks = find_blocks(self.capture.graph, self.modules)
        self.by_output = {block.output: block for block in self.blocks.values()}
        self.choices = {block: self._kind(block) for block in self.blocks.values()}

    def _kind(self, block: Block) -> Choice:
        conv = None if block.conv is None else block.conv.module
        if block.norm is None:
            assert isinstance(conv, nn.Conv2d)
            reason = eligibility.why_not_prediction(conv)
            return Choice(Kind.PLAIN, reason) if reason else Choice(Kind.PREDICTION)
        reason = eligibility.why_not_norm(block.norm.module)
        if reason:
            return Choice(Kind.PLAIN, reason)
        if not isinstance(conv, nn.Conv2d):
            return Choice(Kind.NORM, "" if conv is None else eligibility.why_not_conv(conv))
        if is_depthwise(conv):
            reason = eligibility.why_not_depthwise(conv)
            return Choice(Kind.NORM, reason) if reason else Choice(Kind.DEPTHWISE)
        if self._is_stem(block, conv):
            return self._stem_kind(conv, self.folds[block][0])
        reason = eligibility.why_not_pointwise(conv)
        if not reason and not self.precision.deferred:
            reason = f"no kernel for products in {str(self.precision.products).removeprefix('torch.')}"
        return Choice(Kind.NORM, reason) if reason else Choice(Kind.POINTWISE)

    def _is_stem(self, block: Block, conv: nn.Conv2d) -> bool:
        usual = conv.kernel_size == (3, 3) and conv.stride == conv.dilation == (1, 1) and conv.padding == (1, 1)
        if not usual or conv.groups != 1 or conv.padding_mode != "zeros" or eligibility.why_not_conv(conv):
            return False
        found = find_space_to_depth(block.source, conv.in_channels, self.modules)
        if found is not None:
            self.folds[block] = found
        return found is not None

    def _stem_kind(self, conv: nn.Conv2d, image: fx.Node) -> Choice:
        if not self.precision.deferred or self.precision.products != torch.bfloat16:
            return Choice(Kind.FOLDED, "no kernel for the stem in this precision")
        if image.op != "placeholder" or image.meta["requires_grad"]:
            return Choice(Kind.FOLDED, "its input is not an image without gradient")
        if image.meta["dtype"] not in {torch.uint8, torch.float32}:
            return Choice(Kind.FOLDED, f"images are {image.meta['dtype']}")
        if conv.in_channels != 12 or conv.out_channels % CHANNEL_BLOCK or conv.bias is not None:
            return Choice(Kind.FOLDED, f"{conv.in_channels} and {conv.out_channels} channels")
        return Choice(Kind.STEM)

    def _of(self, *kinds: Kind) -> Iterator[Block]:
        return (block for block, choice in self.choices.items() if choice.kind in kinds)

    def group(self) -> None:
        """Find what is computed as one, which concatenations are not made, what is deferred, and shortcuts."""
        for source, group in _by_source(self._of(Kind.POINTWISE)).items():
            self._join(source, group)
        for group in _by_source(self._of(Kind.PREDICTION)).values():
            self.partners.update(dict.fromkeys(group, tuple(group)))
        if self.precision.deferred:
            self._add_up()
            self._defer()

    def _join(self, source: fx.Node, group: list[Block]) -> None:
        convs = [block.convolution() for block in group]
        total = convs[0].in_channels + sum(conv.out_channels for conv in convs)
        alike = all(
            type(block.norm_act().layer) is nn.BatchNorm2d for block in group
        )  # ranks may differ in what they join
        joined = len(group) == 2 and alike and total <= MOST_CHANNELS
        for block in group:
            self.partners[block] = tuple(group) if joined else (block,)
        parts = concatenated(source)
        counts = [channels_of(part, self.by_output, self.modules) for part in parts]
        readers = {block.nodes[0] for block in group}
        if len(parts) == 2 and set(source.users) == readers and all(n and n % CHANNEL_BLOCK == 0 for n in counts):
            self.parts.update(dict.fromkeys(group, parts))

    def _may_defer(self, node: fx.Node) -> bool:
        block = self.by_output.get(node)
        if block is None:
            return False
        kind = self.choices[block].kind
        always = kind in {Kind.POINTWISE, Kind.DEPTHWISE, Kind.STEM}
        return always or (kind in {Kind.NORM, Kind.FOLDED} and block.out_channels % CHANNEL_BLOCK == 0)

    def _add_up(self) -> None:
        for node in self.capture.graph.nodes:
            pair = addends(node)
            for inner, outer in (pair, pair[::-1]) if pair else ():
                if self._may_defer(inner) and set(inner.users) == {node} and inner is not outer:
                    self.additions[node] = (inner, outer)
                    break
        for block in self._of(Kind.POINTWISE):
            if len(self.partners[block]) > 1 or block in self.parts:
                continue
            others = set(block.source.users) - {block.nodes[0]}
            for addition in others:
                if len(others) == 1 and self.additions.get(addition, (None, None))[1] is block.source:
                    self.residuals[block] = addition

    def _defer(self) -> None:
        taking = {block.nodes[0] for block in self._of(Kind.POINTWISE, Kind.DEPTHWISE, Kind.PREDICTION)}
        taking |= {block.source for block in self.parts} | set(self.additions)
        for node in self.by_output:
            if self._may_defer(node) and any(reader in taking for reader in node.users):
                self.deferred.add(node)

    def steps(self) -> Iterator[Step]:
        """Return the steps that are needed, in the order of the graph."""
        made: dict[fx.Node, Step] = {}
        done: set[fx.Node] = set()
        # at the normalisation, so that normalisations over several processes keep their order
        anchors = {(block.norm or block.conv).node: block for block in self._of(*set(Kind) - {Kind.PLAIN})}  # type: ignore[union-attr]
        inner = {node for block in anchors.values() for node in block.nodes}
        for node in self.capture.graph.nodes:
            block = anchors.get(node)
            if node in done or node.op in {"placeholder", "output"} or (node in inner and block is None):
                continue
            if block is None:
                made[node] = self._other_step(node)
            else:
                together = self.partners.get(block, (block,))
                made[node] = self._step(block, together)
                done.update(one for member in together for one in member.nodes)
        return _needed(self.capture.graph, made)

    def _step(self, block: Block, together: tuple[Block, ...]) -> Step:
        kind, defer = self.choices[block].kind, block.output in self.deferred
        if kind is Kind.POINTWISE and block in self.residuals:
            return steps.residual_pointwise(block, self.residuals[block])
        if kind is Kind.POINTWISE:
            return steps.pointwise(together, self.parts.get(block, (block.source,)))
        if kind is Kind.DEPTHWISE:
            return steps.depthwise(block, defer=self.precision.deferred)
        if kind is Kind.PREDICTION:
            return steps.prediction(together, compiled=self.precision.deferred)
        if kind is Kind.NORM:
            return steps.norm_act(block, block.source, defer=defer)
        image, fold = self.folds[block]
        step = steps.stem(block, image, fold)
        if kind is Kind.FOLDED:
            step = steps.norm_act(block, image, defer=defer, conv=steps.folded_conv(block, fold))
        return step

    def _other_step(self, node: fx.Node) -> Step:
        if node in self.additions:
            inner, outer = self.additions[node]
            return steps.add(node, inner, outer, shortcut=node in self.residuals.values())
        parts = concatenated(node)
        if parts:
            return steps.concatenate(node, parts, [self._reads_gaps(part) for part in parts])
        side, plain = pooling_window(node, self.modules), steps.call(node, self.modules)
        return plain if side is None else steps.max_pool(side, plain)

    def _reads_gaps(self, part: fx.Node) -> bool:
        """Return whether what made the part reads a gradient with gaps between pixels as fast."""
        return (
            part in self.by_output
            and self.choices[self.by_output[part]].kind is not Kind.PLAIN
            and len(part.users) == 1
        )

    def rows(self) -> Iterator[Row]:
        """Yield a line for each block and each other layer."""
        for block, (kind, reason) in self.choices.items():
            text = _KERNELS[kind]
            if kind in {Kind.NORM, Kind.FOLDED} and block.conv is None:
                text = "normalisation and activation"
            notes = [text]
            if len(self.partners.get(block, ())) > 1:
                notes.append("joined with " + ", ".join(o.name for o in self.partners[block] if o is not block))
            if block in self.parts:
                notes.append("reads a concatenation that is not made")
            if block in self.residuals:
                notes.append("carries the shortcut")
            if block.output in self.deferred:
                notes.append("readers normalise")
            yield Row(block.name, "; ".join(notes), reason)
        known = {node for block in self.blocks.values() for node in block.nodes}
        for node in self.capture.graph.nodes:
            if pooling_window(node, self.modules) is not None:
                yield Row(str(node.target if node.op == "call_module" else node.name), "maxima over windows")
            elif node.op == "call_module" and node not in known:
                yield Row(str(node.target), "PyTorch", f"no kernel for {type(self.modules[str(node.target)]).__name__}")


_KERNELS = {
    Kind.POINTWISE: "1x1 convolution",
    Kind.DEPTHWISE: "depthwise 3x3 convolution",
    Kind.STEM: "space-to-depth and 3x3 as one 6x6 convolution",
    Kind.FOLDED: "PyTorch's convolution, 6x6 with space-to-depth; normalisation and activation",
    Kind.NORM: "PyTorch's convolution; normalisation and activation",
    Kind.PREDICTION: "1x1 convolution with a bias",
    Kind.PLAIN: "PyTorch",
}


def _by_source(blocks: Iterable[Block]) -> dict[fx.Node, list[Block]]:
    groups: dict[fx.Node, list[Block]] = {}
    for block in blocks:
        groups.setdefault(block.source, []).append(block)
    return groups


def _needed(graph: fx.Graph, made: dict[fx.Node, Step]) -> Iterator[Step]:
    """Return the steps without those whose outputs nobody reads, such as concatenations that are read in parts."""
    wanted: set[object] = {node for output in graph.nodes if output.op == "output" for node in output.all_input_nodes}
    kept: list[Step] = []
    for node, step in reversed(made.items()):
        if wanted.intersection(step.outputs) or node.op == "call_module":
            kept.append(step)
            wanted.update(step.inputs)
    return reversed(kept)
