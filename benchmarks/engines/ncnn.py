"""ncnn: TorchScript through pnnx, one image at a time."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.engines.inputs import Inputs
from benchmarks.engines.pieces import PieceRunner, Run
from yolox.inference.backends.base import Settings


def prepare(inputs: Inputs, folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Run pnnx, whose Python package holds the program; weights stay in float32."""
    package = find_spec("pnnx")
    assert package is not None
    assert package.origin is not None
    (folder / "traced.pt").write_bytes(inputs.traced.read_bytes())
    shape = ",".join(str(length) for length in (1, *inputs.images.shape[1:]))
    command = [str(Path(package.origin).with_name("pnnx")), "traced.pt", f"inputshape=[{shape}]f32", "fp16=0"]
    subprocess.run(command, cwd=folder, check=True)
    for path in folder.iterdir():
        if ".ncnn." not in path.name:
            path.unlink()
    return {}


def load(inputs: Inputs, folder: Path, options: Mapping[str, Any]) -> PieceRunner:
    """Load the graph, with activations stored as bf16 where asked for."""
    import ncnn

    def load_net(_: int, threads: int) -> Run:
        net = ncnn.Net()
        net.opt.num_threads = threads
        net.opt.use_bf16_storage = net.opt.use_bf16_packed = bool(options.get("bf16"))
        net.load_param(str(folder / "traced.ncnn.param"))
        net.load_model(str(folder / "traced.ncnn.bin"))

        def run(images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
            extractor = net.create_extractor()
            extractor.input("in0", ncnn.Mat(images[0]))
            return [extractor.extract(name)[1].numpy()[None] for name in ("out0", "out1")]

        return run

    return PieceRunner(load_net, (1,), Settings(options["threads"], 1, 1), has_streams=True)
