"""``python -m benchmarks.pictures_to_boxes``: JPEG files in, boxes out, with and without pictures drawn and written."""

from __future__ import annotations

import itertools
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.photographs import write_photographs
from benchmarks.protocol import REAL_DATA, MakePart, Part, run_benchmark, summary
from yolox.checkpoint import load_model
from yolox.cpu.allocator import keep_freed_memory
from yolox.data.image_files import list_images
from yolox.data.image_ops import letterbox
from yolox.experiments import get_experiment
from yolox.inference.optimizer import InferenceOptimizer
from yolox.inference.search.latency import interleave
from yolox.models.decoding import DecodedDetector
from yolox.models.detector import build_detector
from yolox.prediction.background import write_behind
from yolox.prediction.models import Predictor, load_predictor
from yolox.prediction.results import Result
from yolox.prediction.run import Thresholds, predict
from yolox.prediction.sources import Sources
from yolox.prediction.writers import ResultWriter
from yolox.structures import Image, Size

ABOUT = "JPEG files of 640 pixels to boxes: YOLOX-Nano in 8 bits, all cores."
COUNT, SIZE, ROUNDS = 200, 416, 7
Sides = dict[str, Callable[[], object]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    parts: dict[str, MakePart] = {"nano": _measure}
    return run_benchmark("pictures_to_boxes", ABOUT, parts, argv)


def _measure(quick: bool) -> Part:
    count, size, rounds = (4, 64, 1) if quick else (COUNT, SIZE, ROUNDS)
    keep_freed_memory()
    with tempfile.TemporaryDirectory(prefix="benchmark-pictures-") as name:
        folder = Path(name)
        files, what = _files(folder / "images", count)
        predictor = _predictor(folder / "model", files[:32], size)
        sides = _sides(predictor, files, folder / "found")
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for run in sides.values():
            run()
        for _, side in interleave(list(sides), rounds):
            start = time.perf_counter()
            sides[side]()
            seconds[side].append(time.perf_counter() - start)
    rows = [{"side": side, "images_per_second": summary([count / taken for taken in seconds[side]])} for side in sides]
    columns = {
        "side": "{side}",
        "images/s": "{images_per_second[median]:.0f}",
        "p10–p90": "{images_per_second[p10]:.0f}–{images_per_second[p90]:.0f}",
    }
    note = f"{what} Input of {size} pixels, confidence 0.25. Files are in the page cache; the model was loaded before."
    return Part(rows, columns, {"count": count, "size": size, "rounds": rounds}, [note])


def _files(folder: Path, count: int) -> tuple[list[Path], str]:
    """Write so many JPEG files, and say what they are."""
    folder.mkdir()
    real = REAL_DATA / "coco_mini" / "val2017"
    if real.exists():
        sources, what = list_images(real)[0], "Images of COCO."
    else:
        sources = list_images(write_photographs(folder, count) / "train2017")[0]
        what = "Made-up photographs, as large and as hard to decode as COCO's."
    files = []
    for number, source in enumerate(itertools.islice(itertools.cycle(sources), count)):
        files.append(folder / f"picture{number:04d}.jpg")
        shutil.copyfile(source, files[-1])
    return files, what


def _predictor(folder: Path, files: Sequence[Path], size: int) -> Predictor:
    """Return YOLOX-Nano in 8 bits, saved and loaded again, with the published weights where they are at hand."""
    experiment = get_experiment("yolox_nano")
    weights = REAL_DATA / "weights" / "yolox_nano.pth"
    torch.manual_seed(0)
    detector = load_model(weights, experiment).detector if weights.exists() else build_detector(experiment.model)
    images = [letterbox(picture.image, Size(size, size))[0] for picture in Sources(list(files))]
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().contiguous()
    quantized = InferenceOptimizer.quantize(
        DecodedDetector(detector).eval(), accelerator="native", calib_data=batch, input_sample=batch[:8]
    )
    InferenceOptimizer.save(quantized, folder)
    return load_predictor(folder)


def _sides(predictor: Predictor, files: Sequence[Path], found: Path) -> Sides:
    images = [picture.image for picture in Sources(list(files[:8]))]
    batch = np.stack([predictor.fit(image) for image in images])

    def write() -> None:
        with ResultWriter(found) as writer:
            for _ in write_behind(_results(predictor, files), writer.write, 2 * predictor.usual_batch):
                pass
        shutil.rmtree(found)

    return {
        "decoding alone, one thread": lambda: list(Sources(list(files))),
        "letterbox alone, one thread": lambda: [predictor.fit(image) for image in _cycled(images, len(files))],
        "engine alone, batches of 8": lambda: [predictor.run_batch(batch) for _ in range(-(-len(files) // 8))],
        "files to boxes": lambda: list(_results(predictor, files)),
        "files to boxes and pictures": write,
    }


def _cycled(images: Sequence[Image], count: int) -> Sequence[Image]:
    return list(itertools.islice(itertools.cycle(images), count))


def _results(predictor: Predictor, files: Sequence[Path]) -> Iterator[Result]:
    return predict(predictor, Sources(list(files)), Thresholds())


if __name__ == "__main__":
    sys.exit(main())
