"""Every row: what it saves gives, in a fresh process and at other batch sizes, the outputs that were judged."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import SmallRows
from torch import nn

from yolox.cpu.ipex_location import locate_ipex
from yolox.errors import YoloxError
from yolox.inference.artifacts.model import AcceleratedModel, load_model, save_model
from yolox.inference.backends.base import PrepareContext
from yolox.inference.convert.prepare import OutputFacts, prepare_model
from yolox.inference.methods import METHODS, get_method, missing_package
from yolox.inference.optimizer import InferenceOptimizer
from yolox.inference.search.protocol import Limits, Payload, Status
from yolox.inference.search.verification import check_saved

pytestmark = [
    pytest.mark.backends,
    pytest.mark.processes,
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
IPEX = [method.name for method in METHODS if method.uses_ipex]
COMPILED = [method.name for method in METHODS if method.backend == "inductor"]
OTHERS = [method.name for method in METHODS if method.name not in {*IPEX, *COMPILED}]
SAMPLE = np.random.default_rng(0).random((4, 3, 32, 32), np.float32)


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    module = SmallRows().train()
    module(torch.from_numpy(SAMPLE))
    return module.eval()


def save(name: str, folder: Path, module: nn.Module) -> tuple[AcceleratedModel, Path, Payload]:
    """Prepare and save a row as its process does."""
    missing = missing_package(get_method(name))
    if missing is not None:
        pytest.skip(str(missing))
    (folder / "work").mkdir(parents=True)
    context = PrepareContext((SAMPLE,), [(SAMPLE,)], 1, folder / "work")
    model = prepare_model(module, get_method(name), context, OutputFacts("*", 1))
    save_model(model, folder / "artifact")
    (folder / "payload").mkdir()
    payload = Payload(folder / "payload")
    payload.write("model", module)
    payload.write_arrays("sample", (SAMPLE,))
    return model, folder / "artifact", payload


def check(name: str, folder: Path) -> None:
    module = small()
    model, artifact, payload = save(name, folder, module)
    check_saved(model, artifact, payload, threads=1)
    loaded = load_model(artifact, trust=True, module=module)
    with torch.inference_mode():
        expected = module(torch.from_numpy(SAMPLE)).numpy()
    for rows in (1, 8):  # the check above has seen these in the other process
        chosen = np.arange(rows) % len(SAMPLE)
        difference = np.square(loaded.run(SAMPLE[chosen])[0] - expected[chosen]).mean()
        assert difference < 0.01 * expected.var()


@pytest.mark.parametrize("name", OTHERS)
def test_a_saved_row_runs(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_a_saved_compiled_row_runs(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not locate_ipex().found, reason="there is no IPEX here: make ipex")
def test_saved_rows_of_ipex_run() -> None:
    """They run in another Python; a row is successful only where its saved model was found to run."""
    optimizer = InferenceOptimizer()
    limits = Limits(rounds=2, round_seconds=0.02, tune_seconds=0.0)
    report = optimizer.optimize(small(), torch.from_numpy(SAMPLE), methods=IPEX, limits=limits)
    assert {row.status for row in report} == {Status.SUCCESSFUL}
    assert not [row.reason for row in report if "not saved" in row.reason]


def _swap_weights(artifact: Path) -> None:
    other, _, _ = save("onnxruntime_fp32", artifact.parent / "other", small(1))
    save_model(other, artifact)


def _lose_model(artifact: Path) -> None:
    max((path for path in artifact.iterdir()), key=lambda path: path.stat().st_size).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [(_swap_weights, "is not the measured one"), (_lose_model, "missing")],
)
def test_a_saved_model_that_answers_otherwise_is_no_success(
    damage: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    model, artifact, payload = save("onnxruntime_fp32", tmp_path, small())
    damage(artifact)
    with pytest.raises(YoloxError, match=message):
        check_saved(model, artifact, payload, threads=1)


@pytest.mark.slow
def test_compiled_models_keep_to_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second compiled model took the place of the first one's program, and the compiler left a folder in TMPDIR."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    one, two = (
        InferenceOptimizer.trace(small(seed), torch.from_numpy(SAMPLE), accelerator="inductor") for seed in (0, 1)
    )
    InferenceOptimizer.save(one, tmp_path / "one")
    again = load_model(tmp_path / "one", trust=True)
    np.testing.assert_allclose(again.run(SAMPLE)[0], one.run(SAMPLE)[0], rtol=1e-4, atol=1e-5)
    assert not np.allclose(two.run(SAMPLE)[0], one.run(SAMPLE)[0], atol=1e-2)
    del one, two
    gc.collect()
    left = [path.name for path in (tmp_path / "tmp").rglob("*")]
    assert not [name for name in left if name.startswith("torchinductor_") or name.endswith(".pt2")]
