"""The class `YOLOX`: predict, train, validate, optimize and export in Python, by the code of the commands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextvars import copy_context
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolox.errors import UsageError, YoloxError, did_you_mean
from yolox.precision_names import EvalPrecision
from yolox.prediction.cluster import predict_on_cluster
from yolox.prediction.cluster_work import ClusterModel, Work
from yolox.prediction.models import Predictor, is_deployed, load_predictor
from yolox.prediction.results import Boxes, Result
from yolox.prediction.run import Thresholds, predict
from yolox.prediction.sources import Source, Sources
from yolox.prediction.tracking import track

if TYPE_CHECKING:
    from yolox.evaluation.loop import EvaluationResult
    from yolox.tools.parser import ToolParser

__all__ = ["YOLOX", "Boxes", "Result"]

_SHORT_NAMES = {"data": "data_dir", "epochs": "max_epoch", "batch": "batch_size", "workers": "data_num_workers"}
"""Names that Python users expect, and the options or fields they stand for."""


class YOLOX:
    """A detector: published weights by name, a checkpoint, a deployed folder or an ONNX file.

    Deployed models (``native_int8``, OpenVINO and ONNX Runtime) and ONNX files are run without PyTorch.

    Args:
        model: ``yolox_nano`` (tiny, s, m, l, x, yolov3), or the path of a checkpoint, a folder saved by `optimize`, or
            an ONNX file. It is read when it is first needed.
        precision: ``32`` or ``bf16``: what a checkpoint is predicted and validated in.
        input_size: Side, or height and width, of the network's input, multiples of 32; None takes the model's own.
        trust: Load a deployed model that is a program (TorchScript, Inductor, IPEX): it can do whatever you may.

    Example:
        >>> from yolox import YOLOX
        >>> model = YOLOX("yolox_nano")
        >>> for result in model.predict("street.jpg"):
        ...     print(result.boxes.names, result.boxes.scores, result.boxes.xyxy)
        ...     result.save("street_found.jpg")
    """

    def __init__(
        self,
        model: str | Path,
        *,
        precision: EvalPrecision = "32",
        input_size: int | tuple[int, int] | None = None,
        trust: bool = False,
    ) -> None:
        self.model = str(model)
        self._trust = trust
        self._precision = precision
        self._input_size = input_size

    def __repr__(self) -> str:
        return f"YOLOX({self.model!r})"

    @cached_property
    def predictor(self) -> Predictor:
        """The loaded model.

        Raises:
            ModelFileError: When it cannot be read.
        """
        return load_predictor(
            self.model,
            precision=self._precision,  # type: ignore[arg-type]
            input_size=self._input_size,
            trust=self._trust,
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in the order of the class indices."""
        return self.predictor.class_names

    def predict(  # noqa: PLR0913 - keywords that stand for the options of the command
        self,
        source: Source,
        *,
        confidence: float = 0.25,
        nms_iou: float = 0.45,
        classes: tuple[int, ...] | None = None,
        multi_label: bool = False,
        batch_size: int | None = None,
        tracks: bool = False,
        max_reconnects: int = 10,
        cluster: str | None = None,
    ) -> Iterator[Result]:
        """Yield a `Result` for every picture of ``source``, one after another, with constant memory.

        Args:
            source: Path, folder, pattern, list or table of images, video, http(s) or rtsp address, number of a camera,
                array (BGR uint8), PIL image, tensor (RGB), the bytes of an image file, or a list of these.
            confidence: Lowest score to keep.
            nms_iou: IoU above which the weaker of two boxes is dropped.
            classes: Class indices to keep; None keeps all.
            multi_label: Let a box be a detection of each of its classes that is sure enough, not of the best alone.
            batch_size: Pictures that go through the network together: None for one of a checkpoint, eight of a deployed
                model. Cameras and streams always take one.
            tracks: Follow objects through videos and streams (``boxes.track_ids``).
            max_reconnects: How often in a row a stream that dropped its connection is opened again.
            cluster: Share the images among the machines of a cluster: ``ray``, ``ray://HOST:10001``, ``HOST:6379``,
                ``spark``, ``spark://HOST:7077``, ``local[N]``.

        Raises:
            UsageError: For an address of no cluster, or a source that a cluster cannot share.
            DataError: When the source does not exist or holds no picture (at once, not at the first result).
            ModelFileError: When the model cannot be read.
        """
        pictures = Sources(source, max_reconnects)
        thresholds = Thresholds(confidence, nms_iou, classes=classes, multi_label=multi_label)
        if cluster is not None:
            if tracks:
                raise UsageError("tracks follow the frames of a video, one after another; leave cluster out.")
            model = ClusterModel(self.model, self._precision, self._input_size, trust=self._trust)
            work = Work(model, thresholds, batch_size or self.predictor.usual_batch)
            return predict_on_cluster(cluster, work, pictures, self.class_names)
        results = predict(self.predictor, pictures, thresholds, batch_size)
        return track(results) if tracks else results

    __call__ = predict

    def train(self, data: str | Path | None = None, epochs: int | None = None, **options: Any) -> YOLOX:
        """Fine-tune on a data set and return the best model of the run; this one stays as it is.

        Args:
            data: Folder of the data set; None takes the default one.
            epochs: How many.
            options: Options of ``yolox train`` (``num_processes=4``, ``precision="bf16"``, ``batch_size=64``) and
                fields of the experiment (``mosaic_prob=0.5``).

        Raises:
            UsageError: For an unknown option, or when this is a deployed model.
            DataError: When the data set is missing or cannot be used.
        """
        from yolox.tools import train as tool

        self._need_weights("trained")
        options = {"data": data, "epochs": epochs, "output_dir": "YOLOX_outputs", **options}
        options.setdefault("experiment_name", Path(self.model).stem.replace("-", "_"))
        words = [*self._start(options), *option_words(tool.build_parser(), options)]
        args = tool.build_parser().parse(words)
        code = copy_context().run(tool.run, args, words)
        if code:
            raise YoloxError(f"the training ended with exit code {code}; what it printed says why.")
        folder = Path(options["output_dir"]) / options["experiment_name"]
        best = folder / "best_ckpt.pth"
        return YOLOX(best if best.is_file() else folder / "latest_ckpt.pth", precision=self._precision)

    def val(self, data: str | Path | None = None, **options: Any) -> EvaluationResult:
        """Return COCO AP (``result.metrics["AP"]``), that of each class, and times, on the data set's ``val`` split.

        Args:
            data: Folder of the data set; None takes the default one.
            options: Options of ``yolox val`` (``num_processes=2``, ``conf=0.001``).

        Raises:
            DataError: When the data set is missing or does not fit.
        """
        from yolox.tools import eval as tool

        size = self._input_size
        given = {"data": data, "precision": self._precision, "trust": self._trust, **options}
        if size is not None:
            given["test_size"] = size if isinstance(size, int) else f"{size[0]},{size[1]}"
        words = ["-c", self.model, *option_words(tool.build_parser(), given)]
        return copy_context().run(tool.run, tool.build_parser().parse(words), words)

    def optimize(self, folder: str | Path, data: str | Path | None = None, **options: Any) -> YOLOX:
        """Measure every way to run the model here, save the fastest that keeps its accuracy, and return it.

        Args:
            folder: Where the deployed model goes.
            data: Data set to calibrate and evaluate on; None takes what there is.
            options: Options of ``yolox optimize`` (``max_drop=0.005``, ``methods=["native_int8"]``).

        Raises:
            UsageError: For an unknown option, or when this is a deployed model.
        """
        from yolox.tools import inference_demo as tool

        self._need_weights("optimized")
        parser = tool.build_parser()
        words = ["-c", self.model, *option_words(parser, {"data": data, "save": folder, **options})]
        copy_context().run(tool.run, tool.build_parser().parse(words))
        return YOLOX(folder, trust=True)  # it was made just now, from this model

    def export(self, path: str | Path = "yolox.onnx", **options: Any) -> Path:
        """Write the model for other programs, in the format of the ending of ``path``, and return the path.

        Args:
            path: File to write.
            options: Options of ``yolox export`` (``dynamic=True``, ``two_outputs=True``).

        Raises:
            UsageError: For an unknown option, or when this is a deployed model.
        """
        from yolox.tools import export as tool

        self._need_weights("exported")
        words = ["-c", self.model, *option_words(tool.build_parser(), {"output_name": path, **options})]
        return copy_context().run(tool.run, tool.build_parser().parse(words))

    def _start(self, options: Mapping[str, Any]) -> list[str]:
        return [] if "ckpt" in options else ["-c", self.model]

    def _need_weights(self, what: str) -> None:
        if is_deployed(self.model):
            raise UsageError(
                f"'{self.model}' is a deployed model, which cannot be {what}; give its checkpoint instead."
            )


def option_words(parser: ToolParser, options: Mapping[str, Any]) -> list[str]:
    """Return keyword arguments as the words of a command: options by their names, fields of the experiment as they are.

    Raises:
        UsageError: For a name that is neither.
    """
    from yolox.config import field_names

    words: list[str] = []
    for given, value in options.items():
        name = _SHORT_NAMES.get(given, given)
        if value is None or value is False:
            continue
        action = parser.option(f"--{name}")
        if action is None and name not in field_names():
            known = [*(spelling.lstrip("-") for spelling in parser.spellings), *field_names(), *_SHORT_NAMES]
            raise UsageError(f"unknown option '{given}'.{did_you_mean(given, known)} See '{parser.prog} --help'.")
        if action is None:
            words.append(f"{name}={_text(value)}")
        elif value is True:
            words.append(action.option_strings[-1])
        else:
            several = isinstance(value, (list, tuple)) and action.nargs is not None
            words.extend([action.option_strings[-1], *(map(str, value) if several else [_text(value)])])
    return words


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
