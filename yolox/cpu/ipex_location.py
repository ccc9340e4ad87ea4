"""Where Intel's extension for PyTorch (IPEX) is: in this Python, in another one, or nowhere.

Its last release, 2.8, works with PyTorch 2.8 alone, so it usually lives in an environment of its own.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from yolox.errors import MissingDependencyError, UsageError

VARIABLE = "YOLOX_IPEX_PYTHON"
INSTALL = "make ipex"
_ENVIRONMENT = ".venv-ipex"
_DISTRIBUTION = "intel_extension_for_pytorch"
_PROBE = f"""
import json
from importlib.metadata import version
print(json.dumps([version("torch"), version("{_DISTRIBUTION}")]))
"""


@dataclass(frozen=True)
class IpexLocation:
    """Where IPEX was found; ``reason`` says it in words, or why it was not.

    Args:
        importable: Whether this very process can import it.
        interpreter: Another Python that can, when this one cannot.
        reason: One sentence for notes and messages.
    """

    importable: bool
    interpreter: Path | None
    reason: str

    @property
    def found(self) -> bool:
        """Whether it can be used at all."""
        return self.importable or self.interpreter is not None


def locate_ipex(
    environment: Mapping[str, str] | None = None, folders: Sequence[Path] | None = None, *, look_here: bool = True
) -> IpexLocation:
    """Look in this Python, then at ``$YOLOX_IPEX_PYTHON``, then for ``.venv-ipex``.

    Args:
        environment: Variables; ``None`` for those of this process.
        folders: Where ``.venv-ipex`` may lie; ``None`` for the one that holds the package, where ``make ipex`` puts it.
            The working directory is never searched: a program that lies there may be anybody's.
        look_here: Whether this Python itself may be the answer.

    Raises:
        UsageError: When the variable names a Python that has no usable IPEX.
    """
    environment = os.environ if environment is None else environment
    if look_here and (here := _own_versions()) is not None and (problem := _mismatch(*here)) is None:
        return IpexLocation(True, None, f"IPEX {here[1]} with PyTorch {here[0]} is used.")
    chosen = environment.get(VARIABLE)
    if chosen:
        problem = _problem(Path(chosen))
        if problem is not None:
            raise UsageError(
                f"{VARIABLE} is '{chosen}', but {problem}. Expected a Python with PyTorch 2.8 and IPEX 2.8; "
                f"unset the variable and run '{INSTALL}', or name another Python."
            )
        return IpexLocation(False, Path(chosen).absolute(), f"IPEX is in {chosen} ({VARIABLE}).")
    reasons = []
    for folder in folders if folders is not None else (source_root(),):
        # not resolved: the link's own path is what makes Python use that environment
        python = folder.absolute() / _ENVIRONMENT / "bin" / "python"
        problem = _problem(python) if python.exists() else None
        if python.exists() and problem is None:
            return IpexLocation(False, python, f"IPEX is in {python}.")
        if problem is not None:
            reasons.append(f"{problem}, so it is not used")
    reasons.append(f"neither this Python nor ${VARIABLE} nor {_ENVIRONMENT} beside the package has it")
    return IpexLocation(False, None, f"IPEX was not found ({'; '.join(dict.fromkeys(reasons))}).")


def import_ipex() -> Any:
    """Return the library of this Python, and keep it from changing logs and printing advice.

    Raises:
        MissingDependencyError: When it is not here, or beside another PyTorch, where importing it ends the process.
    """
    here = _own_versions()
    if here is None or _mismatch(*here) is not None:
        raise MissingDependencyError("intel-extension-for-pytorch in this Python", INSTALL)
    handlers = list(logging.root.handlers)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it misses CUDA, which nobody asked for
    import intel_extension_for_pytorch as ipex

    logging.root.handlers[:] = handlers  # it gives the whole process a log of its own
    logging.getLogger("IPEX").setLevel(logging.ERROR)  # it announces a next release that will never come
    warnings.filterwarnings("ignore", message="JIT pass will be deprecated", category=UserWarning)
    return ipex


def source_root() -> Path:
    """Return the folder that holds the package."""
    return Path(__file__).resolve().parents[2]


def _own_versions() -> tuple[str, str] | None:
    try:
        return version("torch"), version(_DISTRIBUTION)
    except PackageNotFoundError:
        return None


def _mismatch(torch_version: str, ipex_version: str) -> str | None:
    """Return what is wrong with the pair: with another minor version of PyTorch, IPEX ends the whole process."""
    if torch_version.split(".")[:2] == ipex_version.split(".")[:2]:
        return None
    return f"it has IPEX {ipex_version} beside PyTorch {torch_version}"


@lru_cache(maxsize=8)
def _problem(python: Path) -> str | None:
    """Return why ``python`` cannot be used, or ``None``."""
    # -I: variables and the current folder of this process say nothing about what the other Python has installed
    command = [str(python), "-I", "-c", _PROBE]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"'{python}' does not run ({getattr(error, 'strerror', None) or error})"
    if answer.returncode:
        last = answer.stderr.strip().rpartition("\n")[2]
        return f"'{python}' has no IPEX ({last or f'exit code {answer.returncode}'})"
    problem = _mismatch(*json.loads(answer.stdout))
    return None if problem is None else f"'{python}' is of no use: {problem}"
