"""Every module imports where no extra is installed, and --help costs next to nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = """
import importlib, pkgutil, sys
finders = list(sys.meta_path)
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            return None
        return next((spec for finder in finders if (spec := finder.find_spec(name, path, target))), None)
sys.meta_path[:] = [Without()]
"""
OPTIONAL = (
    *("openvino", "onnxruntime", "onnx", "nncf", "torchao", "neural_compressor", "ray", "pyspark", "wandb"),
    *("intel_extension_for_pytorch", "pycocotools", "onnxscript", "pyarrow", "pandas", "mlflow", "optuna"),
    *("fastapi", "uvicorn", "trackers", "supervision"),
)
NOT_FOR_DEPLOYED = ("torch", "pytorch_lightning", "cloudpickle", "yaml", "rich", "matplotlib", "PIL", "safetensors")
IMPORT_ALL = """
import yolox
for module in pkgutil.walk_packages(yolox.__path__, "yolox."):
    importlib.import_module(module.name)
"""
HELP = """
import runpy, sys
sys.argv = ["tool", "--help"]
try:
    runpy.run_module("yolox.tools.TOOL", run_name="__main__")
except SystemExit as stop:
    assert not stop.code, stop.code
heavy = {"torch", "pytorch_lightning", "cv2", "matplotlib", "openvino"} & set(sys.modules)
assert not heavy, heavy
"""
TOOLS = sorted(
    file.stem for file in (ROOT / "yolox" / "tools").glob("*.py") if "__main__" in file.read_text(encoding="utf-8")
)


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


def without(libraries: Sequence[str]) -> str:
    return f"BLOCKED = {set(libraries)!r}{BLOCK}"


def test_everything_imports_without_optional_libraries() -> None:
    result = run(without(OPTIONAL) + IMPORT_ALL)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize(
    "words", ["train", "val -c x.pth", "predict a.jpg -c x.pth", "optimize -c x.pth", "export -c x.pth"]
)
def test_where_only_deployed_models_run_the_other_commands_say_what_they_lack(words: str, tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(b"weights")
    cv2.imwrite(str(tmp_path / "a.jpg"), np.zeros((8, 8, 3), np.uint8))
    code = (
        f"import os; os.chdir({str(tmp_path)!r}); from yolox.tools.command import main; sys.exit(main({words.split()}))"
    )
    result = run(without((*OPTIONAL, *NOT_FOR_DEPLOYED)) + code)
    assert result.returncode == 5, result.stderr[-2000:]
    assert "is not installed. Install it with: pip install yolox-cpu" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("tool", TOOLS)
def test_help_imports_nothing_heavy(tool: str) -> None:
    result = run(HELP.replace("TOOL", tool))
    assert result.returncode == 0, result.stderr[-2000:]
    assert "usage: python -m yolox.tools." in result.stdout
