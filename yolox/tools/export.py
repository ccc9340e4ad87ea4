"""``python -m yolox.tools.export``: a checkpoint as an ONNX or TorchScript file."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolox.config import apply_fields
from yolox.errors import MissingDependencyError, UsageError, YoloxError
from yolox.tools.arguments import (
    ToolParser,
    add_model_arguments,
    add_overrides,
    apply_arguments,
    asked_experiment,
    positive_int,
    run_tool,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from yolox.models.detector import Detector
    from yolox.structures import Size

__all__ = ["build_parser", "main", "run"]

_SUFFIXES = {
    ".onnx": "onnx",
    ".pt": "torchscript",
    ".pth": "torchscript",
    ".ts": "torchscript",
    ".pt2": "torch.export",
    ".safetensors": "weights",
}
_OPSETS = range(9, 24)
_NEW_EXPORTER_FROM = 18
"""The exporter built on torch.export writes this opset and later ones; older ones need the tracing exporter."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit code."""
    return run_tool(lambda: run(build_parser().parse(argv)))


def build_parser() -> ToolParser:
    """Return the parser of the command line."""
    parser = ToolParser(
        "export",
        "Write a checkpoint as an ONNX or TorchScript file for images [B, 3, H, W], BGR 0...255, letterboxed with 114. "
        "For the fastest method on this machine see yolox.tools.inference_demo.",
    )
    add_model_arguments(parser, "checkpoint; alone it is enough")
    parser.add_argument(
        "--output-name", default="yolox.onnx", help=".onnx, .pt or .safetensors file to write (%(default)s)"
    )
    parser.add_argument("--input", default="images", help="name of the ONNX input (%(default)s)")
    parser.add_argument("--output", default="output", help="name of the ONNX output (%(default)s)")
    parser.add_argument("-o", "--opset", type=positive_int, default=18, help="ONNX opset (%(default)s)")
    parser.add_argument("--batch-size", type=positive_int, default=1, help="images of a batch (%(default)s)")
    parser.add_argument("--dynamic", action="store_true", help="leave the batch axis of the ONNX file free")
    parser.add_argument("--tsize", type=positive_int, help="side of the square input (default: test_size)")
    parser.add_argument("--no-onnxsim", action="store_true", help="accepted for old scripts; nothing is simplified")
    parser.add_argument(
        "--decode_in_inference", action="store_true", help="[B, A, 5 + C] with boxes in pixels instead of grid-relative"
    )
    parser.add_argument("--two_outputs", action="store_true", help="'boxes' (xyxy, pixels) and 'scores' instead")
    add_overrides(parser)
    return parser


def run(args: argparse.Namespace) -> Path:
    """Write the file that the options ask for and return its path."""
    import torch

    from yolox.checkpoint import load_model
    from yolox.evaluation.predictor import fold_normalisation
    from yolox.files import atomic_path, check_outputs, make_output_dir, mark_inputs
    from yolox.safe_weights import write_safetensors

    target = Path(args.output_name)
    kind = _SUFFIXES.get(target.suffix)
    if kind is None:
        raise UsageError(f"--output-name '{target}' ends in '{target.suffix}'; expected {', '.join(_SUFFIXES)}.")
    if args.two_outputs and args.decode_in_inference:
        raise UsageError("--two_outputs is decoded already; expected it or --decode_in_inference. Leave one out.")
    if args.opset not in _OPSETS:
        raise UsageError(
            f"--opset {args.opset} is not supported; expected {_OPSETS[0]} to {_OPSETS[-1]} (18 is usual)."
        )
    if args.ckpt is None:
        raise UsageError("no checkpoint given; expected -c FILE.")
    mark_inputs(args.ckpt, args.exp_file)
    check_outputs(target)
    loaded = load_model(args.ckpt, asked_experiment(args))
    if kind == "weights":
        make_output_dir(target.parent)
        write_safetensors(target, loaded.detector.state_dict(), loaded.experiment, loaded.class_names)
        print(f"model: {loaded.source}\nwritten: {target} (weights by official keys; every -c takes it)")
        return target
    experiment = apply_arguments(loaded.experiment, args)
    if args.tsize is not None:
        experiment = apply_fields(experiment, {"eval.test_size": str(args.tsize)})
    model, layout = _deployable(fold_normalisation(loaded.detector), args)
    size = experiment.eval.test_size
    # torch.export would take a free axis of length one for a fixed one
    sample = torch.zeros(max(2, args.batch_size) if args.dynamic else args.batch_size, 3, *size)
    described = _description(loaded.class_names, size, layout)
    make_output_dir(target.parent)
    with atomic_path(target) as temporary:
        if kind == "onnx":
            _write_onnx(model, sample, temporary, args, described)
        elif kind == "torch.export":
            _write_program(model, sample, temporary, args, described)
        else:
            _write_torchscript(model, sample, temporary, described)
    batch = "any batch" if args.dynamic else f"batch {args.batch_size}"
    print(f"model: {loaded.source}\nwritten: {target} ({kind}, {batch}, input {size.height}x{size.width})\n{layout}")
    return target


def _description(class_names: Sequence[str], size: Size, layout: str) -> dict[str, str]:
    """Return what whoever runs the file has to know, as text by name: it is stored in the file."""
    preprocessing = {"layout": "NCHW", "channels": "BGR", "range": [0, 255], "resize": "letterbox", "fill": 114}
    return {
        "class_names": json.dumps(list(class_names)),
        "input_size": json.dumps(list(size)),
        "preprocessing": json.dumps(preprocessing),
        "outputs": layout,
    }


def _deployable(detector: Detector, args: argparse.Namespace) -> tuple[nn.Module, str]:
    """Return the module to export and a line that says what it gives."""
    import torch
    from torch import nn

    from yolox.models.decoding import DecodedDetector, OfficialDetector

    class GridRelative(nn.Module):
        """The official default: raw boxes, probabilities of object and classes."""

        def __init__(self) -> None:
            super().__init__()
            self.detector = detector

        def forward(self, images: Tensor) -> Tensor:
            found = self.detector(images)
            return torch.cat((found.boxes, found.objectness.sigmoid(), found.classes.sigmoid()), dim=-1)

    if args.two_outputs:
        return DecodedDetector(detector).eval(), "outputs: boxes [B, A, 4] xyxy in pixels, scores [B, A, C]"
    if args.decode_in_inference:
        return OfficialDetector(detector).eval(), "output: [B, A, 5 + C] = cx, cy, w, h in pixels, object, classes"
    return GridRelative().eval(), (
        "output: [B, A, 5 + C] = x, y, log w, log h relative to the grid (decode with strides 8, 16, 32), object, "
        "classes; --decode_in_inference gives pixels"
    )


def _write_onnx(
    model: nn.Module, sample: Tensor, path: Path, args: argparse.Namespace, described: dict[str, str]
) -> None:
    import logging
    import warnings

    import torch

    from yolox.inference.convert.onnx_export import add_metadata

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of torchvision, which is not needed
    outputs = ["boxes", "scores"] if args.two_outputs else [args.output]
    names: dict[str, Any] = {"input_names": [args.input], "output_names": outputs, "opset_version": args.opset}
    for library in ("onnx", "onnxscript"):
        if importlib.util.find_spec(library) is None:
            raise MissingDependencyError(library, "pip install 'yolox-cpu[inference]'")
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the exporters warn of their own internals
            if args.opset < _NEW_EXPORTER_FROM:
                axes = {name: {0: "batch"} for name in (args.input, *outputs)} if args.dynamic else None
                torch.onnx.export(model, (sample,), str(path), dynamo=False, dynamic_axes=axes, **names)
                add_metadata(path, described)
                return
            shapes = ({0: torch.export.Dim.DYNAMIC},) if args.dynamic else None
            program = torch.onnx.export(
                model, (sample,), dynamo=True, dynamic_shapes=shapes, verbose=False, external_data=False, **names
            )
            assert program is not None
            program.model.metadata_props.update(described)
            program.save(str(path), external_data=False)
    except (torch.onnx.OnnxExporterError, RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise YoloxError(f"the ONNX export failed: {reason}. Try another --opset (18 is the default).") from error


def _write_program(
    model: nn.Module, sample: Tensor, path: Path, args: argparse.Namespace, described: dict[str, str]
) -> None:
    """Write a program of ``torch.export``; ``torch.export.load(path, extra_files=...)`` reads the description."""
    import torch

    shapes = ({0: torch.export.Dim.DYNAMIC},) if args.dynamic else None
    with torch.no_grad():
        program = torch.export.export(model, (sample,), dynamic_shapes=shapes)
    torch.export.save(program, path, extra_files=dict(described))


def _write_torchscript(model: nn.Module, sample: Tensor, path: Path, described: dict[str, str]) -> None:
    import warnings

    import torch

    files = {f"{name}.json" if name != "outputs" else "outputs.txt": text for name, text in described.items()}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing warns of shapes, which are fixed here on purpose
        traced = torch.jit.trace(model, (sample,))  # type: ignore[no-untyped-call]
        torch.jit.save(traced, str(path), _extra_files=files)


if __name__ == "__main__":
    sys.exit(main())
