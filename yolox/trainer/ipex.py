"""Training with Intel's extension for PyTorch (IPEX): where to run, and what to change in module and optimizer.

IPEX 2.8 is its last release and works with PyTorch 2.8 alone. A process that cannot import it runs its command again
in a Python that can, or goes on with what PyTorch itself offers.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn

from yolox.cpu.ipex_location import INSTALL, IpexLocation, import_ipex, source_root
from yolox.errors import MissingDependencyError, UsageError
from yolox.processes.start import package_path

GUARD = "YOLOX_IPEX_RERUN"
"""Set for the second run, which never starts a third."""
_log = logging.getLogger(__name__)
_FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.Adagrad)
"""Optimizers whose step IPEX does on split bf16 weights; for any other it would lose the gradients of a closure."""


@dataclass(frozen=True)
class IpexPlan:
    """The settings that asking for IPEX leads to.

    Args:
        note: One line for log, report and checkpoint.
        available: Whether this process prepares its module, see `PreparedModule`.
        command: The command to run instead of this process, see ``run_again``.
    """

    note: str
    available: bool = False
    command: tuple[str, ...] | None = None


def plan_ipex(
    location: IpexLocation,
    module: str | None = None,
    argv: Sequence[str] = (),
    *,
    strict: bool = False,
    environment: Mapping[str, str] | None = None,
) -> IpexPlan:
    """Decide how a run that asks for IPEX goes on; pure.

    Args:
        location: From ``locate_ipex``.
        module: Module that can be run again as ``python -m module argv...``; ``None`` when that is impossible.
        argv: Its arguments.
        strict: Refuse to go on without IPEX.
        environment: Variables; ``None`` for those of this process.

    Raises:
        MissingDependencyError: When ``strict`` and IPEX is out of reach.
    """
    environment = os.environ if environment is None else environment
    if location.importable:
        return IpexPlan(location.reason, available=True)
    why = location.reason
    if location.interpreter is not None:
        python = str(location.interpreter)
        if module is not None and GUARD not in environment:
            return IpexPlan(f"{why} The same command runs again there.", command=(python, "-m", module, *argv))
        why = f"{why} This process is another Python's; start it with {python}."
    if strict:
        raise MissingDependencyError("intel-extension-for-pytorch", INSTALL)
    return IpexPlan(
        f"{why} Training goes on with PyTorch's own equivalents: oneDNN, channels_last, the fused optimizer. "
        f"'{INSTALL}' builds an environment with IPEX; --strict refuses to go on without."
    )


def run_again(plan: IpexPlan, *, replace: bool = True) -> int:
    """Run the plan's command with the terminal, signals and exit code of this process.

    Args:
        plan: One with a command.
        replace: Become that process and never return; else run it as a child and return its exit code. The child is
            told of SIGTERM; Ctrl-C reaches it from the terminal.
    """
    assert plan.command is not None, "only a plan with a command can run"
    environment = rerun_environment(os.environ)
    sys.stdout.flush()
    sys.stderr.flush()
    if replace:
        os.execve(plan.command[0], plan.command, environment)
    process = subprocess.Popen(plan.command, env=environment)
    before = {}
    if threading.current_thread() is threading.main_thread():
        before[signal.SIGTERM] = signal.signal(signal.SIGTERM, lambda number, frame: process.send_signal(number))
        before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 - code if code < 0 else code


def rerun_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for the second run: the guard, and this very source code."""
    changed = {"TORCH_CPP_LOG_LEVEL": "ERROR", **environment, GUARD: "1"}  # a note on every import otherwise
    root = source_root()
    if (root / "setup.py").is_file():  # else it is a folder of packages, other Python's PyTorch included
        changed["PYTHONPATH"] = package_path(environment)
    return changed


class PreparedModule:
    """A module and its optimizer that IPEX has changed in place, and the way back; ``note`` says what was done.

    Weights lie in oneDNN's blocked layout, and one fused kernel does the step. With ``bf16`` the weights of
    convolutions and linear layers become bf16, their lower halves kept beside them, so that the step is as exact as in
    fp32; the caller runs the steps under autocast. ``state_dict`` of the module, and of every part of it, still gives
    plain fp32 weights, and the optimizer's gives plain fp32 states; both load too. Make it before
    ``DistributedDataParallel`` wraps the module.

    Args:
        module: In training mode or not; the mode is kept.
        optimizer: Its only optimizer.
        precision: ``bf16``, or anything else for fp32 weights.
        bf16_weights: Whether they may be bf16; not where parts of the module compute in fp32 all the same.

    Raises:
        MissingDependencyError: When IPEX cannot be imported.
    """

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, precision: str, *, bf16_weights: bool = True
    ) -> None:
        self.module = module
        self.optimizer = optimizer
        ipex = import_ipex()
        fused = type(optimizer) in _FUSED
        able = bool(ipex._C.onednn_has_bf16_support())
        half = precision == "bf16" and fused and bf16_weights and able
        self._children = [(parent, *item) for parent in module.modules() for item in parent.named_children()]
        self._names = [(part, set(vars(part)), set(part._parameters)) for part in module.modules()]
        self._optimizer_names = dict(vars(optimizer))
        training = module.training
        module.train()  # the other mode would fold normalisations into convolutions
        # packed fp32 weights under bf16 autocast corrupt the heap in IPEX 2.8
        pack = half or precision != "bf16"
        dtype = torch.bfloat16 if half else None
        ipex.optimize(module, dtype=dtype, optimizer=optimizer, inplace=True, weights_prepack=pack)
        module.train(training)
        # torch counts calls of the step that IPEX has just replaced, and warns of a wrong order
        warnings.filterwarnings("ignore", message="Seems like `optimizer.step", category=UserWarning)
        self._wrappers: Mapping[Tensor, Any] = vars(module).get("params_attr", {})
        self._hooks = [_on_state_dict(part, self._publish) for part in module.modules()]
        for name in ("state_dict", "_original_state_dict"):  # IPEX's own, which knows the outermost module alone
            vars(module).pop(name, None)
        packed = sum(getattr(parent, name) is not child for parent, name, child in self._children)
        name = type(optimizer).__name__
        self.note = f"IPEX packed the weights of {packed} layers in {'bf16' if half else 'fp32'}"
        if not pack:
            if not able:
                reason = "this processor has no AVX-512, without which it does not pack bf16 weights"
            else:
                reason = (
                    "parts of the module compute in fp32" if fused else f"it has no step of {name} for bf16 weights"
                )
            self.note = f"IPEX left the weights as they are, since {reason}"
        elif fused:
            self.note += f" and fused the step of {name}"

    def restore_(self) -> None:
        """Give the module its own layers back, with the trained weights in fp32, and the optimizer its own step."""
        state = self.optimizer.state_dict()
        plain = {parameter: wrapper._unpack_cast_to_fp32() for parameter, wrapper in self._wrappers.items()}
        for hook in self._hooks:
            hook.remove()
        for parent, name, child in self._children:
            child.train(getattr(parent, name).training)
            parent.add_module(name, child)
        for part, attributes, parameters in self._names:
            for name in set(vars(part)) - attributes:
                del vars(part)[name]
            for name in set(part._parameters) - parameters:
                del part._parameters[name]
        for parameter, value in plain.items():
            parameter.grad = None
            parameter.data = value
        for name in set(vars(self.optimizer)) - set(self._optimizer_names):
            del vars(self.optimizer)[name]
        vars(self.optimizer).update(
            {name: self._optimizer_names[name] for name in ("step",) if name in self._optimizer_names}
        )
        self.optimizer.load_state_dict(state)

    def _publish(self, part: nn.Module, state: dict[str, Any], prefix: str) -> None:
        """Put plain fp32 weights into the state dict of one part."""
        for name, parameter in part._parameters.items():
            if name.startswith("_ipex_module_empty"):
                state.pop(prefix + name, None)
            elif parameter is not None and parameter in self._wrappers:
                state[prefix + name] = self._wrappers[parameter]._unpack_cast_to_fp32().detach()


class IpexTraining(Callback):
    """Prepares the module of a fit with IPEX and gives it its own layers back afterwards.

    Args:
        precision: As for `PreparedModule`; the trainer itself runs the steps under autocast.
        bf16_weights: As for `PreparedModule`.
    """

    def __init__(self, precision: str, *, bf16_weights: bool = True) -> None:
        self.precision = precision
        self.bf16_weights = bf16_weights
        self._prepared: PreparedModule | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prepare; Lightning loads the optimizer's state of a checkpoint after this.

        Raises:
            UsageError: When there is more than one optimizer.
        """
        if len(trainer.optimizers) != 1:
            raise UsageError(
                f"use_ipex works with one optimizer, the module has {len(trainer.optimizers)}. Leave use_ipex out."
            )
        optimizer = trainer.optimizers[0]
        self._prepared = PreparedModule(pl_module, optimizer, self.precision, bf16_weights=self.bf16_weights)
        strategy = trainer.strategy
        if isinstance(strategy, DDPStrategy):  # it was wrapped around weights of another shape
            strategy.model = pl_module
            strategy.configure_ddp()
        if trainer.is_global_zero:
            _log.info("%s", self._prepared.note)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore."""
        self._restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Restore."""
        self._restore()

    def _restore(self) -> None:
        if self._prepared is not None:
            self._prepared.restore_()
            self._prepared = None


def _on_state_dict(part: nn.Module, publish: Callable[[nn.Module, dict[str, Any], str], None]) -> Any:
    """Have ``publish`` edit every state dict of ``part``; return the handle that removes it again."""

    # torch marks the hook, and a bound method takes no marks
    def hook(part: nn.Module, state: dict[str, Any], prefix: str, metadata: object) -> None:
        publish(part, state, prefix)

    return part.register_state_dict_post_hook(hook)  # type: ignore[no-untyped-call]
