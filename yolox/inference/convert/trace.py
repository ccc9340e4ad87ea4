"""One conversion here and now, in this process: ``trace``, ``quantize`` and the context to run their results in."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from yolox.errors import UsageError
from yolox.inference.artifacts.model import AcceleratedModel
from yolox.inference.artifacts.structure import describe, flatten
from yolox.inference.backends.base import Method, PrepareContext
from yolox.inference.backends.torch_runner import torch_threads
from yolox.inference.convert.calibration import ModelInputs, count_inputs, gather_inputs
from yolox.inference.convert.prepare import OutputFacts, accuracy_of, prepare_model
from yolox.inference.methods import METHODS, missing_package
from yolox.inference.search.scorer import Scorer
from yolox.precision_names import Precision
from yolox.temporary_folders import TemporaryFolder


@dataclass(frozen=True)
class Wish:
    """The properties of a method that ``trace`` and ``quantize`` choose by.

    Args:
        precision: ``fp32``, ``bf16``, ``fp16`` or ``int8``.
        accelerator: ``openvino``, ``native``, ``onnxruntime``, ``jit``, ``inductor`` or ``None`` for plain PyTorch.
        use_ipex: With IPEX.
        channels_last: NHWC memory layout.
        quantizer: Which of several quantizers (``qlinear``, ``integer``).
    """

    precision: str = "fp32"
    accelerator: str | None = None
    use_ipex: bool = False
    channels_last: bool = False
    quantizer: str | None = None

    def find(self) -> Method:
        """Return the method.

        Raises:
            UsageError: When there is none of these properties.
        """
        for method in METHODS:
            if (
                (method.precision.value, method.accelerator, method.uses_ipex)
                == (self.precision, self.accelerator, self.use_ipex)
                and bool(method.options.get("channels_last")) == self.channels_last
                and self.quantizer in (None, method.options.get("quantizer"))
            ):
                return method
        raise UsageError(f"no method has these properties: {self}. See methods.METHODS for those that exist.")


def trace(
    model: nn.Module,
    input_sample: Any,
    *,
    accelerator: str | None = None,
    use_ipex: bool = False,
    channels_last: bool = False,
    thread_num: int | None = None,
) -> AcceleratedModel:
    """Convert ``model`` (left as it is) without loss of precision.

    Args:
        model: The module.
        input_sample: A tensor or a tuple of tensors, batch on axis 0.
        accelerator: ``openvino``, ``native``, ``onnxruntime``, ``jit``, ``inductor`` or ``None``.
        use_ipex: With IPEX.
        channels_last: NHWC memory layout.
        thread_num: Cores to use; ``None``: as many as torch uses.
    """
    inputs = gather_inputs(None, input_sample, count_inputs(model), 0)
    wish = Wish("fp32", accelerator, use_ipex, channels_last)
    return convert(model, wish.find(), inputs, thread_num or torch.get_num_threads())


def quantize(  # noqa: PLR0913 - bigdl-nano fixed this interface
    model: nn.Module,
    precision: str = "int8",
    *,
    accelerator: str | None = None,
    use_ipex: bool = False,
    channels_last: bool = False,
    method: str | None = None,
    calib_data: Any = None,
    input_sample: Any = None,
    metric: Any = None,
    validation_data: Any = None,
    accuracy_criterion: float = 0.01,
    thread_num: int | None = None,
    sample_size: int = 128,
) -> AcceleratedModel:
    """Convert ``model`` (left as it is) to a lower precision.

    Args:
        model: The module.
        precision: ``int8``, ``bf16`` or ``fp16``.
        accelerator: As for ``trace``.
        use_ipex: As for ``trace``.
        channels_last: As for ``trace``.
        method: The quantizer where there are several (``qlinear``, ``integer``).
        calib_data: A loader, an iterable of batches or one batch of real data; int8 needs it.
        input_sample: The batch to prepare for, if not the first of ``calib_data``.
        metric: Controls the accuracy of int8, larger is better (see ``InferenceOptimizer.optimize``).
        validation_data: Data for ``metric``.
        accuracy_criterion: Accuracy that int8 may lose, absolute.
        thread_num: Cores to use.
        sample_size: Rows to calibrate on.
    """
    num_inputs = count_inputs(model)
    inputs = gather_inputs(calib_data, input_sample, num_inputs, sample_size)
    if precision == Precision.INT8.value and not inputs.calibration:
        raise UsageError("int8 needs real data to calibrate on, and no calib_data arrived. Give a loader or a batch.")
    scorer = None if metric is None else Scorer(metric, validation_data, "max", num_inputs)
    wish = Wish(precision, accelerator, use_ipex, channels_last, method)
    threads = thread_num or torch.get_num_threads()
    return convert(model, wish.find(), inputs, threads, scorer=scorer, max_drop=accuracy_criterion)


def convert(
    model: nn.Module,
    method: Method,
    inputs: ModelInputs,
    threads: int,
    *,
    scorer: Scorer | None = None,
    max_drop: float = 0.01,
) -> AcceleratedModel:
    """Prepare ``method`` for a copy of ``model`` in this process.

    Raises:
        MissingDependencyError: When a library is missing.
    """
    missing = missing_package(method)
    if missing is not None:
        raise missing
    own = copy.deepcopy(model).eval()
    with torch.inference_mode():
        nested = own(*(torch.from_numpy(array.copy()) for array in inputs.sample))
    outputs = OutputFacts(describe(nested), len(flatten(nested)))
    with TemporaryFolder("convert") as folder:
        context = PrepareContext(
            sample=inputs.sample,
            calibration=inputs.calibration,
            threads=threads,
            work_dir=folder,
            accuracy=accuracy_of(scorer, outputs.structure),
            original_accuracy=None if scorer is None else scorer.signed(scorer.score(own)),
            max_drop=max_drop,
            deadline_s=time.monotonic() + 600,
        )
        return prepare_model(own, method, context, outputs)


@contextmanager
def inference_context(*models: Any) -> Iterator[None]:
    """Run with inference mode and the largest number of threads that any of the models has; restore both.

    Plain modules may be given too. Accelerated models bring their own precision, so nothing is cast here.
    """
    counts = [model.runner.settings.threads for model in models if isinstance(model, AcceleratedModel)]
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        if counts:
            stack.enter_context(torch_threads(max(counts)))
        yield
