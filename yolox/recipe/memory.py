"""Whether a step fits into memory, asked before it takes any."""

from __future__ import annotations

from yolox.config import ModelConfig
from yolox.cpu.cgroups import require_memory
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
    where = f"at {places:,} places in each of {images} images of {size.height}x{size.width}"
    what = f"in a step, scores of {config.num_classes:,} classes {where} take"
    require_memory(needed, what, "Choose a smaller batch (-b), smaller images or fewer classes.", available)
