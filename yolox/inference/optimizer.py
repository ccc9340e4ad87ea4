"""``InferenceOptimizer``: find the fastest way to run any ``nn.Module`` on this CPU, with every number measured."""

from __future__ import annotations

import os
import shutil
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolox.cpu.machine import read_machine
from yolox.errors import UsageError
from yolox.files import make_output_dir, write_text
from yolox.inference.artifacts.model import AcceleratedModel, copy_artifact, load_model, save_model
from yolox.inference.convert.calibration import ModelInputs, count_inputs, gather_inputs
from yolox.inference.methods import METHODS, MethodQuery, describe_method, get_method, select_methods
from yolox.inference.search.latency import MeasurePlan
from yolox.inference.search.protocol import Limits, Payload
from yolox.inference.search.results import MethodResult, OptimizationReport
from yolox.inference.search.run import Listener, Search, SearchOptions
from yolox.inference.search.scorer import Scorer
from yolox.temporary_folders import TemporaryFolder

if TYPE_CHECKING:
    from torch import nn

    from yolox.inference.multi_instance import MultiInstance


class InferenceOptimizer:
    """Measures many ways to run a model, each in a process of its own, and hands out the one you choose.

    Args:
        work_dir: Folder for artifacts and logs; ``None`` takes a temporary one that goes with this object.
        listener: Hears of progress and rows; ``None`` prints the table at the end.
    """

    def __init__(self, work_dir: Path | str | None = None, listener: Listener | None = None) -> None:
        self._folder = None if work_dir is None else Path(work_dir)
        self._listener = listener
        self._report: OptimizationReport | None = None
        self._model: nn.Module | None = None

    def optimize(  # noqa: PLR0913, PLR0917 - bigdl-nano fixed this interface
        self,
        model: nn.Module,
        training_data: Any = None,
        validation_data: Any = None,
        input_sample: Any = None,
        metric: Any = None,
        direction: str = "max",
        thread_num: int | None = None,
        accelerator: str | Sequence[str | None] | None = None,
        precision: str | Sequence[str] | None = None,
        use_ipex: bool | None = None,
        search_mode: str = "default",
        latency_sample_num: int = 100,
        includes: Sequence[str] | None = None,
        excludes: Sequence[str] | None = None,
        output_filename: str | os.PathLike[str] | None = None,
        *,
        methods: Sequence[str] | None = None,
        limits: Limits | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> OptimizationReport:
        """Measure the methods; ``model`` is left exactly as it is.

        Args:
            model: Takes positional tensors with the batch on axis 0, returns tensors (nested as it likes).
            training_data: A loader, an iterable of batches or one batch; first batch: the sample; all: calibration.
            validation_data: Batches of ``(input, target)`` for ``metric``; ``metric(model, data)`` gets it as it is.
            input_sample: The batch whose latency is measured, if not the first of ``training_data``.
            metric: A torchmetrics object, ``f(pred, target)``, ``f(model, data)`` or ``f(model)``; gives a number or a
                mapping of numbers, the decisive one first.
            direction: ``max`` or ``min``: which metric is better.
            thread_num: Cores to use; ``None``: all that this process may use.
            accelerator: Keep methods of ``openvino``, ``native``, ``onnxruntime``, ``jit``, ``inductor`` or ``None``.
            precision: Keep methods of these: ``fp32``, ``bf16``, ``fp16``, ``int8``.
            use_ipex: Keep only methods with, or without IPEX.
            search_mode: ``default``, ``all`` or ``grid``; a filter switches to ``grid``.
            latency_sample_num: Timed runs of each method, at most.
            includes: Methods to add.
            excludes: Methods to leave out.
            output_filename: File for the table.
            methods: Exactly these methods (and ``original``).
            limits: Times and sizes.
            metadata: JSON values that artifacts shall carry.

        Raises:
            UsageError: When an option is wrong or the model itself does not run.
            KeyboardInterrupt: Passed on; the finished rows are in ``report``.
        """
        limits = limits or Limits()
        query = MethodQuery(
            search_mode=search_mode,
            only=tuple(methods or ()),
            accelerators=_as_tuple(accelerator),
            precisions=tuple(str(value) for value in _as_tuple(precision)),
            use_ipex=use_ipex,
            includes=tuple(includes or ()),
            excludes=tuple(excludes or ()),
        )
        chosen = select_methods(query)
        _check_choices(direction, latency_sample_num, thread_num)
        num_inputs = count_inputs(model)
        inputs = gather_inputs(training_data, input_sample, num_inputs, limits.calibration_size)
        scorer = None if metric is None else Scorer(metric, validation_data, direction, num_inputs)
        options = SearchOptions(
            threads=thread_num or read_machine().num_threads,
            limits=limits,
            plan=MeasurePlan(limits.rounds, latency_sample_num, limits.round_seconds),
            metadata=dict(metadata or {}),
        )
        folder = self._new_folder()
        self._model = model
        _write_payload(folder / "payload", model, scorer, inputs)
        search = Search(chosen, folder, inputs.batch_size, options, self._listener or Listener())
        start = time.monotonic()
        try:
            search.run()
        finally:
            self._report = _report(search, direction, time.monotonic() - start)
            for name in ("payload", "tmp"):
                shutil.rmtree(folder / name, ignore_errors=True)
        if output_filename is not None:
            write_text(Path(output_filename), self._report.to_text() + "\n")
        if self._listener is None:
            self.summary()
        return self._report

    @property
    def report(self) -> OptimizationReport:
        """All rows of the last run.

        Raises:
            UsageError: Before the first run.
        """
        if self._report is None:
            raise UsageError("there are no results yet; call optimize() first.")
        return self._report

    def summary(self) -> str:
        """Write the table to the terminal and return it."""
        text = self.report.to_text()
        sys.stdout.write(text + "\n")
        return text

    def get_model(self, method_name: str) -> AcceleratedModel:
        """Return the model of a row.

        Raises:
            UsageError: For an unknown name, or a row without a model; the message says why it has none.
        """
        name = get_method(method_name).name
        try:
            row = self.report[name]
        except KeyError as error:
            ran = ", ".join(result.name for result in self.report)
            raise UsageError(
                f"'{name}' was not among the methods of this run ({ran}). Add it with includes."
            ) from error
        if row.artifact is None:
            raise UsageError(f"'{name}' has no model: {row.status.value}{row.reason and f', {row.reason}'}.")
        return load_model(row.artifact, trust=True, module=self._model)

    def get_best_model(
        self,
        accelerator: str | None = None,
        precision: str | None = None,
        use_ipex: bool | None = None,
        accuracy_criterion: float | None = None,
    ) -> tuple[AcceleratedModel, str]:
        """Return the fastest model that passes the filters, and what it uses (``openvino + int8``).

        Args:
            accelerator: ``openvino``, ``native``, ``onnxruntime``, ``jit``, ``inductor``.
            precision: ``fp32``, ``bf16``, ``fp16``, ``int8``.
            use_ipex: With or without IPEX.
            accuracy_criterion: Tolerated drop relative to the original (0.05: five per cent).

        Raises:
            UsageError: When no successful row passes.
        """
        row = self.best_row(accelerator, precision, use_ipex, accuracy_criterion)
        return self.get_model(row.name), describe_method(row.method)

    def best_row(
        self,
        accelerator: str | None = None,
        precision: str | None = None,
        use_ipex: bool | None = None,
        accuracy_criterion: float | None = None,
    ) -> MethodResult:
        """Return the row that ``get_best_model`` chooses."""
        report = self.report
        query = MethodQuery(
            accelerators=_as_tuple(accelerator), precisions=tuple(map(str, _as_tuple(precision))), use_ipex=use_ipex
        )
        max_drop = None
        if accuracy_criterion is not None:
            if not report.metric_names or report.original is None:
                raise UsageError("accuracy_criterion needs accuracies; give optimize() a metric.")
            max_drop = accuracy_criterion * abs(report.original.metrics[report.metric_names[0]])
        select_methods(query)  # refuses unknown values
        rows = [row for row in report.candidates(max_drop) if row.artifact and query.matches(row.method)]
        if not rows:
            raise UsageError("no successful method passes these filters; see summary() for what each one did.")
        best = report.best(max_drop)
        return best if best in rows else rows[0]

    @staticmethod
    def trace(model: nn.Module, input_sample: Any, **options: Any) -> AcceleratedModel:
        """Convert ``model`` here and now without loss of precision; see ``convert.trace`` for the options."""
        from yolox.inference.convert.trace import trace

        return trace(model, input_sample, **options)

    @staticmethod
    def quantize(model: nn.Module, precision: str = "int8", **options: Any) -> AcceleratedModel:
        """Convert ``model`` here and now to int8, bf16 or fp16; see ``convert.quantize`` for the options."""
        from yolox.inference.convert.trace import quantize

        return quantize(model, precision, **options)

    @staticmethod
    def save(model: AcceleratedModel, path: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None) -> None:
        """Save an accelerated model as an artifact folder, with other metadata if given."""
        if not isinstance(model, AcceleratedModel):
            raise UsageError(f"a {type(model).__name__} arrived; expected a model of get_model, trace or quantize.")
        if model.folder is not None and model.folder.is_dir():
            copy_artifact(model.folder, Path(path), metadata)
        else:
            save_model(model, Path(path), metadata)

    @staticmethod
    def load(path: str | os.PathLike[str], model: nn.Module | None = None, *, trust: bool = False) -> AcceleratedModel:
        """Load an artifact folder; OpenVINO, ONNX and 8-bit artifacts need no torch.

        Args:
            path: What ``save`` wrote.
            model: The original module, for methods of plain PyTorch, whose artifacts hold weights alone.
            trust: Load TorchScript, Inductor and IPEX artifacts, which are programs: say it only of your own.
        """
        return load_model(Path(path), trust=trust, module=model)

    @staticmethod
    def get_context(model: Any, *models: Any) -> Any:
        """Return a context manager with inference mode and the models' threads; see ``convert.inference_context``."""
        from yolox.inference.convert.trace import inference_context

        return inference_context(model, *models)

    @staticmethod
    def to_multi_instance(
        model: AcceleratedModel,
        num_processes: int = 4,
        cores_per_process: int | None = None,
        cpu_for_each_process: Sequence[Sequence[int]] | None = None,
    ) -> MultiInstance:
        """Return a callable that runs a list of batches on several processes; see ``multi_instance``."""
        from yolox.inference.multi_instance import MultiInstance

        return MultiInstance(model, num_processes, cores_per_process, cpu_for_each_process)

    def _new_folder(self) -> Path:
        if self._folder is None:
            temporary = TemporaryFolder("inference")
            weakref.finalize(self, temporary.remove)  # models of an earlier run may be in use as long
            folder = temporary.path
        else:
            folder = self._folder
        for name in ("payload", "artifacts", "logs", "tmp"):
            shutil.rmtree(folder / name, ignore_errors=True)  # what an earlier run left
            make_output_dir(folder / name)
        return folder


def _write_payload(folder: Path, model: nn.Module, scorer: Scorer | None, inputs: ModelInputs) -> None:
    payload = Payload(folder)
    payload.write("model", model)
    if scorer is not None:
        payload.write("scorer", scorer)
    payload.write_arrays("sample", inputs.sample)
    for number, arrays in enumerate(inputs.calibration):
        payload.write_arrays(f"calibration_{number}", arrays)


def _report(search: Search, direction: str, seconds: float) -> OptimizationReport:
    original = search.results.get("original")
    names = tuple(original.metrics) if original else ()
    rows = tuple(search.results[method.name] for method in METHODS if method.name in search.results)
    return OptimizationReport(rows, names, direction, seconds)


def _as_tuple(value: str | Sequence[str | None] | None) -> tuple[str | None, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def _check_choices(direction: str, samples: int, threads: int | None) -> None:
    if direction not in ("max", "min"):
        raise UsageError(f"direction is '{direction}'; expected 'max' or 'min'.")
    if samples < 1:
        raise UsageError(f"latency_sample_num is {samples}; expected 1 or more.")
    if threads is not None and threads < 1:
        raise UsageError(f"thread_num is {threads}; expected 1 or more, or None for all cores.")
