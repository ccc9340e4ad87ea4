"""Random labels and detections, the same for the same seed."""

from __future__ import annotations

from typing import Any

import numpy as np

from yolox.structures import Detections

CATEGORY_IDS = (3, 7, 44)


def synthetic(seed: int, num_images: int = 12, crowds: bool = True) -> tuple[dict[str, Any], dict[int, Detections]]:
    """Random labels of all three COCO sizes, and detections that are jittered copies among random boxes."""
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    detections: dict[int, Detections] = {}
    for image_id in range(1, num_images + 1):
        count = int(rng.integers(0, 9))
        boxes = np.concatenate([rng.uniform(0, 400, (count, 2)), np.exp(rng.uniform(1.5, 5.5, (count, 2)))], axis=1)
        labels = rng.integers(0, 3, count)
        for box, label in zip(boxes, labels, strict=True):
            annotations.append(
                {
                    "id": len(annotations),  # COCO data sets numbered from 0 exist
                    "image_id": image_id,
                    "category_id": CATEGORY_IDS[label],
                    "bbox": box.tolist(),
                    "area": float(box[2] * box[3]) * 0.9,
                    "iscrowd": int(crowds and rng.random() < 0.1),
                }
            )
        noise = np.repeat(boxes, 20, axis=0) + rng.normal(0, 6, (count * 20, 4))
        stray = np.concatenate([rng.uniform(0, 400, (30, 2)), np.exp(rng.uniform(2, 5, (30, 2)))], axis=1)
        found = np.concatenate([noise, stray])
        found[:, 2:] = found[:, :2] + np.maximum(found[:, 2:], 1)
        chosen = np.concatenate([np.repeat(labels, 20), rng.integers(0, 3, 30)])
        detections[image_id] = Detections(
            found.astype(np.float32), rng.random(len(found)).astype(np.float32), chosen.astype(np.int64)
        )
    truth = {
        "images": [{"id": image_id} for image_id in range(1, num_images + 1)],
        "annotations": annotations,
        "categories": [{"id": number, "name": f"class{number}"} for number in CATEGORY_IDS],
    }
    return truth, detections
