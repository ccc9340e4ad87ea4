"""The last steps before the network: colour, flip, letterbox, and batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from yolox.data.image_ops import flip_boxes, flip_image, has_area, jitter_hsv, letterbox, xyxy_to_cxcywh
from yolox.structures import Batch, Sample, Size, Targets

_SMALLEST_BOX = 1.0  # pixels, at the network's input


@dataclass(frozen=True)
class TrainTransform:
    """HSV, flip, letterbox, removal of tiny boxes, at most ``max_labels`` objects; in this order.

    Args:
        target: Size of the network's input.
        hsv_prob: How often colours change.
        flip_prob: How often the image is mirrored.
        max_labels: Objects beyond this number are left out (those that MixUp added come last).
    """

    target: Size
    hsv_prob: float = 1.0
    flip_prob: float = 0.5
    max_labels: int = 120

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the sample ready for the network, the boxes still as xyxy."""
        varied = sample
        if rng.random() < self.hsv_prob:
            varied = replace(varied, image=jitter_hsv(varied.image, rng))
        if rng.random() < self.flip_prob:
            varied = flip(varied)
        boxed = letterbox_sample(varied, self.target)
        sizes = boxed.boxes_xyxy[:, 2:] - boxed.boxes_xyxy[:, :2]
        keep = sizes.min(axis=1, initial=np.inf) > _SMALLEST_BOX
        if len(keep) and not keep.any():
            # as official: rather the plain image with its tiny objects than an image without any
            boxed = letterbox_sample(sample, self.target)
            keep = has_area(boxed.boxes_xyxy)
        fitting = np.flatnonzero(keep)
        kept = fitting[: self.max_labels]
        num_cut = len(fitting) - len(kept)
        return replace(boxed, boxes_xyxy=boxed.boxes_xyxy[kept], labels=boxed.labels[kept], num_cut=num_cut)


def flip(sample: Sample) -> Sample:
    """Return the sample mirrored left to right."""
    image = sample.image
    return replace(sample, image=flip_image(image), boxes_xyxy=flip_boxes(sample.boxes_xyxy, image.shape[1]))


def letterbox_sample(sample: Sample, target: Size) -> Sample:
    """Return the sample fitted into the top-left corner of a grey canvas."""
    image, ratio = letterbox(sample.image, target)
    return replace(sample, image=image, boxes_xyxy=sample.boxes_xyxy * np.float32(ratio))


def collate(samples: Sequence[Sample], images: Tensor | None = None) -> Batch:
    """Return the batch of samples whose images have one size; G is the largest number of objects.

    The images are stored pixel by pixel (``channels_last``), as OpenCV gives them and convolutions on a CPU want them.

    Args:
        samples: The samples.
        images: Their images ``[B, H, W, 3]``, where those are stored together already.
    """
    num_objects = max((len(sample.labels) for sample in samples), default=0)
    boxes = np.zeros((len(samples), num_objects, 4), np.float32)
    labels = np.zeros((len(samples), num_objects), np.int64)
    valid = np.zeros((len(samples), num_objects), np.bool_)
    for i, sample in enumerate(samples):
        count = len(sample.labels)
        boxes[i, :count] = xyxy_to_cxcywh(sample.boxes_xyxy)
        labels[i, :count] = sample.labels
        valid[i, :count] = True
    targets = Targets(torch.from_numpy(boxes), torch.from_numpy(labels), torch.from_numpy(valid))
    if images is None:
        images = torch.from_numpy(np.stack([sample.image for sample in samples]))
    return Batch(
        images=images.permute(0, 3, 1, 2),
        targets=targets,
        image_ids=torch.tensor([sample.image_id for sample in samples], dtype=torch.int64),
        original_sizes=torch.tensor([tuple(sample.original_size) for sample in samples], dtype=torch.int64),
        num_cut=torch.tensor([sample.num_cut for sample in samples], dtype=torch.int64),
    )
