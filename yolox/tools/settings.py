"""``yolox settings``: all fields that a run would use, and the variables of the environment that are read."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from yolox.config import Experiment, experiment_to_dict
from yolox.tools.arguments import (
    add_json,
    add_model_arguments,
    add_overrides,
    apply_arguments,
    asked_experiment,
    keep_stdout_for_json,
    run_tool,
    write_json,
)
from yolox.tools.parser import ToolParser

VARIABLES: Mapping[str, str] = {
    "YOLOX_DATADIR": "data set where --data_dir is not given",
    "YOLOX_CACHE": "folder for things that can be made again: weights, compiled kernels, sample data",
    "YOLOX_WEIGHTS_URL": "mirror of the published weights",
    "YOLOX_WEIGHTS_SHA256": "file with the digests of weights, in the form of sha256sum",
    "https_proxy": "proxy for downloads",
    "OMP_NUM_THREADS": "threads of a computation; unset: one for each core",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit code."""
    return run_tool(lambda: _run(build_parser().parse(argv)))


def build_parser() -> ToolParser:
    """Return the parser of the command line."""
    parser = ToolParser("settings", "Show all settings of an experiment as YAML, ready for -f, and the environment.")
    add_model_arguments(parser, "checkpoint whose settings are shown")
    add_json(parser, "all of it")
    add_overrides(parser)
    return parser


def _run(args: argparse.Namespace) -> None:
    with keep_stdout_for_json(args.json) as machines:
        fields = _fields(args)
        environment: dict[str, Any] = {name: os.environ.get(name) for name in VARIABLES}
        write_json({"experiment": fields, "environment": environment}, args.json, machines)
    if args.json:
        return
    import yaml

    print(yaml.safe_dump(fields, sort_keys=False, default_flow_style=None), end="")
    for name, meaning in VARIABLES.items():
        print(f"# {name}={environment[name] or ''}  ({meaning})")


def _fields(args: argparse.Namespace) -> dict[str, Any]:
    experiment = asked_experiment(args)
    if experiment is None and args.ckpt is not None:
        from yolox.checkpoint import load_model

        experiment = load_model(args.ckpt).experiment
    return experiment_to_dict(apply_arguments(experiment or Experiment("yolox"), args))


if __name__ == "__main__":
    sys.exit(main())
