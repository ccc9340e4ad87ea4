"""What a plan is made of: steps that read some values of the graph and make others.

Values are feature maps in memory or deferred ones (`yolox.kernels.training.deferred`). A step that gets a tensor which
the kernels cannot read (another type, another number of dimensions) computes with PyTorch's layers instead.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from yolox.kernels.training import deferred as kernels
from yolox.kernels.training.autograd import batchnorm_act, dense_gradient, depthwise_conv, strided_depthwise_conv
from yolox.kernels.training.autograd import max_pool as pool
from yolox.kernels.training.deferred import Deferred, Features, Shortcut, materialize, raw
from yolox.kernels.training.eligibility import is_depthwise, supports_tensor
from yolox.kernels.training.graph import Block, reads_only_shape
from yolox.kernels.training.ops import CHANNEL_BLOCK


@dataclass(frozen=True, eq=False)
class Step:
    """One call of a kernel, a layer or a function.

    Attributes:
        run: Takes the values of ``inputs`` and returns those of ``outputs``.
        inputs: Names of values: nodes of the graph, or others that only steps know.
        outputs: Names of values.
    """

    run: Callable[..., tuple[Any, ...]]
    inputs: tuple[Hashable, ...]
    outputs: tuple[Hashable, ...]


def call(node: fx.Node, modules: dict[str, nn.Module]) -> Step:
    """Return the step that does what the node says, on feature maps in memory."""
    inputs = tuple(node.all_input_nodes)
    get = raw if reads_only_shape(node) else materialize
    target: Any = node.target
    if node.op == "call_module":
        target = modules[target]
    elif node.op == "call_method":
        target = _Method(target)
    elif node.op == "get_attr":
        find, root = operator.attrgetter(target), modules[""]
        return Step(lambda: (find(root),), (), (node,))

    def run(*values: Any) -> tuple[Any, ...]:
        found = {name: get(value) for name, value in zip(inputs, values, strict=True)}
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), found.__getitem__)
        return (target(*args, **kwargs),)

    return Step(run, inputs, (node,))


class _Method:
    def __init__(self, name: str) -> None:
        self.name = "reshape" if name == "view" else name  # in channels_last memory not every view is one

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(x, self.name)(*args, **kwargs)


def norm_act(block: Block, source: fx.Node, *, defer: bool, conv: Callable[[Tensor], Tensor] | None = None) -> Step:
    """Return the step of a block whose convolution, if any, is PyTorch's.

    Args:
        block: With a normalisation.
        source: What the step reads.
        defer: Whether the readers normalise and activate.
        conv: Computes the convolution instead of the layer.
    """
    norm, conv = block.norm_act(), conv or _convolution(block)

    def run(x: Features) -> tuple[Features]:
        y = conv(materialize(x))
        if not supports_tensor(y):
            return (block.plain(y, after_conv=True),)
        y = y.contiguous(memory_format=torch.channels_last)
        return (kernels.defer_norm(y, norm) if defer and y.dtype == _products(y) else batchnorm_act(y, norm),)

    return Step(run, (source,), (block.output,))


def _convolution(block: Block) -> Callable[[Tensor], Tensor]:
    if block.conv is None:
        return _same
    conv = block.convolution()
    if conv.stride != (2, 2) or conv.bias is not None or not is_depthwise(conv) or isinstance(conv.padding, str):
        return conv
    padding = conv.padding

    def strided(x: Tensor) -> Tensor:
        dtype = _products(x)
        if dtype != torch.bfloat16 or conv.dilation != (1, 1) or conv.padding_mode != "zeros" or x.ndim != 4:
            y: Tensor = conv(x)
            return y
        return strided_depthwise_conv(x.to(dtype), conv.weight, padding)

    return strided


def _same(x: Tensor) -> Tensor:
    return x


def depthwise(block: Block, *, defer: bool) -> Step:
    """Return the step of a block with a depthwise 3x3 convolution; what it returns is deferred if ``defer`` says so."""
    norm, conv = block.norm_act(), block.convolution()
    stride = conv.stride[0]

    def run(x: Features) -> tuple[Features]:
        if not _readable(x):
            return (block.plain(materialize(x)),)
        if defer:
            return (kernels.depthwise_block(_for_products(x), conv.weight, stride, norm),)
        values = materialize(x)
        values = values.to(_products(values)).contiguous(memory_format=torch.channels_last)
        return (batchnorm_act(depthwise_conv(values, conv.weight, stride), norm),)

    return Step(run, (block.source,), (block.output,))


def stem(block: Block, image: fx.Node, fold: Callable[[Tensor], Tensor]) -> Step:
    """Return the step of a 3x3 convolution of pixels in blocks of 2x2, as one 6x6 convolution of stride 2.

    Args:
        block: With that convolution.
        image: The images before their pixels were rearranged.
        fold: Makes the 6x6 weight of the 3x3 one.
    """
    norm, conv = block.norm_act(), block.convolution()

    def run(images: Tensor) -> tuple[Features]:
        if images.shape[-1] % 2 or images.shape[-2] % 2:
            raise ValueError(f"images of {tuple(images.shape)}; expected an even height and width")
        return (kernels.stem_block(images, fold(conv.weight), norm),)

    return Step(run, (image,), (block.output,))


def folded_conv(block: Block, fold: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the convolution of `stem` as PyTorch computes it."""
    conv = block.convolution()

    def run(images: Tensor) -> Tensor:
        weight = fold(conv.weight)
        weight = weight.contiguous(memory_format=torch.channels_last)
        return F.conv2d(
            images if images.is_floating_point() else images.float(), weight, conv.bias, stride=2, padding=2
        )

    return run


def pointwise(blocks: Sequence[Block], parts: Sequence[fx.Node]) -> Step:
    """Return the step of one 1x1 convolution, or of two of one input.

    Args:
        blocks: One or two.
        parts: What they read: one value, or two whose channels are side by side.
    """
    convs, norms = [block.convolution() for block in blocks], [block.norm_act() for block in blocks]

    def run(*values: Features) -> tuple[Features, ...]:
        if not all(map(_readable, values)):
            x = (
                torch.cat([materialize(value) for value in values], dim=1)
                if len(values) > 1
                else materialize(values[0])
            )
            return tuple(block.plain(x) for block in blocks)
        weight = convs[0].weight if len(convs) == 1 else torch.cat([conv.weight for conv in convs])
        return kernels.pointwise_block([_for_products(value) for value in values], weight, norms)

    return Step(run, tuple(parts), tuple(block.output for block in blocks))


def residual_pointwise(block: Block, addition: fx.Node) -> Step:
    """Return the step of a 1x1 convolution whose input is also added at ``addition``; that step reads `around`."""
    conv, norm = block.convolution(), block.norm_act()

    def run(x: Features) -> tuple[Any, ...]:
        if not _readable(x):
            return block.plain(materialize(x)), None
        return kernels.pointwise_with_shortcut(_for_products(x), conv.weight, norm)

    return Step(run, (block.source,), (block.output, around(addition)))


def around(addition: fx.Node) -> Hashable:
    """Return the name of the value that goes around a residual block to ``addition``."""
    return ("around", addition)


def add(addition: fx.Node, inner: fx.Node, outer: fx.Node, *, shortcut: bool) -> Step:
    """Return the step that adds ``outer`` to ``inner`` while that is normalised and activated.

    Args:
        addition: The node.
        inner: What may be deferred.
        outer: What is added.
        shortcut: Whether `residual_pointwise` made a `Shortcut` of ``outer``.
    """

    def run(x: Features, y: Features, known: Shortcut | None = None) -> tuple[Tensor]:
        if not isinstance(x, Deferred):
            return (materialize(y) + materialize(x),)
        if known is not None:
            return (kernels.add_shortcut(x, known),)
        other = materialize(y)
        if other.shape != x.value.shape or other.dtype != x.value.dtype:
            return (other + x.materialize(),)
        return (kernels.add_shortcut(x, Shortcut(other.contiguous(memory_format=torch.channels_last), None)),)

    return Step(run, (inner, outer, *([around(addition)] if shortcut else [])), (addition,))


def prediction(blocks: Sequence[Block], *, compiled: bool) -> Step:
    """Return the step of 1x1 convolutions with a bias that read one value, computed as one.

    Args:
        blocks: Without normalisations.
        compiled: Whether the kernel may compute them, or PyTorch has to.
    """
    convs = [block.convolution() for block in blocks]
    channels = [conv.out_channels for conv in convs]

    def run(x: Features) -> tuple[Tensor, ...]:
        if not _readable(x):
            return tuple(conv(materialize(x)) for conv in convs)
        weight = torch.cat([conv.weight for conv in convs]) if len(convs) > 1 else convs[0].weight
        bias = torch.cat([_bias(conv) for conv in convs])
        if compiled:
            y = kernels.pointwise_prediction(_for_products(x), weight, bias)
        else:
            y = F.conv2d(materialize(x), weight, bias).contiguous(memory_format=torch.channels_last)
        return torch.split(y, channels, dim=1) if len(convs) > 1 else (y,)

    return Step(run, (blocks[0].source,), tuple(block.output for block in blocks))


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias


def max_pool(side: int, plain: Step) -> Step:
    """Return the step of a pooling.

    Args:
        side: Of its windows.
        plain: The step that leaves it to PyTorch.
    """

    def run(x: Features) -> tuple[Any, ...]:
        values = materialize(x)
        if not supports_tensor(values) or values.shape[1] % CHANNEL_BLOCK:
            return plain.run(values)
        return (pool(values.contiguous(memory_format=torch.channels_last), side),)

    return Step(run, plain.inputs, plain.outputs)


def concatenate(node: fx.Node, parts: Sequence[fx.Node], regular: Sequence[bool]) -> Step:
    """Return the step that puts values side by side.

    Args:
        node: The concatenation.
        parts: What it reads.
        regular: For each part, whether its gradient may come back with gaps between pixels.
    """

    def run(*values: Features) -> tuple[Tensor]:
        tensors = [materialize(value) for value in values]
        if all(map(supports_tensor, tensors)):
            each = zip(tensors, regular, strict=True)
            tensors = [tensor if as_it_is else dense_gradient(tensor) for tensor, as_it_is in each]
        return (torch.cat(tensors, dim=1),)

    return Step(run, tuple(parts), (node,))


def _readable(x: Features) -> bool:
    return isinstance(x, Deferred) or supports_tensor(x)


def _products(x: Tensor) -> torch.dtype:
    """Return the type in which convolutions of ``x`` compute."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def _for_products(x: Features) -> Features:
    return x if isinstance(x, Deferred) else x.to(_products(x)).contiguous(memory_format=torch.channels_last)
