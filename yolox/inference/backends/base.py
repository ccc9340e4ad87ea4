"""The contract between methods, back ends and the optimizer.

How one method runs (everything here happens in a child process of its own, see ``method_process``):

1. The optimizer wraps the user's model (``flat.FlatModule``): ``forward(*inputs)`` takes positional tensors and
   returns a flat tuple of tensors. Batch is axis 0 of every input and output. ``Backend.prepare`` receives that module
   (its own copy, in eval mode; it may change it) with the ``Method`` and a ``PrepareContext`` and returns a ``Runner``.
2. The tuner asks ``runner.candidates(...)`` for settings worth trying, times ``runner.configured(settings)`` for each,
   and goes on with the fastest.
3. Accuracy, difference to the original and latency are measured by calling the runner.
4. ``runner.save(folder)`` writes the weights there; ``artifacts`` adds ``manifest.json``.
   ``Backend.load(folder, manifest)`` gives an equal runner in a fresh process.

Every module of a back end ends with ``BACKEND = SomeBackend()`` and is named in ``backends.BACKENDS``. A back end whose
artifacts run without torch (OpenVINO, ONNX Runtime) must not import torch at module top, nor on the ``load`` and call
path unless a torch tensor arrives. ``backends.ipex`` also offers ``interpreter() -> str``: the Python that runs its
methods' children and loads its artifacts (``MissingDependencyError`` when there is none).

Quantizers of torch models share one signature, ``quantize(model, context, ...) -> (module, int8_share)``:
``quantizers.pt2e.quantize_pt2e`` and ``quantizers.neural_compressor.quantize_static`` return an exported (batch axis
dynamic if ``context.dynamic_batch``), calibrated and converted graph module that still holds its quantize and
dequantize operators, ready for ``torch.compile`` or AOTInductor.

Failure is an exception: ``MissingDependencyError`` becomes the status ``lack dependency``; anything else raised by
``prepare`` becomes ``fail to convert``; anything raised by a call becomes ``fail to forward``. The first line of the
message is the reason shown in the table, so make it one useful sentence.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np

from yolox.cpu.memory_limit import limited_memory
from yolox.cpu.time_limit import limited_time
from yolox.errors import ModelFileError, UsageError, YoloxError
from yolox.precision_names import Precision

if TYPE_CHECKING:
    from torch import nn

    from yolox.inference.artifacts.manifest import Manifest

T = TypeVar("T")
LEAST_SECONDS = 60.0
NUMBERS_PER_SECOND = 10_000  # an image of 640 x 640 pixels has two minutes more
Array: TypeAlias = Any
"""A ``torch.Tensor`` on the CPU or a ``numpy.ndarray``."""

Arrays: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True)
class Method:
    """One way to run a model: a row of ``methods.METHODS``.

    Args:
        name: Name of the row, as users write it.
        backend: Key of ``backends.BACKENDS``.
        precision: Precision of the heavy layers.
        options: What the back end needs to tell its methods apart (``{"channels_last": True}``,
            ``{"quantizer": "qlinear"}``, ``{"rest": "bf16"}``: the layers that are not int8 run in bf16).
        requires: Importable packages without which the row is ``lack dependency``.
    """

    name: str
    backend: str
    precision: Precision
    options: Mapping[str, Any] = field(default_factory=dict)
    requires: tuple[str, ...] = ()

    @property
    def accelerator(self) -> str | None:
        """The value of the ``accelerator`` filter that selects this method; ``None`` for plain PyTorch."""
        if self.backend == "ipex":
            return "jit" if self.options.get("jit") else None
        return None if self.backend == "eager" or self.name == "static_int8" else self.backend

    @property
    def uses_ipex(self) -> bool:
        """Whether the method needs IPEX."""
        return "intel_extension_for_pytorch" in self.requires


@dataclass(frozen=True)
class Settings:
    """How to run a prepared model; found by the tuner, stored in the artifact, applied again by ``load``.

    Args:
        threads: Threads of one stream's computation (intra-op). For OpenVINO and ONNX Runtime with several streams: of
            all streams together.
        streams: Requests computed side by side.
        micro_batch: Split a batch into pieces of this size; ``None`` runs it whole.
        channels_last: Whether torch tensors are laid out NHWC in memory.
        rational_silu: Whether SiLU is computed without an exponential (``rational_silu.py``).
    """

    threads: int = 1
    streams: int = 1
    micro_batch: int | None = None
    channels_last: bool = False
    rational_silu: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class PrepareContext:
    """All that a back end may use to prepare a model.

    Args:
        sample: The inputs of one batch (C-contiguous numpy arrays, batch on axis 0); its latency is measured.
        calibration: The inputs of some batches of real data, ``calibration[i]`` is like ``sample`` (its batch size may
            differ); int8 methods calibrate on it. Empty when the user gave no data.
        threads: Cores that this run may use.
        work_dir: An empty folder for temporary files (an exported ONNX file, say); removed afterwards.
        dynamic_batch: Whether axis 0 may vary. When not, prepare for the batch size of ``sample`` alone.
        accuracy: Measures any ``predict(*arrays) -> tuple of arrays`` on the validation data; larger is better whatever
            the user's metric. ``None`` when there is no metric. Slow (seconds): a handful of calls at most.
        original_accuracy: What ``accuracy`` said of the original model.
        max_drop: Largest loss of accuracy, absolute, that an int8 method may cost; back ends raise layers to a higher
            precision until it holds.
        deadline_s: ``time.monotonic()`` value by which ``prepare`` must be done; searches stop early to keep it.
        progress: Say what goes on, in a few words; shown live and kept in the log.
    """

    sample: tuple[np.ndarray[Any, Any], ...]
    calibration: Sequence[tuple[np.ndarray[Any, Any], ...]]
    threads: int
    work_dir: Path
    dynamic_batch: bool = True
    accuracy: Callable[[Callable[..., Arrays]], float] | None = None
    original_accuracy: float | None = None
    max_drop: float = 0.01
    deadline_s: float = float("inf")
    progress: Callable[[str], None] = lambda message: None

    @property
    def fixed_batch(self) -> int | None:
        """The only batch size to prepare for, or None for any."""
        return None if self.dynamic_batch else len(self.sample[0])

    def small_sample(self, rows: int) -> tuple[np.ndarray[Any, Any], ...]:
        """Return the first ``rows`` rows of ``sample``, or all of them where the batch size is fixed."""
        return tuple(array[:rows] for array in self.sample) if self.dynamic_batch else self.sample

    def calibration_rows(self, limit: int) -> list[tuple[np.ndarray[Any, Any], ...]]:
        """Return at most ``limit`` calibration items of batch size 1.

        Raises:
            UsageError: When there are none.
        """
        rows = [tuple(a[i : i + 1] for a in inputs) for inputs in self.calibration for i in range(len(inputs[0]))]
        if not rows:
            raise UsageError("int8 needs real data to calibrate on, and none arrived. Give a loader as training_data.")
        return rows[:limit]


class Runner(Protocol):
    """A prepared model; plain attributes do for the two properties."""

    @property
    def settings(self) -> Settings:
        """What it runs with now."""
        ...

    @property
    def int8_share(self) -> float | None:
        """Share (0...1) of the network's multiply-accumulates that really run in int8; ``None`` if not an int8 method.

        Counted on the compiled or converted model.
        """
        ...

    def __call__(self, *inputs: Array) -> Arrays:
        """Run one batch: numpy in, numpy out; torch in, torch out (use ``as_numpy`` and ``like_inputs``)."""
        ...

    def candidates(self, batch_size: int, threads: int) -> Sequence[Settings]:
        """Return the settings worth timing for this batch size, the likely best first; the tuner may stop early."""
        ...

    def configured(self, settings: Settings) -> Runner:
        """Return a runner of the same model with other settings (recompiling if the library needs it)."""
        ...

    def save(self, folder: Path) -> Mapping[str, Any]:
        """Write the model's files into the existing ``folder``, no pickle; return JSON values needed to load it."""
        ...


@runtime_checkable
class GraphRunner(Runner, Protocol):
    """A runner of a graph of any operators, loops among them."""

    def stop(self) -> None:
        """End the run that is under way in another thread, as far as the library can."""


class Backend(Protocol):
    """One library that runs models."""

    def prepare(self, model: nn.Module, method: Method, context: PrepareContext) -> Runner:
        """Convert ``model`` (flat tuple of outputs, eval mode, own copy) for ``method``."""
        ...

    def load(self, folder: Path, manifest: Manifest, module: nn.Module | None = None) -> Runner:
        """Load what ``Runner.save`` wrote, with ``manifest.settings`` applied; the files have been checked.

        Args:
            folder: The artifact.
            manifest: Its manifest.
            module: The original module, for artifacts that hold weights alone; other back ends leave it aside.
        """
        ...


def as_numpy(array: Array) -> np.ndarray[Any, Any]:
    """Return ``array`` as a C-contiguous numpy array without copying where possible (torch is not imported)."""
    if not isinstance(array, np.ndarray):
        array = array.detach().numpy()
    return np.ascontiguousarray(array)


def like_inputs(outputs: Sequence[np.ndarray[Any, Any]], inputs: Sequence[Array]) -> Arrays:
    """Return numpy ``outputs`` as torch tensors if the inputs were torch tensors, else as they are."""
    if not inputs or isinstance(inputs[0], np.ndarray):
        return tuple(outputs)
    import torch

    return tuple(torch.from_numpy(output) for output in outputs)


def run_in_chunks(run: Callable[..., Arrays], inputs: Arrays, size: int | None, *, pad: bool = False) -> Arrays:
    """Run ``inputs`` in pieces of at most ``size`` along axis 0 and join the outputs (numpy or torch, as they come).

    Args:
        run: Takes one piece of every input.
        inputs: Arrays that share axis 0.
        size: Size of a piece; ``None`` for all at once.
        pad: Repeat the last row to fill an incomplete piece, for models compiled for one batch size; cut off again.
    """
    total = len(inputs[0])
    if size is None or (total <= size and not pad) or total == size:
        return run(*inputs)
    pieces = []
    for start in range(0, total, size):
        piece = tuple(array[start : start + size] for array in inputs)
        length = len(piece[0])
        if pad:
            piece = tuple(filled_up(array, size) for array in piece)
        outputs = run(*piece)
        pieces.append(tuple(output[:length] for output in outputs) if length < size else outputs)
    return tuple(_concatenate(parts) for parts in zip(*pieces, strict=True))


def filled_up(piece: Array, size: int) -> Array:
    """Return a piece of a batch with its last row repeated up to ``size`` rows."""
    missing = size - len(piece)
    return _concatenate([piece, *[piece[-1:]] * missing]) if missing > 0 else piece


def _concatenate(parts: Sequence[Array]) -> Array:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    import torch

    return torch.cat(list(parts))


@contextmanager
def as_model_error(path: Path, memory: int | None = None) -> Iterator[None]:
    """Turn whatever a library raises while it opens or runs a model file into a `ModelFileError`.

    Args:
        path: The file or folder.
        memory: Bytes that it may take, see `memory_for`; None for any number.
    """
    try:
        with nullcontext() if memory is None else limited_memory(memory):
            yield
    except YoloxError:
        raise
    except Exception as error:  # the libraries' exceptions have no class in common
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelFileError(f"'{path}' is not a model that can be run: {why}. Save the model again.") from error


def first_run(path: Path, work: Callable[[], T], num_numbers: int = 0, stop: Callable[[], None] | None = None) -> T:
    """Return what ``work`` returns: it opens a stranger's graph, or runs it, in limited memory and time.

    Graphs have loops, which need not end, and a library may run them even while it opens the file.

    Args:
        path: The file or folder.
        work: What to do.
        num_numbers: Numbers in the inputs.
        stop: See `limited_time`.

    Raises:
        ModelFileError: When the library fails, or takes more memory or time than a detector would.
    """
    with as_model_error(path, memory_for(path, num_numbers)):
        return limited_time(work, seconds_for(num_numbers), stop)


def seconds_for(num_numbers: int) -> float:
    """Return how long opening or running a stranger's graph may take: many times what it takes on a slow machine."""
    return LEAST_SECONDS + num_numbers / NUMBERS_PER_SECOND


def memory_for(path: Path, num_numbers: int = 0) -> int:
    """Return the bytes that opening a stranger's model, and running it, may take at most.

    A few numbers in a small file can ask for a tensor of any size. Detectors take about 20 times the memory of their
    input and a few times that of their file; libraries take more for each thread.

    Args:
        path: The file, or the folder of files; beside an .xml file its weights count, too.
        num_numbers: Numbers in the inputs.
    """
    files = path.iterdir() if path.is_dir() else (path, path.with_suffix(".bin") if path.suffix == ".xml" else path)
    file_bytes = sum(one.stat().st_size for one in set(files) if one.is_file())
    return (1 << 30) + 8 * file_bytes + 256 * num_numbers + (os.cpu_count() or 1) * (32 << 20)
