"""``yolox info``: versions, machine and optional libraries; with a model, what is in it."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from yolox import __version__
from yolox.tools.arguments import add_json, keep_stdout_for_json, run_tool, write_json
from yolox.tools.parser import ToolParser

_LIBRARIES = (
    *("torch", "pytorch-lightning", "numpy", "opencv-python-headless", "openvino", "onnx", "onnxruntime", "nncf"),
    *("torchao", "neural-compressor", "intel-extension-for-pytorch", "ray", "pyspark", "fastapi", "uvicorn"),
    *("supervision", "trackers", "pnnx"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit code."""
    return run_tool(lambda: _run(build_parser().parse(argv)))


def build_parser() -> ToolParser:
    """Return the parser of the command line."""
    parser = ToolParser("info", "Show versions, the machine and optional libraries; with a model, what is in it.")
    parser.add_argument("model", nargs="?", help="checkpoint, published name, deployed folder, ONNX or OpenVINO file")
    parser.add_argument("--trust", action="store_true", help="load a deployed model even if it is a program")
    add_json(parser, "all of it")
    return parser


def _run(args: argparse.Namespace) -> None:
    with keep_stdout_for_json(args.json) as machines:
        facts = _installation() if args.model is None else _model(args.model, args.trust)
        write_json(facts, args.json, machines)
    if args.json:
        return
    for name, value in facts.items():
        shown = ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else value
        print(f"{name}: {', '.join(map(str, value)) if isinstance(value, list) else shown}")


def _installation() -> dict[str, Any]:
    from yolox.cpu.machine import read_machine
    from yolox.published_weights import weights_folder

    installed, missing = {}, []
    for library in _LIBRARIES:
        try:
            installed[library] = version(library)
        except PackageNotFoundError:
            missing.append(library)
    folder = weights_folder()
    return {
        "yolox-cpu": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": str(read_machine()),
        "kernels": _kernels(),
        "libraries": installed,
        "not installed": missing,
        "weights": str(folder),
        "downloaded": sorted(path.name for path in folder.glob("*.pth")),
    }


def _kernels() -> str:
    """Return for which instructions kernels are used here and where they come from; nothing is compiled for it."""
    from yolox.kernels.build import SHIPPED, compiler, found_library
    from yolox.kernels.library import host_variants

    variant = host_variants()[0]
    library = found_library(variant)
    if library is not None:
        return f"{variant.name} ({'installed' if library.parent == SHIPPED else f'compiled: {library}'})"
    how = "missing, and no C++ compiler" if compiler() is None else f"compiled on first use: {compiler()}"
    return f"{variant.name} ({how})"


def _model(model: str, trust: bool) -> dict[str, Any]:
    from yolox.prediction.models import is_deployed, load_predictor

    if is_deployed(model):
        predictor = load_predictor(model, trust=trust)
        facts: dict[str, Any] = {"model": predictor.source, "method": predictor.method}
        size, names = predictor.input_size, predictor.class_names
    else:
        from yolox.checkpoint import load_model
        from yolox.models.detector import summarize

        loaded = load_model(model)
        size, names = loaded.experiment.eval.test_size, loaded.class_names
        facts = {"model": loaded.source, "network": str(summarize(loaded.experiment.model, size))}
    return {**facts, "input": f"{size.height}x{size.width}", "classes": len(names), "class names": list(names)}


if __name__ == "__main__":
    sys.exit(main())
