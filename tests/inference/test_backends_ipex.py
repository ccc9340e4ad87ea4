"""The IPEX back end, where .venv-ipex has been built: every method there, and its artifacts from this Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from yolox.cpu.ipex_location import IpexLocation, locate_ipex
from yolox.cpu.machine import read_machine
from yolox.errors import MissingDependencyError, ModelFileError
from yolox.inference.artifacts.manifest import read_manifest
from yolox.inference.artifacts.model import load_model
from yolox.inference.backends import ipex
from yolox.inference.backends.base import Method, PrepareContext
from yolox.inference.backends.torchscript import SCRIPT
from yolox.inference.convert.quantizers.ipex_static import count_work, keep_float
from yolox.inference.methods import METHODS, get_method

ROOT = Path(__file__).resolve().parents[2]
NAMES = [method.name for method in METHODS if method.backend == "ipex"]
WRITE = """
import copy, json, sys
from pathlib import Path
import numpy as np, torch
from small_models import SmallClassifier
from yolox.errors import YoloxError
from yolox.inference.artifacts.model import AcceleratedModel, save_model
from yolox.inference.artifacts.manifest import Manifest
from yolox.inference.backends.base import PrepareContext
from yolox.inference.backends.ipex import BACKEND
from yolox.inference.backends.torch_runner import FlatModule
from yolox.inference.methods import get_method

folder, names = Path(sys.argv[1]), sys.argv[2:]
torch.manual_seed(0)
model = FlatModule(SmallClassifier()).eval()
model.model.features[1].running_mean.uniform_(-0.5, 0.5)
sample = np.random.default_rng(0).random((4, 3, 16, 16), dtype=np.float32)
with torch.inference_mode():
    np.save(folder / "reference.npy", model(torch.from_numpy(sample))[0].numpy())
np.save(folder / "sample.npy", sample)
answers = {}
for name in names:
    work = folder / "work" / name
    work.mkdir(parents=True)
    context = PrepareContext(sample=(sample,), calibration=((sample,),), threads=1, work_dir=work)
    method = get_method(name)
    try:
        runner = BACKEND.prepare(copy.deepcopy(model), method, context)
    except YoloxError as error:
        answers[name] = {"refused": str(error)}
        continue
    for _ in range(3):  # fused kernels are compiled in the first runs
        outputs = runner(sample)
    one = runner(sample[:1])
    manifest = Manifest(
        method=name, backend="ipex", precision=method.precision.value, options=dict(method.options),
        settings=runner.settings, input_shapes=(sample.shape,), input_dtypes=("float32",), num_outputs=1,
        int8_share=runner.int8_share, structure="*")
    save_model(AcceleratedModel(runner, manifest), folder / name)
    np.save(folder / f"{name}.npy", outputs[0])
    answers[name] = {"share": runner.int8_share, "one": float(abs(one[0] - outputs[0][:1]).max())}
print(json.dumps(answers))
"""


@dataclass(frozen=True)
class Written:
    folder: Path
    answers: dict[str, dict[str, Any]]

    def array(self, name: str) -> np.ndarray:
        return np.load(self.folder / f"{name}.npy")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Artifacts of every method, written by the Python that has IPEX."""
    location = locate_ipex(folders=(ROOT,))
    if not location.found:
        pytest.skip(f"{location.reason} Run 'make ipex'.")
    folder = tmp_path_factory.mktemp("ipex")
    python = sys.executable if location.importable else str(location.interpreter)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(Path(__file__).parent)))}
    done = subprocess.run(
        [python, "-c", WRITE, str(folder), *NAMES],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return Written(folder, json.loads(done.stdout.strip().splitlines()[-1]))


@pytest.mark.backends
@pytest.mark.parametrize("name", NAMES)
def test_methods_answer_like_the_original(written: Written, name: str) -> None:
    method = get_method(name)
    if method.precision.value == "bf16" and "avx512f" not in read_machine().isa:
        assert "no AVX-512" in written.answers[name]["refused"]
        return
    tolerance = {"fp32": 1e-5, "bf16": 0.02, "int8": 0.1}[method.precision.value]
    reference = written.array("reference")
    np.testing.assert_allclose(written.array(name), reference, atol=tolerance * np.abs(reference).max())
    assert written.answers[name]["one"] <= tolerance * np.abs(reference).max()
    share = written.answers[name]["share"]
    assert share == 1.0 if method.precision.value == "int8" else share is None


@pytest.mark.backends
@pytest.mark.parametrize("name", ["fp32_ipex", "static_int8_ipex"])
def test_artifacts_answer_the_same_in_a_fresh_process(written: Written, name: str) -> None:
    model = load_model(written.folder / name, trust=True)
    sample, expected = written.array("sample"), written.array(name)
    for _ in range(3):
        answer = model(sample)
    np.testing.assert_allclose(answer, expected, atol=1e-6)
    assert isinstance(model(torch.from_numpy(sample)), torch.Tensor)
    assert model(sample[:3]).shape == (3, 10)


@pytest.mark.backends
def test_a_damaged_artifact_is_named(written: Written, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    for file in ("manifest.json", SCRIPT):
        (folder / file).write_bytes((written.folder / "fp32_ipex" / file).read_bytes())
    (folder / SCRIPT).write_bytes(b"nothing")
    with pytest.raises(ModelFileError, match="is not the file that was saved"):
        load_model(folder, trust=True)
    (folder / SCRIPT).unlink()
    with pytest.raises(ModelFileError, match="is missing"):
        load_model(folder, trust=True)
    assert read_manifest(folder).backend == "ipex"


def test_without_ipex_the_row_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ipex, "locate_ipex", lambda: IpexLocation(False, None, "nowhere"))
    with pytest.raises(MissingDependencyError, match="make ipex"):
        ipex.interpreter()
    context = PrepareContext(sample=(np.zeros((1, 3, 8, 8), np.float32),), calibration=(), threads=1, work_dir=tmp_path)
    method: Method = get_method("bf16_ipex")
    with pytest.raises(MissingDependencyError, match="make ipex"):
        ipex.BACKEND.prepare(nn.Conv2d(3, 4, 1), method, context)


def test_interpreter_is_this_python_or_the_one_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipex, "locate_ipex", lambda: IpexLocation(True, None, "here"))
    assert ipex.interpreter() == sys.executable
    monkeypatch.setattr(ipex, "locate_ipex", lambda: IpexLocation(False, Path("/opt/python"), "there"))
    assert ipex.interpreter() == "/opt/python"


def test_work_counts_multiply_accumulates() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.Flatten())
    model.append(nn.Linear(8 * 4 * 4, 10))
    work = count_work(model, (torch.zeros(1, 3, 8, 8),))
    assert work == {"0": 64 * 8 * 3 * 9, "1": 16 * 8 * 9, "3": 128 * 10}


def test_float_layers_and_additions_lose_their_int8_types() -> None:
    def operation(kind: str, name: str) -> dict[str, object]:
        tensor = {"inf_dtype": "torch.quint8", "force_dtype": "torch.quint8"}
        return {"op_type": kind, "fqn": name, "input_tensor_infos": [dict(tensor)], "weight_tensor_infos": [None]}

    operations = {"0": operation("Conv2d", "a"), "1": operation("Conv2d", "b"), "2": operation("method add", "")}
    keep_float({"part": {"q_op_infos": operations}}, ["b"])
    types = [op["input_tensor_infos"][0]["inf_dtype"] for op in operations.values()]  # type: ignore[index]
    assert types == ["torch.quint8", "torch.float32", "torch.float32"]
