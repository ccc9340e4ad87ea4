"""One checkout under ``benchmarks.guard``: times what it is asked for, with the package of that checkout.

It runs as a file and imports nothing of the benchmarks, since another checkout may not have them; `yolox` comes from
the path. One JSON value a line comes in (the name of a measurement and how many runs), one goes out.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

Run = Callable[[], object]
SIZE = 416
_BLOCKS = {
    "1x1, 64 channels, 52 pixels": (64, 52, 1, 1),
    "3x3, 64 channels, 26 pixels": (64, 26, 3, 1),
    "depthwise 3x3, 64 channels, 52 pixels": (64, 52, 3, 64),
}
"""Channels, side, kernel and groups of layers whose kernels are timed alone, forward and backward."""


def main() -> int:
    """Answer questions until there are none."""
    results, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    # An editable installation would lend the modules that this checkout does not have.
    sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
    made: dict[str, Run] = {}
    for line in sys.stdin:
        name, runs = json.loads(line)
        answer: Any
        try:
            if name not in made:
                made[name] = MEASUREMENTS[name]()
            answer = [_seconds(made[name]) for _ in range(runs)]
        except Exception as error:  # noqa: BLE001 - whatever another state of the code raises becomes the answer
            answer = f"{type(error).__name__}: {error}"
        print(json.dumps(answer), file=results, flush=True)
    return 0


def _seconds(run: Run) -> float:
    start = time.perf_counter()
    taken = run()
    return taken if isinstance(taken, float) else time.perf_counter() - start


def _training_step(bf16: bool) -> Run:
    import torch

    from yolox.cpu.allocator import keep_freed_memory
    from yolox.experiments import get_experiment
    from yolox.kernels.training.acceleration import accelerate
    from yolox.losses.detection_loss import detection_loss
    from yolox.models.detector import build_detector
    from yolox.structures import Targets

    keep_freed_memory()
    torch.manual_seed(0)
    network = accelerate(build_detector(get_experiment("yolox_nano").model).train())
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, nesterov=True, fused=True)
    images = torch.randint(0, 256, (16, 3, SIZE, SIZE), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    boxes = torch.rand(16, 8, 4) * 150 + 100
    targets = Targets(boxes, torch.randint(0, 80, (16, 8)), torch.ones(16, 8, dtype=torch.bool))

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            predictions = network(images)
        detection_loss(predictions, targets, use_l1=False).total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _training_block(bf16: bool, channels: int, side: int, kernel: int, groups: int) -> Run:
    """Return forward and backward of convolution, BatchNorm and SiLU, twice in a row."""
    import torch
    from torch import nn

    from yolox.cpu.allocator import keep_freed_memory
    from yolox.kernels.training.acceleration import accelerate

    keep_freed_memory()
    layers: list[nn.Module] = []
    for _ in range(2):
        layers.append(nn.Conv2d(channels, channels, kernel, 1, kernel // 2, groups=groups, bias=False))
        layers += [nn.BatchNorm2d(channels), nn.SiLU()]
    block = accelerate(nn.Sequential(*layers).train())
    block.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(16, channels, side, side).contiguous(memory_format=torch.channels_last).requires_grad_()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            result = block(images)
        result.sum().backward()  # type: ignore[no-untyped-call]

    return step


def _loss() -> Run:
    import torch

    from yolox.experiments import get_experiment
    from yolox.losses.detection_loss import detection_loss
    from yolox.models.detector import build_detector
    from yolox.structures import Targets

    torch.manual_seed(0)
    detector = build_detector(get_experiment("yolox_nano").model).train()
    boxes = torch.rand(16, 30, 4) * 150 + 100
    targets = Targets(boxes, torch.randint(0, 80, (16, 30)), torch.ones(16, 30, dtype=torch.bool))
    with torch.no_grad():
        predictions = detector(torch.rand(16, 3, SIZE, SIZE) * 255)
    return lambda: detection_loss(predictions, targets, use_l1=True).total


def _int8(batch: int) -> Run:
    import numpy as np
    import torch

    from yolox.experiments import get_experiment
    from yolox.inference.backends import get_backend
    from yolox.inference.backends.base import PrepareContext
    from yolox.inference.methods import get_method
    from yolox.models.decoding import DecodedDetector
    from yolox.models.detector import build_detector

    torch.manual_seed(0)
    module = DecodedDetector(build_detector(get_experiment("yolox_nano").model))
    images = np.random.default_rng(0).integers(0, 256, (batch, 3, SIZE, SIZE)).astype(np.float32)
    for part in module.modules():  # as benchmarks/random_weights.py says why
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = None
    with torch.no_grad():
        module.train()(torch.from_numpy(np.repeat(images[:1], 2, 0)))
    module.eval()
    folder = Path(tempfile.mkdtemp(prefix="benchmark-guard-"))
    context = PrepareContext((images[:1],), ((images[:1],),), 1, folder)
    artifact = get_backend("native").prepare(module, get_method("native_int8"), context)
    return lambda: artifact(images)


def _processor_seconds(*words: str) -> Run:
    """Return the processor time of a Python process, which includes its start."""

    def run() -> float:
        import resource

        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return run


def _samples() -> Run:
    """Return the making of eight training samples: Mosaic, MixUp, colours, from drawn images in memory."""
    from dataclasses import replace

    from yolox.data.datamodule import YoloxDataModule
    from yolox.data.sample_dataset import draw_sample_set
    from yolox.experiments import get_experiment
    from yolox.structures import Size

    folder = Path(tempfile.mkdtemp(prefix="benchmark-guard-")) / "data"
    draw_sample_set(folder, num_train=16, num_val=1)
    config = replace(get_experiment("yolox_nano").data, data_dir=str(folder), data_num_workers=0)
    loader = YoloxDataModule(config, batch_size=8, test_size=Size(SIZE, SIZE)).train_dataloader()

    def batches() -> Iterator[object]:
        while True:
            yield from loader

    stream = batches()
    return lambda: next(stream)


def _measurements() -> dict[str, Callable[[], Run]]:
    found: dict[str, Callable[[], Run]] = {}
    for name, bf16 in (("fp32", False), ("bf16", True)):
        found[f"training step, nano, batch 16, {name}"] = partial(_training_step, bf16)
        for title, shape in _BLOCKS.items():
            found[f"training kernels, {title}, {name}"] = partial(_training_block, bf16, *shape)
    found["loss, batch 16, 30 objects"] = _loss
    for batch in (1, 8):
        found[f"native_int8, nano, batch {batch}"] = partial(_int8, batch)
    found["eight training samples"] = _samples
    found["import yolox, processor time"] = partial(_processor_seconds, "-c", "import yolox")
    for tool in ("train", "inference_demo"):
        found[f"{tool} --help, processor time"] = partial(_processor_seconds, "-m", f"yolox.tools.{tool}", "--help")
    return found


MEASUREMENTS = _measurements()

if __name__ == "__main__":
    sys.exit(main())
