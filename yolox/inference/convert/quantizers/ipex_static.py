"""Static int8 with IPEX's own quantizer; sensitive layers stay in float until the accuracy holds."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from yolox.inference.artifacts.structure import flatten
from yolox.inference.backends.base import Array, Arrays, PrepareContext, as_numpy, like_inputs
from yolox.inference.backends.torch_runner import torch_sample
from yolox.inference.convert.quantizers.mixed_precision import first_accurate

NUM_CALIBRATION = 64


def quantize_static(ipex: Any, model: nn.Module, context: PrepareContext) -> tuple[nn.Module, float]:
    """Return the quantized module, ready to be traced, and the share of its multiply-accumulates that run in int8.

    Args:
        ipex: The imported library.
        model: The module with its normalisations folded; it is changed.
        context: Calibration data, accuracy and its bound.

    Raises:
        UsageError: When there is no calibration data.
    """
    rows = context.calibration_rows(NUM_CALIBRATION)
    work = count_work(model, torch_sample(context, 1))
    prepared = _calibrated(ipex, model, context, rows)
    summary_file = context.work_dir / "ipex_int8.json"
    prepared.save_qconf_summary(str(summary_file))
    summary = json.loads(summary_file.read_text(encoding="utf-8"))

    def quantize(kept: set[str]) -> tuple[nn.Module, float]:
        keep_float(summary, kept)  # the sets grow, so what was left in float before stays there
        share = 1.0 - sum(work.get(part, 0) for part in kept) / max(1, sum(work.values()))
        return _converted(ipex, prepared, summary, summary_file), share

    attempts = ((f"int8 with {name} in float", partial(quantize, kept)) for name, kept in _float_sets(prepared, work))
    return first_accurate(attempts, lambda quantized: _predictor(quantized[0], context), context)


def count_work(model: nn.Module, sample: tuple[Tensor, ...]) -> dict[str, int]:
    """Return the multiply-accumulates of each convolution and linear layer, by the name of the layer."""
    work: dict[str, int] = {}

    def count(name: str) -> Callable[[Any, Any, Tensor], None]:
        def hook(part: Any, inputs: Any, output: Tensor) -> None:
            positions = output.numel() // part.weight.shape[0]
            work[name] = work.get(name, 0) + positions * part.weight.numel()

        return hook

    kinds = (nn.Conv2d, nn.Linear)
    hooks = [p.register_forward_hook(count(name)) for name, p in model.named_modules() if isinstance(p, kinds)]
    try:
        with torch.no_grad():
            model(*sample)
    finally:
        for hook in hooks:
            hook.remove()
    return work


def keep_float(summary: dict[str, Any], names: Iterable[str]) -> None:
    """Have the operations of these layers, and every addition, stay in float in IPEX's description of a model."""
    names = set(names)
    for part in summary.values():
        for operation in part.get("q_op_infos", {}).values():
            if operation["fqn"] in names or "add" in operation["op_type"]:
                for tensor in (*operation["input_tensor_infos"], *operation["weight_tensor_infos"]):
                    if tensor:
                        tensor["inf_dtype"] = "torch.float32"
                        tensor["force_dtype"] = "torch.float32"


def _float_sets(model: nn.Module, work: dict[str, int]) -> list[tuple[str, set[str]]]:
    """Return what to leave in float, less and less sparing."""
    parts = dict(model.named_modules())
    names = list(work)
    depthwise = {name for name in names if getattr(parts[name], "groups", 1) > 1}
    ends = {*names[:1], *(name for name in names if _is_last(parts[name], names, parts))}
    return [
        ("nothing", set()),
        ("depthwise layers", depthwise),
        ("depthwise, first and prediction layers", depthwise | ends),
        ("depthwise layers and the first quarter", depthwise | ends | set(names[: len(names) // 4])),
    ]


def _is_last(part: nn.Module, names: list[str], parts: dict[str, nn.Module]) -> bool:
    """Whether no layer takes as many channels as this one gives: then it predicts."""
    given = getattr(part, "out_channels", getattr(part, "out_features", 0))
    taken = {getattr(parts[name], "in_channels", getattr(parts[name], "in_features", 0)) for name in names}
    return given not in taken


def _calibrated(ipex: Any, model: nn.Module, context: PrepareContext, rows: list[Arrays]) -> Any:
    sample = torch_sample(context, 1)
    mapping = ipex.quantization.default_static_qconfig_mapping
    with torch.no_grad():
        prepared = ipex.quantization.prepare(model, mapping, example_inputs=sample, inplace=True, bn_folding=False)
        context.progress("calibrating")
        if context.dynamic_batch:
            for inputs in rows:
                prepared(*(torch.from_numpy(array.copy()) for array in inputs))
        else:
            for inputs in context.calibration:
                if len(inputs[0]) == len(sample[0]):
                    prepared(*(torch.from_numpy(array.copy()) for array in inputs))
    return prepared


def _converted(ipex: Any, prepared: Any, summary: dict[str, Any], file: Path) -> nn.Module:
    file.write_text(json.dumps(summary), encoding="utf-8")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared.load_qconf_summary(str(file))
        converted: nn.Module = ipex.quantization.convert(prepared, inplace=False)
    return converted


def _predictor(module: nn.Module, context: PrepareContext) -> Callable[..., Arrays]:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script: Any = torch.jit.trace(module, torch_sample(context, 1), check_trace=False)  # type: ignore[no-untyped-call]
        script = torch.jit.freeze(script.eval())

    def predict(*inputs: Array) -> Arrays:
        with torch.inference_mode():
            outputs = script(*(torch.from_numpy(as_numpy(array)) for array in inputs))
        return like_inputs([as_numpy(output) for output in flatten(outputs)], inputs)

    return predict
