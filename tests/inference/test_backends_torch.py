"""The torch back ends in this process: each equals the original, numpy or torch, whole or in pieces, saved or not."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import SmallClassifier
from torch import Tensor, nn

from yolox.errors import UsageError
from yolox.inference.artifacts.model import AcceleratedModel, load_model, save_model
from yolox.inference.backends import get_backend
from yolox.inference.backends.base import PrepareContext, Settings
from yolox.inference.backends.torch_runner import FlatModule
from yolox.inference.optimizer import InferenceOptimizer

SAMPLE = np.random.default_rng(0).random((4, 3, 16, 16), np.float32)
QUICK = ["original", "channels_last", "bf16", "bf16_channels_last", "jit_fp32", "jit_fp32_channels_last", "jit_bf16"]


class TwoInputs(nn.Module):
    """Two inputs, nested outputs."""

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Any]:
        return {"sum": a + b, "parts": [a * 2, (b, 3)]}


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    torch.manual_seed(0)
    return SmallClassifier().eval()


def expected_of(module: nn.Module, *inputs: np.ndarray[Any, Any]) -> Any:
    with torch.inference_mode():
        return module(*(torch.from_numpy(array) for array in inputs))


def convert(module: nn.Module, name: str, tmp_path: Path) -> AcceleratedModel:
    from yolox.inference.convert.calibration import ModelInputs
    from yolox.inference.convert.trace import convert as convert_here
    from yolox.inference.methods import get_method

    return convert_here(module, get_method(name), ModelInputs((SAMPLE,), ((SAMPLE,),)), threads=1)


def check(module: nn.Module, name: str, tmp_path: Path) -> None:
    tolerance = 0.02 if "bf16" in name else 1e-4
    expected = expected_of(module, SAMPLE).numpy()
    model = convert(module, name, tmp_path)
    np.testing.assert_allclose(model(SAMPLE), expected, atol=tolerance)
    assert model(torch.from_numpy(SAMPLE)).dtype is torch.float32
    for settings in model.runner.candidates(4, 1):
        np.testing.assert_allclose(model.runner.configured(settings)(SAMPLE)[0], expected, atol=tolerance)
    np.testing.assert_allclose(model(SAMPLE[:3]), expected[:3], atol=tolerance)
    save_model(model, tmp_path / name)
    again = load_model(tmp_path / name, trust=True, module=SmallClassifier())
    np.testing.assert_allclose(again(SAMPLE), model(SAMPLE), atol=1e-6 if "bf16" not in name else 1e-2)
    np.testing.assert_allclose(again(SAMPLE[:1]), expected[:1], atol=tolerance)


@pytest.mark.parametrize("name", QUICK)
def test_quick_methods(classifier: nn.Module, name: str, tmp_path: Path) -> None:
    check(classifier, name, tmp_path)


@pytest.mark.backends
@pytest.mark.parametrize("name", ["inductor_fp32", pytest.param("inductor_bf16", marks=pytest.mark.slow)])
def test_compiled_methods(classifier: nn.Module, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And PyTorch's own cache, which nobody removes, gets nothing."""
    default = Path(tempfile.gettempdir()) / f"torchinductor_{tmp_path.name}"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(default))  # PyTorch does so itself with its choice
    check(classifier, name, tmp_path)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(default)
    left = list(default.rglob("*"))  # PyTorch makes the folder when its name is asked for
    shutil.rmtree(default, ignore_errors=True)
    assert left == []


def test_the_module_stays_as_it_is(classifier: nn.Module, tmp_path: Path) -> None:
    module = copy.deepcopy(classifier).train()
    before = copy.deepcopy(module.state_dict())
    convert(module, "bf16_channels_last", tmp_path)
    assert module.training
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert next(module.parameters()).is_contiguous()


@pytest.mark.parametrize("accelerator", [None, "jit"])
def test_nested_outputs_and_several_inputs(accelerator: str | None) -> None:
    a, b = np.ones((2, 3), np.float32), np.full((2, 3), 2.0, np.float32)
    sample = (torch.from_numpy(a), torch.from_numpy(b))
    if accelerator is None:
        model = InferenceOptimizer.quantize(TwoInputs(), "bf16", input_sample=sample)
    else:
        model = InferenceOptimizer.trace(TwoInputs(), sample, accelerator=accelerator)
    outputs = model(a, b)
    assert outputs["parts"][1][1] == 3
    np.testing.assert_allclose(outputs["sum"], a + b)
    np.testing.assert_allclose(outputs["parts"][0], a * 2)


def test_wishes_that_no_method_fulfils_are_refused(classifier: nn.Module) -> None:
    sample = torch.from_numpy(SAMPLE)
    with pytest.raises(UsageError, match="no method has these properties"):
        InferenceOptimizer.trace(classifier, sample, accelerator="abacus")
    with pytest.raises(UsageError, match="calibrate"):
        InferenceOptimizer.quantize(classifier, "int8", input_sample=sample)


def test_context_sets_and_restores_threads_and_inference_mode(classifier: nn.Module) -> None:
    model = InferenceOptimizer.trace(classifier, torch.from_numpy(SAMPLE), channels_last=True, thread_num=2)
    before = torch.get_num_threads()
    with InferenceOptimizer.get_context(model, classifier):
        assert torch.is_inference_mode_enabled()
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before
    assert not torch.is_inference_mode_enabled()


def test_a_fixed_batch_size_is_filled_up(classifier: nn.Module, tmp_path: Path) -> None:
    context = PrepareContext((SAMPLE,), (), 1, tmp_path, dynamic_batch=False)
    from yolox.inference.methods import get_method

    runner = get_backend("jit").prepare(FlatModule(copy.deepcopy(classifier)), get_method("jit_fp32"), context)
    expected = expected_of(classifier, SAMPLE).numpy()
    seven = np.concatenate([SAMPLE, SAMPLE[:3]])
    np.testing.assert_allclose(runner(seven)[0], np.concatenate([expected, expected[:3]]), atol=1e-4)
    assert all(settings.micro_batch is None for settings in runner.candidates(4, 1))
    assert runner.settings == Settings(1)


@pytest.mark.backends
def test_lowered_int8_equals_its_simulation() -> None:
    pytest.importorskip("torchao")
    import warnings

    from yolox.inference.backends.int8_lowering import lower_int8_, silence_quantize_warning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        torch.manual_seed(0)
        module = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, 2, 1), nn.SiLU(), nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.ReLU()),
            *(nn.Conv2d(16, 8, 1), nn.Sigmoid(), nn.Conv2d(8, 4, 1, bias=False)),
            *(nn.Flatten(), nn.Linear(4 * 8 * 8, 5)),
        ).eval()
        sample = torch.from_numpy(SAMPLE)
        quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(torch.export.export(module, (sample,)).module(), quantizer)
        prepared(sample)
        for observer in prepared.modules():
            if hasattr(observer, "ch_axis"):  # weights of 7 bits: the simulation's sums do not overflow
                observer.min_val, observer.max_val = 2 * observer.min_val, 2 * observer.max_val
        simulated = convert_pt2e(prepared)
        expected = simulated(sample)
        lowered = lower_int8_(copy.deepcopy(simulated))
    silence_quantize_warning()
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        script = torch.jit.freeze(torch.jit.trace(lowered, (sample,), check_trace=False).eval())
        torch.testing.assert_close(script(sample), expected, rtol=0, atol=0.02)
    graph = str(script.inlined_graph)
    assert graph.count("onednn::qconv2d_pointwise") == 4
    assert graph.count("onednn::qlinear_pointwise") == 1
    assert "aten::linear" not in graph
    assert "aten::_convolution" not in graph
    assert "aten::conv2d" not in graph


class _Blocks(nn.Module):
    """Spells shapes with the sizes of its input, as the stem of YOLOX does."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(12, 8, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        blocks = x.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 5, 3, 1, 2, 4).flatten(1, 3)
        return self.convolution(blocks).view(batch, 8, -1)


def test_a_lowered_graph_takes_batches_of_other_sizes_than_it_was_traced_with(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    torch.manual_seed(0)
    module = _Blocks().eval()
    model, expected = convert(module, "jit_int8", tmp_path), expected_of(module, SAMPLE)
    for rows in (4, 3, 1):
        np.testing.assert_allclose(model(SAMPLE[:rows]), expected[:rows], atol=0.05)
