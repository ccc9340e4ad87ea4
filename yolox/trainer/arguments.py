"""Check what the caller of the trainer gave, before anything starts."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
from pytorch_lightning.accelerators import AcceleratorRegistry

from yolox.errors import MissingDependencyError, UsageError, did_you_mean
from yolox.trainer.precision import PrecisionOptions

_NOT_OFFERED = {
    "use_hpo": "search for hyper-parameters is not offered; run the trainer from Optuna or Ray Tune",
    "algorithms": "SelectiveBackprop is not offered; write it as a callback",
    "checkpoint_callback": "it is called enable_checkpointing now, and may be False with several processes too",
    "gpus": "use accelerator='cuda' and devices",
    "replace_sampler_ddp": "it is called use_distributed_sampler now",
}
_PLUGINS = {
    "xpu": ("Intel GPUs", None),
    "hpu": ("Intel Gaudi", "lightning_habana"),
    "npu": ("Ascend NPUs", "torch_npu"),
}


def check_arguments(arguments: Mapping[str, Any], num_processes: int) -> None:
    """Refuse keyword arguments that ``pytorch_lightning.Trainer`` does not know or that contradict ours.

    Raises:
        UsageError: Naming the argument and the nearest one that exists.
    """
    known = set(inspect.signature(pl.Trainer.__init__).parameters) - {"self"}
    for name in arguments:
        if name in _NOT_OFFERED:
            raise UsageError(f"Trainer argument '{name}': {_NOT_OFFERED[name]}.")
        if name not in known:
            raise UsageError(f"Trainer has no argument '{name}'.{did_you_mean(name, known)}")
    if arguments.get("strategy", "auto") != "auto" and num_processes > 1:
        raise UsageError(
            f"strategy={arguments['strategy']!r} and num_processes={num_processes} contradict each other; "
            "expected one of them. distributed_backend says how processes start."
        )
    if arguments.get("num_nodes", 1) != 1:
        raise UsageError(
            f"num_nodes is {arguments['num_nodes']}; several machines are used through distributed_backend='ray' or "
            "'spark', where num_processes counts the processes of all machines."
        )


def check_accelerator(accelerator: Any) -> None:
    """Refuse an accelerator that is not there, saying what is missing; an `Accelerator` object passes.

    Raises:
        UsageError: When its name is unknown or the device is absent.
        MissingDependencyError: When its library is not installed.
    """
    if not isinstance(accelerator, str) or accelerator in ("cpu", "auto"):
        return
    name = {"gpu": "cuda"}.get(accelerator, accelerator)
    if name == "cuda":
        if not torch.cuda.is_available():
            built = "finds no device" if torch.version.cuda else "is built without CUDA"
            raise UsageError(f"accelerator '{accelerator}': PyTorch {torch.__version__} {built}. Use 'cpu'.")
        return
    if name in _PLUGINS:
        _check_plugin(name)
    if name not in AcceleratorRegistry.available_accelerators():
        known = sorted({*AcceleratorRegistry.available_accelerators(), *_PLUGINS})
        raise UsageError(
            f"unknown accelerator '{accelerator}'; expected one of {', '.join(known)}.{did_you_mean(name, known)}"
        )


def _check_plugin(name: str) -> None:
    what, library = _PLUGINS[name]
    if library is not None and find_spec(library) is None:
        raise MissingDependencyError(f"{library} (for {what})", f"pip install {library.replace('_', '-')}")
    if library is None and not getattr(torch, name).is_available():
        raise UsageError(f"accelerator '{name}': PyTorch {torch.__version__} finds none of the {what}. Use 'cpu'.")
    if name not in AcceleratorRegistry.available_accelerators():
        raise UsageError(
            f"accelerator '{name}': Lightning {version('pytorch-lightning')} knows none of that name. "
            f"Install and import its plug-in for {what}, or pass an Accelerator object."
        )


def warmup_epochs(auto_lr: bool | Mapping[str, int]) -> int | None:
    """Return the warm-up epochs that ``auto_lr`` names, None where it names none.

    Raises:
        UsageError: When it is neither a bool nor ``{"warmup_epochs": int}``.
    """
    if isinstance(auto_lr, bool):
        return None
    value = auto_lr.get("warmup_epochs") if isinstance(auto_lr, Mapping) else None
    if set(auto_lr if isinstance(auto_lr, Mapping) else ()) != {"warmup_epochs"} or type(value) is not int or value < 0:
        raise UsageError(f"auto_lr is {auto_lr!r}; expected True, False or {{'warmup_epochs': 5}}.")
    return value


def count_processes(num_processes: int | None, arguments: dict[str, Any]) -> int | None:
    """Return the number of processes; Lightning's ``devices`` is taken out of ``arguments`` where it says the same.

    Raises:
        UsageError: When both are given and differ.
    """
    if arguments["accelerator"] not in ("cpu", "auto"):
        return num_processes
    devices = arguments.pop("devices", None)
    if devices in (None, "auto"):
        return num_processes
    if not str(devices).isdigit():
        raise UsageError(f"devices is {devices!r}; on CPUs it is the number of processes.")
    if num_processes not in (None, int(devices)):
        raise UsageError(
            f"devices={devices} and num_processes={num_processes} contradict each other; give one of them."
        )
    return int(devices)


def refuse(name: str, advice: str) -> Callable[..., NoReturn]:
    """Return a method of BigDL-Nano's trainer that says what to do instead."""

    def method(*_: Any, **__: Any) -> NoReturn:
        raise UsageError(f"Trainer.{name} is not offered: {advice}.")

    return method


def as_list(value: Any) -> list[Any]:
    """Return ``None``, one object or several as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def unknown_operators(options: PrecisionOptions) -> list[str]:
    """Return what to tell of operator lists that name what PyTorch does not have."""
    unknown = options.operators.unknown
    return [f"PyTorch has no operator {', '.join(unknown)}: these lines of the lists change nothing"] if unknown else []


def silence_advertisements() -> None:
    """Keep Lightning from recommending other products of its makers."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(_is_news)  # adding it twice changes nothing


def ignore_foreign_warnings() -> None:
    """Ignore what libraries warn of although it is theirs; for a worker, or inside ``warnings.catch_warnings``."""
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    # oneDNN lays out the gradients of depthwise convolutions its own way; nobody can do anything about it
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    # on every machine with Slurm; the plan decides who starts processes, and says so
    warnings.filterwarnings("ignore", message="The `srun` command is available on your system but is not used")


def _is_news(record: logging.LogRecord) -> bool:
    return "Tip: For seamless" not in str(record.msg)
