"""Parts of PyTorch without a public name that the back ends need; no other file of them uses such names."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

TENSOR_CHECK = torch.ops.aten._assert_tensor_metadata.default
"""The operator with which torch.export checks types; its name in PyTorch's registry begins with an underscore."""


def compile_package(program: ExportedProgram, target: Path) -> Path:
    """Compile ``program`` by AOTInductor, whose documented functions lie in this module alone.

    Precompiled headers would take 280 MB of the folder for temporary files, where nobody removes them, and save no time
    to a process that compiles a single program.
    """
    settings = {"freezing": True, "aot_inductor.precompile_headers": False}
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(target), inductor_configs=settings)
    return Path(path)


def load_package(package: Path) -> Callable[..., Any]:
    """Load what `compile_package` wrote."""
    return torch._inductor.aoti_load_package(str(package))


def inline_calls_(script: Any) -> None:
    """Put the code of the parts of a traced module into its own graph, where freezing folds across them."""
    torch._C._jit_pass_inline(script.graph)


@cache
def torchscript_function(name: str, text: str) -> Callable[..., Tensor]:
    """Return a function from TorchScript's representation, which can hold types that neither tracing nor Python can."""
    function: Callable[..., Tensor] = torch._C._create_function_from_graph(name, torch._C.parse_ir(text))
    return function
