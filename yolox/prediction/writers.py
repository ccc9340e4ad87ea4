"""Results as files: pictures and videos, COCO JSON, YOLO text, CSV, crops of the objects."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from shutil import copyfileobj
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO, TYPE_CHECKING, Protocol

from yolox.errors import UsageError, YoloxError, did_you_mean
from yolox.files import atomic_path, make_output_dir, refuse_inputs
from yolox.prediction.results import Result, encode_image
from yolox.prediction.sources import VIDEO_SUFFIXES
from yolox.structures import Image

if TYPE_CHECKING:
    import cv2

_USUAL_RATE = 25.0  # frames a second where a video does not say
_CSV_FIELDS = ("image", "index", "name", "label", "score", "left", "top", "right", "bottom", "track_id")


class _Writer(Protocol):
    def write(self, result: Result, name: str) -> None:
        """Write one result; ``name`` is unique."""

    def close(self, complete: bool) -> None:
        """Finish the files, or leave none when something went wrong."""


class ResultWriter:
    """Writes results into a folder; use it in a ``with`` block.

    Every file goes through `files.atomic_path`, so none is half written, and none replaces an input of the command.

    Args:
        folder: Created with the first result.
        formats: Some of ``FORMATS``.

    Attributes:
        written: Names of the things that were written, for a message.

    Raises:
        UsageError: For an unknown format.
    """

    def __init__(self, folder: Path, formats: Sequence[str] = ("pictures",)) -> None:
        for name in formats:
            if name not in FORMATS:
                raise UsageError(
                    f"unknown format '{name}'; expected some of {', '.join(FORMATS)}.{did_you_mean(name, FORMATS)}"
                )
        self.folder = folder
        self.formats = tuple(dict.fromkeys(formats))
        self.written: list[str] = []
        self._writers: list[_Writer] | None = None
        self._used: set[str] = set()
        self._next: dict[str, int] = {}  # number that the next result of a name gets that is in use

    def check(self, names: Iterable[str]) -> None:
        """Refuse results that would replace an input, before anything is written.

        Args:
            names: Names of the pictures and videos to come, as `Sources.names` gives them.

        Raises:
            UsageError: When one of them would.
        """
        files = [file for name in self.formats for file in FORMATS[name][1]]
        refuse_inputs(*(self.folder / file for file in files))
        if "pictures" in self.formats and self.folder.exists():  # otherwise there is nothing to replace
            for name in names:
                target = self.folder / _inside(name)
                refuse_inputs(target.with_suffix(".mp4") if target.suffix.lower() in VIDEO_SUFFIXES else target)

    def write(self, result: Result) -> None:
        """Write one result in all formats."""
        if self._writers is None:
            make_output_dir(self.folder)
            self._writers = [FORMATS[name][0](self.folder) for name in self.formats]
        name = self._unique(result.name)
        for writer in self._writers:
            writer.write(result, name)

    def __enter__(self) -> ResultWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        # what was seen before Ctrl-C or SIGTERM is kept
        complete = kind is None or issubclass(kind, (KeyboardInterrupt, SystemExit))
        with ExitStack() as stack:
            for writer in self._writers or ():
                stack.callback(writer.close, complete)
        if complete and self._writers:
            self.written = [name for name in self.formats]

    def _unique(self, name: str) -> str:
        """Return a name that no earlier result has: lists may hold files of one name from several folders."""
        first = _inside(name)
        unique, number = first, self._next.get(first, 2)
        while unique in self._used:
            path = Path(first)
            unique = path.with_name(f"{path.stem}_{number}{path.suffix}").as_posix()
            number += 1
            self._next[first] = number
        self._used.add(unique)
        return unique


def _inside(name: str) -> str:
    """Return the name as a path that does not leave the folder; the same string where it does not have to change."""
    path = Path(re.sub(r"(^|/)\.\.(?=/)", r"\1_", name.lstrip("/"))).as_posix()
    return name if path == name else path


class _AbandonedError(Exception):
    """Tells `atomic_path` that a file is not to appear."""


def _leave(stack: ExitStack, complete: bool) -> None:
    """Finish the files that a stack holds open, or have them disappear."""
    with suppress(_AbandonedError), stack:
        if not complete:
            raise _AbandonedError


class _Pictures:
    """Images as images with the same ending, videos as one mp4 file each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._videos: dict[str, _Video] = {}

    def write(self, result: Result, name: str) -> None:
        picture = result.plot()
        if result.source is None:
            _write_image(self._folder / name, picture)
            return
        if result.source not in self._videos:
            target = (self._folder / result.source.lstrip("/")).with_suffix(".mp4")
            self._videos[result.source] = _Video(target, picture, result.rate or _USUAL_RATE)
        self._videos[result.source].write(picture)

    def close(self, complete: bool) -> None:
        for video in self._videos.values():
            video.close(complete)


class _Video:
    """An mp4 file that appears when it is whole."""

    def __init__(self, target: Path, first: Image, rate: float) -> None:
        import cv2

        make_output_dir(target.parent)
        self._stack = ExitStack()
        self._temporary = self._stack.enter_context(atomic_path(target))
        self._size = (first.shape[1], first.shape[0])
        self._film = self._temporary.with_name(self._temporary.name + ".mp4")  # OpenCV chooses the format by it
        self._stack.callback(self._film.unlink, missing_ok=True)
        self._writer: cv2.VideoWriter = cv2.VideoWriter(
            str(self._film), cv2.VideoWriter.fourcc(*"mp4v"), rate, self._size
        )
        if not self._writer.isOpened():
            self._stack.close()
            raise YoloxError(f"cannot write '{target}' as mp4v. Choose another output folder.")

    def write(self, picture: Image) -> None:
        import cv2

        if (picture.shape[1], picture.shape[0]) != self._size:  # a camera that came back with another size
            picture = cv2.resize(picture, self._size).astype("uint8")
        self._writer.write(picture)

    def close(self, complete: bool) -> None:
        self._writer.release()
        if complete:
            self._film.replace(self._temporary)
        _leave(self._stack, complete)


class _Yolo:
    """A text file for each image: class, centre, width and height as shares of the image, score."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "labels"

    def write(self, result: Result, name: str) -> None:
        height, width = result.size
        lines = []
        for label, box, score in zip(result.boxes.labels, result.boxes.xywh, result.boxes.scores, strict=True):
            left, top, box_width, box_height = (float(value) for value in box)
            centre = ((left + box_width / 2) / width, (top + box_height / 2) / height)
            numbers = (*centre, box_width / width, box_height / height, float(score))
            lines.append(" ".join([str(int(label)), *(f"{number:.6f}" for number in numbers)]) + "\n")
        target = (self._folder / name).with_suffix(".txt")
        make_output_dir(target.parent)
        with atomic_path(target) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")

    def close(self, complete: bool) -> None:
        """Nothing is left open."""


class _OneFile:
    """A text file that grows with every result and appears when the run is over."""

    name = ""

    def __init__(self, folder: Path) -> None:
        self._stack = ExitStack()
        self.temporary = self._stack.enter_context(atomic_path(folder / self.name))
        self.file: IO[str] = self.temporary.open("w", encoding="utf-8", newline="")

    def close(self, complete: bool) -> None:
        self.file.close()
        _leave(self._stack, complete)


class _Csv(_OneFile):
    """``predictions.csv``: a line for each object."""

    name = "predictions.csv"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._rows = csv.writer(self.file, lineterminator="\n")
        self._rows.writerow(_CSV_FIELDS)

    def write(self, result: Result, name: str) -> None:
        boxes = result.boxes
        for row in range(len(boxes)):
            track = "" if boxes.track_ids is None else int(boxes.track_ids[row])
            edges = [f"{float(edge):.2f}" for edge in boxes.xyxy[row]]
            score = f"{float(boxes.scores[row]):.6f}"
            self._rows.writerow([name, result.index, boxes.names[row], int(boxes.labels[row]), score, *edges, track])


class _Coco(_OneFile):
    """``predictions.json``: images, categories, and annotations with a score; readable as a data set."""

    name = "predictions.json"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._images: IO[str] = self._stack.enter_context(  # a million of them would fill the memory
            TemporaryFile("w+", encoding="utf-8", dir=folder)  # noqa: SIM115 - the stack closes it
        )
        self._num_images = self._annotations = 0
        self._class_names: tuple[str, ...] = ()
        self.file.write('{"annotations": [')

    def write(self, result: Result, name: str) -> None:
        self._class_names = result.class_names
        self._num_images += 1
        size = {"height": result.size.height, "width": result.size.width}
        self._images.write(", " if self._num_images > 1 else "")
        json.dump({"id": self._num_images, "file_name": name, **size}, self._images)
        for row in result.to_coco(self._num_images):
            self.file.write(",\n" if self._annotations else "\n")
            self._annotations += 1
            area = row["bbox"][2] * row["bbox"][3]
            json.dump({"id": self._annotations, **row, "area": area, "iscrowd": 0}, self.file)

    def close(self, complete: bool) -> None:
        categories = [{"id": number, "name": name} for number, name in enumerate(self._class_names, start=1)]
        self.file.write(f'\n], "categories": {json.dumps(categories)}, "images": [')
        self._images.seek(0)
        copyfileobj(self._images, self.file)
        self.file.write("]}\n")
        super().close(complete)


class _Crops:
    """``crops/CLASS/NAME_K.jpg``: the pixels of each object."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "crops"

    def write(self, result: Result, name: str) -> None:
        base = Path(name)
        suffix = base.suffix or ".jpg"
        for number, (class_name, pixels) in enumerate(result.crops(), start=1):
            group = re.sub(r"[^\w .+-]", "_", class_name).strip(". ") or "class"
            _write_image(self._folder / group / base.with_name(f"{base.stem}_{number}{suffix}"), pixels)

    def close(self, complete: bool) -> None:
        """Nothing is left open."""


def _write_image(target: Path, image: Image) -> None:
    data = encode_image(image, target)
    make_output_dir(target.parent)
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)


FORMATS: dict[str, tuple[Callable[[Path], _Writer], tuple[str, ...]]] = {
    "pictures": (_Pictures, ()),
    "coco": (_Coco, (_Coco.name,)),
    "yolo": (_Yolo, ()),
    "csv": (_Csv, (_Csv.name,)),
    "crops": (_Crops, ()),
}
"""What can be written: its writer, and the files whose names are known before."""
