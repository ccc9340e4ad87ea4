"""What the command lines of all tools share: options, errors, exit codes. It imports nothing heavy: --help is quick."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

from yolox.config import DATA_PATHS, DataConfig, Experiment, apply_fields, parse_overrides
from yolox.errors import UsageError
from yolox.experiments import experiment_from_file, get_experiment
from yolox.fields import Range, convert
from yolox.files import write_text
from yolox.tools.parser import ToolParser
from yolox.tools.run_tool import run_tool

__all__ = [
    "MULTI_LABEL",
    "ToolParser",
    "add_data_arguments",
    "add_json",
    "add_model_arguments",
    "add_overrides",
    "apply_arguments",
    "asked_experiment",
    "keep_stdout_for_json",
    "positive_int",
    "prepare_cpu",
    "probability",
    "ranged",
    "run_tool",
    "write_json",
]

MULTI_LABEL = "let a box be a detection of each class that is sure enough, not of its best class alone"
"""Help of the option ``--multi_label``."""


def positive_int(text: str) -> int:
    """Convert the value of an option to a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {value}, expected 1 or more")
    return value


def probability(text: str) -> float:
    """Convert the value of an option to a number from 0 to 1."""
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"got {value}, expected a value from 0 to 1")
    return value


def ranged(option: str, kind: type[int] | type[float], low: float, high: float = math.inf) -> Callable[[str], Any]:
    """Return the function that converts the value of ``option`` to a finite number from ``low`` to ``high``.

    Raises:
        UsageError: From that function, when it gets another value.
    """

    def converted(text: str) -> Any:
        value = convert(option, text, kind)
        Range(low, high).check(option, value)
        return value

    return converted


def _size_or_auto(text: str) -> int | str:
    """Convert a batch size, or leave the word ``auto``."""
    if text == "auto":
        return text
    try:
        return positive_int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"got '{text}', expected a whole number or auto") from error


def add_model_arguments(parser: ToolParser, checkpoint_help: str) -> None:
    """Add ``-n -f -c -expn``."""
    parser.add_argument("-n", "--name", help="published model: yolox_nano, -tiny, -s, -m, -l, -x, yolov3")
    parser.add_argument("-f", "--exp_file", help="experiment file (.yaml, or .py that only sets fields); wins over -n")
    parser.add_argument("-c", "--ckpt", metavar="FILE", help=checkpoint_help)
    parser.add_argument("-expn", "--experiment-name", metavar="NAME", help="name of the output sub-folder")


def add_data_arguments(parser: ToolParser, batch_size: int, auto: bool = False) -> None:
    """Add ``-b --data_dir --val_fraction --num_workers``; ``auto`` lets ``-b auto`` be said."""
    what = "images of a step in all, or auto: as many as memory allows" if auto else "images of a step in all"
    kind = _size_or_auto if auto else positive_int
    parser.add_argument("-b", "--batch-size", type=kind, default=batch_size, help=f"{what} ({batch_size})")
    parser.add_argument("--data_dir", metavar="DIR", help="data set; default $YOLOX_DATADIR, datasets/COCO, samples")
    parser.add_argument(
        "--val_fraction",
        type=probability,
        metavar="SHARE",
        help="share of the images to evaluate on where the data set has no val split (for instance 0.2)",
    )
    parser.add_argument("--num_workers", type=int, metavar="N", help="loader processes; default: fits the cores")


def add_test_arguments(parser: ToolParser) -> None:
    """Add ``--conf --nms --tsize`` of an evaluation."""
    parser.add_argument("--conf", type=probability, help="lowest score for AP (default: test_conf, 0.01)")
    parser.add_argument("--nms", type=probability, help="IoU of non-maximum suppression (default: nmsthre, 0.65)")
    parser.add_argument("--tsize", type=positive_int, help="side of the square input (default: test_size)")


def add_overrides(parser: ToolParser) -> None:
    """Add the tail of overrides, ``max_epoch 2 data.mosaic_prob=0.5``."""
    parser.add_argument(
        "opts", nargs="*", metavar="FIELD VALUE", help="override fields of the experiment: max_epoch 2 data.hsv_prob=0"
    )


def add_json(parser: ToolParser, what: str, to_file: bool = False) -> None:
    """Add ``--json``, see `keep_stdout_for_json`; ``to_file`` lets a file be named instead of stdout."""
    if to_file:
        text = f"write {what} as JSON to FILE; bare: to stdout, and all else to stderr"
        parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help=text)
    else:
        parser.add_argument(
            "--json", action="store_true", help=f"print {what} as JSON on stdout, and all else on stderr"
        )


def asked_experiment(args: argparse.Namespace) -> Experiment | None:
    """Return the experiment of ``-f`` or ``-n``, or None when neither was given."""
    if args.exp_file is not None:
        return experiment_from_file(args.exp_file)
    return get_experiment(args.name) if args.name is not None else None


def apply_arguments(experiment: Experiment, args: argparse.Namespace) -> Experiment:
    """Return ``experiment`` with ``-expn``, the options of the data and the overrides applied.

    With another data set than the experiment's own, the paths that it names within its own are left out; an experiment
    file without a data set names paths within the one that is given with it.

    Raises:
        UsageError: For an override that is unknown, does not convert or is out of range.
    """
    given = {
        "exp_name": args.experiment_name,
        "data_dir": getattr(args, "data_dir", None),
        "val_fraction": getattr(args, "val_fraction", None),
        "data_num_workers": getattr(args, "num_workers", None),
    }
    overrides = parse_overrides(getattr(args, "opts", ()))
    values = {**overrides, **{key: value for key, value in given.items() if value is not None}}
    asked = apply_fields(experiment, values)
    stored = [name for name in DATA_PATHS if getattr(experiment.data, name)]
    own, other = experiment.data.data_dir, asked.data.data_dir
    same = other is None or (own is not None and os.path.abspath(own) == os.path.abspath(other))
    if not stored or same or (own is None and args.exp_file is not None):
        return asked
    print(f"note: '{other}' is not the data set of the experiment; its {', '.join(stored)} do not apply")
    return apply_fields(experiment, {**{name: getattr(DataConfig(), name) for name in stored}, **values})


def chosen_checkpoint(args: argparse.Namespace, asked: Experiment | None) -> Path:
    """Return the file of ``-c``, or the best checkpoint of the run that the options name.

    Raises:
        UsageError: When the options name neither.
    """
    if args.ckpt is not None:
        return Path(args.ckpt)
    if asked is None:
        raise UsageError("no checkpoint given; expected -c FILE (or -n, -f for the best one of an earlier training).")
    chosen = apply_arguments(asked, args)
    best, latest = (Path(chosen.output_dir) / chosen.exp_name / f"{name}_ckpt.pth" for name in ("best", "latest"))
    if latest.is_file() and not best.is_file():
        print(f"note: the run in '{best.parent}' has no best checkpoint, since no AP was measured; its latest is taken")
        return latest
    return best


def experiment_of_test(described: Experiment, args: argparse.Namespace) -> Experiment:
    """Return a model's experiment with the options of an evaluation applied; its network is fixed by the weights.

    Raises:
        UsageError: When an override asks for another network.
    """
    given = {
        "eval.test_conf": getattr(args, "conf", None),
        "eval.nmsthre": getattr(args, "nms", None),
        "eval.test_size": args.tsize,
    }
    fields = {key: str(value) for key, value in given.items() if value is not None}
    experiment = apply_fields(apply_arguments(described, args), fields)
    if experiment.model != described.model:
        raise UsageError(
            f"the overrides ask for {experiment.model}, the checkpoint holds {described.model}. "
            "Leave overrides of the model out; the weights decide."
        )
    return experiment


def machine_facts() -> dict[str, Any]:
    """Return what measured numbers depend on."""
    import torch

    from yolox.cpu.machine import read_machine

    return {
        **read_machine().as_dict(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def report_progress(interval: float) -> Callable[[int, int], None]:
    """Return ``show(done, total)``, which says every ``interval`` seconds on stderr how many images are done.

    On a terminal it keeps one line up to date.
    """
    live = sys.stderr.isatty()
    started = shown = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown < (0.2 if live else interval) and not (live and done == total):
            return
        shown = now
        left = (now - started) / done * (total - done)
        start, end = ("\r" if live else "", "\n" if not live or done == total else "")
        print(f"{start}{done}/{total} images, {left:.0f} s left ", end=end, file=sys.stderr, flush=True)

    return show


def write_json(facts: Mapping[str, Any], name: str | bool | None, machines: TextIO) -> None:
    """Write facts to the file of ``--json FILE``, or to ``machines`` for a bare ``--json``; without it nowhere."""
    if not name:
        return
    text = json.dumps(facts, indent=2) + "\n"
    if name is True or name == "-":
        machines.write(text)
        machines.flush()
    else:
        write_text(Path(name), text)
        print(f"written: {name}")


def prepare_cpu(with_torch: bool = True) -> str:
    """Set allocator and threads of this process for computing on this machine and return one line about them.

    A user's ``OMP_NUM_THREADS`` is left alone.

    Args:
        with_torch: Import PyTorch and set its threads; without it (deployed models) only the allocator is set.
    """
    from yolox.cpu.allocator import keep_freed_memory
    from yolox.cpu.machine import read_machine

    setting = keep_freed_memory()
    machine = read_machine()
    threads = ""
    if with_torch:
        import torch

        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(machine.num_threads)
        threads = f"; {torch.get_num_threads()} threads"
    return f"machine: {machine}{threads}; {setting}"


@contextmanager
def keep_stdout_for_json(asked: str | bool | None) -> Iterator[TextIO]:
    """Give the stream for JSON, stdout; with a bare ``--json`` all that is printed for people goes to stderr.

    Args:
        asked: What `add_json` made of the option.
    """
    machines = sys.stdout
    if asked is not True and asked != "-":
        yield machines
        return
    with redirect_stdout(sys.stderr):
        yield machines
