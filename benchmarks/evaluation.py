"""``python -m benchmarks.evaluation``: COCO evaluation against pycocotools, and how soon every tool answers."""

from __future__ import annotations

import contextlib
import io
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.protocol import ROOT, Part, run_benchmark, summary
from yolox.evaluation.coco_metric import coco_metric
from yolox.inference.search.latency import interleave
from yolox.structures import Detections

ABOUT = "COCO evaluation of 5,000 synthetic images, ours against pycocotools; processor time of every tool's --help."
NUM_CLASSES = 80
HEAVY = ("torch", "pytorch_lightning", "cv2", "matplotlib", "faster_coco_eval", "openvino", "onnxruntime")
Truth = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    return run_benchmark("evaluation", ABOUT, {"coco": _coco, "start-up": _start_up}, argv)


def synthetic_results(num_images: int, per_image: int = 40) -> tuple[Truth, dict[int, Detections]]:
    """Return labels as dense as COCO's (7 objects an image, 80 classes) and detections: some near them, some stray.

    Args:
        num_images: Images.
        per_image: Detections of each.
    """
    rng = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    detections = {}
    for image_id in range(1, num_images + 1):
        count = 1 + int(rng.poisson(6))
        boxes = np.concatenate([rng.uniform(0, 400, (count, 2)), np.exp(rng.uniform(2, 5.3, (count, 2)))], axis=1)
        labels = rng.integers(0, NUM_CLASSES, count)
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
        owner = rng.integers(0, count, per_image)
        found = boxes[owner] + rng.normal(0, 0.08, (per_image, 4)) * boxes[owner][:, [2, 3, 2, 3]]
        found[:, 2:] = found[:, :2] + np.maximum(found[:, 2:], 1)
        guess = np.where(rng.random(per_image) < 0.7, labels[owner], rng.integers(0, NUM_CLASSES, per_image))
        detections[image_id] = Detections(found.astype(np.float32), rng.random(per_image).astype(np.float32), guess)
    truth = {
        "images": [{"id": number, "height": 640, "width": 640} for number in range(1, num_images + 1)],
        "annotations": annotations,
        "categories": [{"id": number + 1, "name": str(number)} for number in range(NUM_CLASSES)],
    }
    return truth, detections


def _ours(truth: Truth, detections: dict[int, Detections]) -> float:
    return coco_metric(truth, detections).metrics["AP"]


def _pycocotools(truth: Truth, detections: dict[int, Detections]) -> float:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    results = []
    for image_id, found in detections.items():
        boxes = found.boxes_xyxy.astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        for box, score, label in zip(boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True):
            results.append({"image_id": image_id, "category_id": label + 1, "bbox": box, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = {"info": {}, **truth}
        reference.createIndex()
        evaluation = COCOeval(reference, reference.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def _coco(quick: bool) -> Part:
    num_images, rounds = (20, 1) if quick else (5000, 3)
    truth, detections = synthetic_results(num_images)
    sides: dict[str, Callable[..., float]] = {"ours": _ours, "pycocotools": _pycocotools}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    ap = {}
    for _, name in interleave(list(sides), rounds):
        start = time.perf_counter()
        ap[name] = sides[name](truth, detections)
        seconds[name].append(time.perf_counter() - start)
    slow = summary(seconds["pycocotools"])["median"]
    rows = [
        {"side": name, "seconds": summary(values), "AP": ap[name], "times_as_fast": slow / summary(values)["median"]}
        for name, values in seconds.items()
    ]
    columns = {
        "side": "{side}",
        "seconds": "{seconds[median]:.2f}",
        "p10–p90": "{seconds[p10]:.2f}–{seconds[p90]:.2f}",
        "AP": "{AP:.6f}",
        "times as fast": "{times_as_fast:.1f}",
    }
    settings = {"images": num_images, "objects": len(truth["annotations"]), "detections": 40 * num_images}
    note = f"{settings['images']} images, {settings['objects']} objects, {settings['detections']} detections."
    return Part(rows, columns, {**settings, "rounds": rounds}, [note])


def _tools() -> list[str]:
    files = (ROOT / "yolox" / "tools").glob("*.py")
    return sorted(file.stem for file in files if "def main(" in file.read_text(encoding="utf-8"))


def _cpu_seconds(command: Sequence[str]) -> float:
    """Run a command and return the processor time that it used, its children included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT, timeout=120)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _heavy_imports(tool: str) -> list[str]:
    """Return the heavy libraries that the tool's help has imported."""
    code = (
        "import contextlib, sys\n"
        f"from yolox.tools.{tool} import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(None):\n"
        "    main(['--help'])\n"
        f"print(*[name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120, check=True
    )
    return done.stdout.split()


def _start_up(quick: bool) -> Part:
    tools, rounds = _tools(), 1 if quick else 7
    commands = {tool: [sys.executable, "-m", f"yolox.tools.{tool}", "--help"] for tool in tools}
    commands["(python alone)"] = [sys.executable, "-c", "pass"]
    if not quick:
        commands["(import torch and Lightning)"] = [sys.executable, "-c", "import torch, pytorch_lightning"]
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _, name in interleave(list(commands), rounds):
        seconds[name].append(_cpu_seconds(commands[name]))
    rows: list[dict[str, Any]] = []
    for name, values in seconds.items():
        heavy = _heavy_imports(name) if name in tools else []
        rows.append({"tool": name, "cpu_seconds": summary(values), "heavy_imports": " ".join(heavy) or "–"})
    columns = {
        "tool": "{tool}",
        "CPU seconds": "{cpu_seconds[median]:.2f}",
        "p10–p90": "{cpu_seconds[p10]:.2f}–{cpu_seconds[p90]:.2f}",
        "heavy imports": "{heavy_imports}",
    }
    return Part(rows, columns, {"rounds": rounds}, [f"Heavy means {', '.join(HEAVY)}."])


if __name__ == "__main__":
    sys.exit(main())
