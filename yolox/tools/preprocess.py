"""``yolox preprocess``: a data set's images as the binary files that a foreign runtime reads; see `postprocess`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from yolox.config import Experiment
from yolox.tools.arguments import (
    add_data_arguments,
    add_json,
    add_model_arguments,
    add_overrides,
    asked_experiment,
    experiment_of_test,
    keep_stdout_for_json,
    positive_int,
    run_tool,
    write_json,
)
from yolox.tools.parser import ToolParser

INDEX, TRUTH = "index.json", "annotations.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit code."""
    return run_tool(lambda: _run(build_parser().parse(argv)))


def build_parser() -> ToolParser:
    """Return the parser of the command line."""
    parser = ToolParser(
        "preprocess",
        "Write the evaluation images, letterboxed, as raw files [1, 3, H, W], BGR 0...255, for a foreign runtime.",
    )
    add_model_arguments(parser, "checkpoint whose size and class order are meant")
    add_data_arguments(parser, batch_size=16)
    parser.add_argument("--output_dir", required=True, metavar="DIR", help="where the files go")
    parser.add_argument("--dtype", choices=("float32", "uint8"), default="float32", help="(%(default)s)")
    parser.add_argument("--tsize", type=positive_int, help="side of the square input (default: test_size)")
    add_json(parser, "what was written")
    add_overrides(parser)
    return parser


def _run(args: argparse.Namespace) -> None:
    with keep_stdout_for_json(args.json) as machines:
        write_json({"written": args.output_dir, "images": _write(args)}, args.json, machines)


def _write(args: argparse.Namespace) -> int:
    """Write the files and return the number of images."""
    from yolox.data.datamodule import build_val_loader
    from yolox.files import atomic_path, make_output_dir, refuse_inputs, write_text

    experiment, class_names = _experiment(args)
    size = experiment.eval.test_size
    loader = build_val_loader(experiment.data, batch_size=args.batch_size, test_size=size, class_names=class_names)
    truth = loader.dataset.ground_truth_json()
    sizes = {int(image["id"]): image for image in truth["images"]}
    output = Path(args.output_dir)
    refuse_inputs(output / INDEX, output / TRUTH)
    make_output_dir(output / "images")
    rows = []
    try:
        for batch in loader:
            for image_id, image in zip(batch.image_ids.tolist(), batch.images.numpy(), strict=True):
                name = f"images/{image_id}.bin"
                with atomic_path(output / name) as temporary:
                    temporary.write_bytes(image.astype(args.dtype).tobytes())
                known = sizes[image_id]
                rows.append({"id": image_id, "bin": name, "height": known["height"], "width": known["width"]})
    finally:
        loader.close()
    described = {
        "format": 1,
        "shape": [1, 3, *size],
        "dtype": args.dtype,
        "channels": "BGR",
        "range": [0, 255],
        "class_names": list(loader.dataset.class_names),
        "images": rows,
    }
    write_text(output / TRUTH, json.dumps(truth))
    write_text(output / INDEX, json.dumps(described, indent=1) + "\n")
    print(f"written: {len(rows)} images to {output}; when they have been run: yolox postprocess {output} --results DIR")
    return len(rows)


def _experiment(args: argparse.Namespace) -> tuple[Experiment, tuple[str, ...] | None]:
    experiment, class_names = asked_experiment(args), None
    if args.ckpt is not None:
        from yolox.checkpoint import load_model

        loaded = load_model(args.ckpt, experiment)
        experiment, class_names = loaded.experiment, loaded.class_names if loaded.has_own_names else None
    return experiment_of_test(experiment or Experiment("yolox"), args), class_names


if __name__ == "__main__":
    sys.exit(main())
