"""Every module imports where no extra is installed, and --help costs next to nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
IMPORT_ALL = """
import importlib, pkgutil, sys
BLOCKED = {"openvino", "onnxruntime", "onnx", "nncf", "torchao", "neural_compressor", "ray", "pyspark", "wandb",
           "intel_extension_for_pytorch", "pycocotools", "onnxscript"}
finders = list(sys.meta_path)
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            return None
        return next((spec for finder in finders if (spec := finder.find_spec(name, path, target))), None)
sys.meta_path[:] = [Without()]
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


def test_everything_imports_without_optional_libraries() -> None:
    result = run(IMPORT_ALL)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize("tool", TOOLS)
def test_help_imports_nothing_heavy(tool: str) -> None:
    result = run(HELP.replace("TOOL", tool))
    assert result.returncode == 0, result.stderr[-2000:]
    assert "usage: python -m yolox.tools." in result.stdout
