"""A tiny detector that finds objects, and a data set whose labels are its best detections: its AP is not zero."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import torch
from checkpoints import described
from torch import nn

from yolox import YOLOX
from yolox.config import apply_fields
from yolox.experiments import get_experiment
from yolox.models.detector import build_detector

NAMES = ("apple", "bolt", "crab")


def write_checkpoint(path: Path) -> Path:
    torch.manual_seed(0)
    fields = {"num_classes": 3, "exp_name": "mine", "eval.test_size": "64", "data.input_size": "64"}
    experiment = apply_fields(get_experiment("yolox_nano"), fields)
    detector = build_detector(experiment.model)
    for branch in (detector.head.cls_preds, detector.head.obj_preds):
        for conv in branch:
            assert isinstance(conv, nn.Conv2d)
            assert conv.bias is not None
            torch.nn.init.constant_(conv.bias, 1.0)
            torch.nn.init.normal_(conv.weight, std=0.3)
    torch.save(described(experiment, NAMES, detector), path)
    return path


def write_data(folder: Path, checkpoint: Path, count: int = 5) -> Path:
    rng = np.random.default_rng(0)
    (folder / "annotations").mkdir(parents=True)
    (folder / "val2017").mkdir()
    for number in range(1, count + 1):
        image = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "val2017" / f"{number:03d}.png"), cv2.resize(image, (64, 48)))
    images, annotations = [], []
    for number, result in enumerate(YOLOX(checkpoint).predict(folder / "val2017", confidence=0.01), start=1):
        images.append({"id": number, "file_name": result.name, "height": 48, "width": 64})
        box = [float(value) for value in result.boxes.xywh[0]]
        annotations.append({"image_id": number, "category_id": 1 + int(result.boxes.labels[0]), "bbox": box})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(NAMES)],
    }
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return folder
