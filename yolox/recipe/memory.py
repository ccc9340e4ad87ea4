"""Whether a step fits into memory, asked before it takes any."""

from __future__ import annotations

from yolox.config import ModelConfig
from yolox.cpu.cgroups import available_memory
from yolox.errors import UsageError
from yolox.structures import Size


def check_output_memory(config: ModelConfig, images: int, size: Size, available: int | None = None) -> None:
    """Check, before a step, that there is memory for what the network returns of a batch.

    Args:
        config: The network.
        images: Images that this machine takes at once.
        size: Of the images.
        available: Bytes; by default what this process may use.

    Raises:
        UsageError: When there is not.
    """
    places = sum((size.height // stride) * (size.width // stride) for stride in config.fpn_strides)
    needed = 3 * 4 * images * places * (config.num_classes + 5)  # logits, their gradients, what the loss makes of them
    available = available_memory() if available is None else available
    if available is not None and needed > available:
        raise UsageError(
            f"scores of {config.num_classes:,} classes at {places:,} places in each of {images} images of "
            f"{size.height}x{size.width} take {needed / 2**30:.1f} GiB in a step; {available / 2**30:.1f} GiB are "
            "available. Choose a smaller batch (-b), smaller images or fewer classes."
        )
