"""``python -m yolox.tools.export``: a checkpoint as a file for other programs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from yolox.config import apply_fields
from yolox.errors import UsageError
from yolox.temporary_folders import TemporaryFolder
from yolox.tools.arguments import (
    MULTI_LABEL,
    ToolParser,
    add_json,
    add_model_arguments,
    add_overrides,
    apply_arguments,
    asked_experiment,
    keep_stdout_for_json,
    positive_int,
    probability,
    run_tool,
    write_json,
)

if TYPE_CHECKING:
    from torch import nn

    from yolox.checkpoint import LoadedModel
    from yolox.inference.convert.deploy import Deployment
    from yolox.structures import Size

_SUFFIXES = {
    ".onnx": "onnx",
    ".xml": "openvino",
    ".pt": "torchscript",
    ".pth": "torchscript",
    ".ts": "torchscript",
    ".pt2": "torch_export",
    ".param": "ncnn",
    ".safetensors": "weights",
}
_FORMATS = tuple(dict.fromkeys(_SUFFIXES.values()))
_DEFAULT_NAMES = {"ncnn": "yolox.ncnn.param"}
"""Where it is not ``yolox`` with the ending of the format: yolox.bin belongs to OpenVINO."""

_GRAPH_OPTIONS = ("opset", "nms")
"""Options of the formats that are graphs of ONNX operators."""

_NAME_OPTIONS = ("input", "output")
"""Options of the formats whose inputs and outputs have names."""

_NETWORK_OPTIONS = ("batch_size", "dynamic", "dynamic_size", "tsize", "decode_in_inference", "two_outputs")
"""Options of the formats that hold a network, not weights alone."""

_SUPPRESSION_OPTIONS = ("conf", "nms_iou", "multi_label")
DEFAULT_OPSET = 18


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit code."""
    return run_tool(lambda: _run(build_parser().parse(argv)))


def build_parser() -> ToolParser:
    """Return the parser of the command line."""
    parser = ToolParser(
        "export",
        "Write a checkpoint as a file for other programs, which takes images [B, 3, H, W], BGR 0...255, letterboxed "
        "with 114. For the fastest method on this machine see yolox.tools.inference_demo.",
    )
    add_model_arguments(parser, "checkpoint; alone it is enough")
    parser.add_argument("--format", choices=_FORMATS, help="what to write (default: by the ending of --output-name)")
    parser.add_argument(
        "--output-name", metavar="FILE", help=f"{', '.join(_SUFFIXES)} file to write (default: yolox.onnx)"
    )
    parser.add_argument("--input", help="name of the input, of onnx, openvino, ncnn (images)")
    parser.add_argument("--output", help="name of the output, of the same (output)")
    parser.add_argument("-o", "--opset", type=positive_int, help=f"ONNX opset ({DEFAULT_OPSET})")
    parser.add_argument("--batch-size", type=positive_int, help="images of a batch (1)")
    parser.add_argument("--dynamic", action="store_true", help="leave the number of images free")
    parser.add_argument("--dynamic_size", action="store_true", help="leave height and width free, multiples of 32")
    parser.add_argument("--tsize", type=positive_int, help="side of the square input (default: test_size)")
    parser.add_argument("--no-onnxsim", action="store_true", help="accepted for old scripts; nothing is simplified")
    parser.add_argument(
        "--decode_in_inference", action="store_true", help="[B, A, 5 + C] with boxes in pixels instead of grid-relative"
    )
    parser.add_argument("--two_outputs", action="store_true", help="'boxes' (xyxy, pixels) and 'scores' instead")
    parser.add_argument(
        "--nms", action="store_true", help="suppression inside the graph: 'detections' [N, 7] (onnx, openvino)"
    )
    parser.add_argument("--conf", type=probability, help="with --nms: lowest score (0.25)")
    parser.add_argument("--nms_iou", type=probability, help="with --nms: IoU of the suppression (0.45)")
    parser.add_argument("--multi_label", action="store_true", help=f"with --nms: {MULTI_LABEL}")
    add_json(parser, "what was written")
    add_overrides(parser)
    return parser


def _run(args: argparse.Namespace) -> None:
    with keep_stdout_for_json(args.json) as report:
        written = run(args)
        write_json({"written": str(written), "format": _SUFFIXES[written.suffix]}, args.json, report)


def run(args: argparse.Namespace) -> Path:
    """Write the file that the options ask for and return its path."""
    kind, target = _kind_and_target(args)
    _check_options(args, kind)
    from yolox.checkpoint import load_model
    from yolox.files import atomic_path, check_outputs, make_output_dir, mark_inputs
    from yolox.inference.convert.deploy import COMPANIONS, check_deployment, write_deployment
    from yolox.safe_weights import write_safetensors

    asked = None if kind == "weights" else _deployment(args, kind)
    if asked is not None:
        check_deployment(asked)
    if args.ckpt is None:
        raise UsageError("no checkpoint given; expected -c FILE.")
    mark_inputs(args.ckpt, args.exp_file)
    check_outputs(target, *(target.with_suffix(suffix) for suffix in COMPANIONS.get(kind, ())))
    _check_weights_of_others(target, kind)
    loaded = load_model(args.ckpt, asked_experiment(args))
    if asked is None:
        make_output_dir(target.parent)
        write_safetensors(target, loaded.detector.state_dict(), loaded.experiment, loaded.class_names)
        print(f"model: {loaded.source}\nwritten: {target} (weights by official keys; every -c takes it)")
        return target
    module, size, asked = _described(loaded, args, asked)
    import torch

    make_output_dir(target.parent)
    with TemporaryFolder("export", target.parent) as folder:
        files = folder / "files"
        files.mkdir()
        write_deployment(module, torch.zeros(args.batch_size or 1, 3, *size), files / target.name, asked)
        for file in sorted(files.iterdir()):
            with atomic_path(target.parent / file.name) as temporary:
                os.replace(file, temporary)
    batch = "any batch" if args.dynamic else f"batch {args.batch_size or 1}"
    shape = "input of any multiples of 32" if args.dynamic_size else f"input {size.height}x{size.width}"
    print(f"model: {loaded.source}\nwritten: {target} ({kind}, {batch}, {shape})\n{asked.description['outputs']}")
    return target


def _kind_and_target(args: argparse.Namespace) -> tuple[str, Path]:
    """Return the format and the file: one follows from the other where it is not given.

    Raises:
        UsageError: When they contradict each other.
    """
    suffix_of = {kind: suffix for suffix, kind in reversed(_SUFFIXES.items())}
    asked = args.format or "onnx"
    target = Path(args.output_name or _DEFAULT_NAMES.get(asked, f"yolox{suffix_of[asked]}"))
    kind = _SUFFIXES.get(target.suffix)
    if kind is None:
        raise UsageError(f"--output-name '{target}' ends in '{target.suffix}'; expected {', '.join(_SUFFIXES)}.")
    if args.format not in (None, kind):
        raise UsageError(
            f"--format {args.format} and --output-name '{target}' contradict each other; "
            f"expected a name that ends in {suffix_of[args.format]}."
        )
    return kind, target


def _check_weights_of_others(target: Path, kind: str) -> None:
    """Refuse to replace the .bin file of a model of another format.

    Raises:
        UsageError: When there is one of the same name.
    """
    other = {"openvino": ".param", "ncnn": ".xml"}.get(kind)
    if other is not None and target.with_suffix(other).exists():
        raise UsageError(
            f"'{target.with_suffix('.bin')}' would hold the weights of '{target}', and '{target.with_suffix(other)}' "
            "has its weights there already. Choose another name."
        )


def _check_options(args: argparse.Namespace, kind: str) -> None:
    """Refuse options that this format would have to ignore."""
    given = {name for name, value in vars(args).items() if value not in (None, False)}
    refused = {
        **dict.fromkeys(_GRAPH_OPTIONS if kind not in ("onnx", "openvino") else (), f"the format {kind}"),
        **dict.fromkeys(_NAME_OPTIONS if kind not in ("onnx", "openvino", "ncnn") else (), f"the format {kind}"),
        **dict.fromkeys(_NETWORK_OPTIONS if kind == "weights" else (), "the format weights"),
        **dict.fromkeys(_SUPPRESSION_OPTIONS if not args.nms else (), "an export without --nms"),
        **dict.fromkeys(("output",) if args.nms or args.two_outputs else (), "outputs that have fixed names"),
    }
    for name in sorted(given & refused.keys()):
        raise UsageError(f"--{name} has no meaning for {refused[name]}. Leave it out.")
    if kind == "ncnn" and args.batch_size not in (None, 1):
        raise UsageError(f"--batch-size {args.batch_size} was given; an ncnn graph takes one image. Leave it out.")
    layouts = [name for name in ("nms", "two_outputs", "decode_in_inference") if name in given]
    if len(layouts) > 1:
        options = " and ".join(f"--{name}" for name in layouts)
        raise UsageError(f"{options} were given together; expected one layout of the outputs. Leave one out.")


def _deployment(args: argparse.Namespace, kind: str) -> Deployment:
    from yolox.inference.backends.graph_file import Suppression
    from yolox.inference.convert.deploy import Deployment
    from yolox.models.decoding import OUTPUT_LAYOUTS

    names = OUTPUT_LAYOUTS[_layout(args)].names
    confidence, nms_iou = 0.25 if args.conf is None else args.conf, 0.45 if args.nms_iou is None else args.nms_iou
    return Deployment(
        kind,
        input_name=args.input or "images",
        output_names=(args.output,) if args.output else names,
        opset=args.opset or DEFAULT_OPSET,
        dynamic_batch=args.dynamic,
        dynamic_size=args.dynamic_size,
        nms=Suppression(confidence, nms_iou, args.multi_label) if args.nms else None,
    )


def _layout(args: argparse.Namespace) -> str:
    if args.nms or args.two_outputs:
        return "boxes_scores"
    return "pixels" if args.decode_in_inference else "grid"


def _described(loaded: LoadedModel, args: argparse.Namespace, asked: Deployment) -> tuple[nn.Module, Size, Deployment]:
    """Return the module to write, the size of its input, and what was asked with the description of the file."""
    from dataclasses import asdict, replace

    import torch

    from yolox.data.image_ops import PREPROCESSING
    from yolox.inference.convert.folding import fold_normalisations
    from yolox.models.decoding import OUTPUT_LAYOUTS, DecodedDetector, replace_focus_
    from yolox.structures import OUTPUT_DESCRIPTIONS

    experiment = apply_arguments(loaded.experiment, args)
    if args.tsize is not None:
        experiment = apply_fields(experiment, {"eval.test_size": str(args.tsize)})
    size, layout = experiment.eval.test_size, _layout(args)
    decoded = DecodedDetector(loaded.detector, OUTPUT_LAYOUTS[layout].output).eval()
    module = fold_normalisations(decoded, (torch.zeros(1, 3, 64, 64),))
    if asked.format == "ncnn":
        replace_focus_(module)  # its arrays have four axes at most
    description = {
        "class_names": json.dumps(list(loaded.class_names)),
        "input_size": json.dumps(list(size)),
        "preprocessing": json.dumps(PREPROCESSING),
        "outputs": OUTPUT_DESCRIPTIONS[layout if asked.nms is None else "detections"],
    }
    if asked.nms is not None:
        description["suppression"] = json.dumps(asdict(asked.nms))
    return module, size, replace(asked, description=description)


if __name__ == "__main__":
    sys.exit(main())
