"""``python -m yolox.tools.demo``: find objects in images, a video or the pictures of a camera."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolox.errors import DataError, UsageError, YoloxError
from yolox.structures import Detections, Image, Size
from yolox.tools.arguments import ToolParser, add_model_arguments, add_overrides, positive_int, probability, run_tool
from yolox.tools.predictors import Predictor, load_predictor

if TYPE_CHECKING:
    import cv2

__all__ = ["EXTENSIONS", "build_parser", "main"]

EXTENSIONS = (".jpg", ".jpeg", ".webp", ".bmp", ".png")
_KEY_ESCAPE = 27
_USUAL_RATE = 25.0  # frames a second where a video does not say


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit code."""
    return run_tool(lambda: _run(build_parser().parse(argv)))


def build_parser() -> ToolParser:
    """Return the parser of the command line."""
    parser = ToolParser("demo", "Find objects in images, a video or the pictures of a camera.")
    parser.add_argument("kind", choices=("image", "video", "webcam"), help="what to look at")
    add_model_arguments(parser, "checkpoint; alone it is enough")
    parser.add_argument("--model", metavar="DIR", help="deployed model (saved by inference_demo) instead of -c")
    parser.add_argument("--trust", action="store_true", help="load --model even if it is a program, which can do harm")
    parser.add_argument("--path", help="image, folder of images (searched with its sub-folders) or video file")
    parser.add_argument("--camid", type=int, default=0, help="number of the camera (%(default)s)")
    parser.add_argument("--save_result", action="store_true", help="write the pictures with their detections")
    parser.add_argument("--output_dir", metavar="DIR", help="where to write them; implies --save_result")
    parser.add_argument("--conf", type=probability, default=0.25, help="lowest score (%(default)s)")
    parser.add_argument("--nms", type=probability, default=0.45, help="IoU of the suppression (%(default)s)")
    parser.add_argument("--tsize", type=positive_int, help="side of the square input (default: test_size)")
    parser.add_argument("--precision", choices=("32", "bf16"), default="32", help="of a checkpoint (%(default)s)")
    add_overrides(parser)
    return parser


def _run(args: argparse.Namespace) -> None:
    if args.kind != "webcam" and args.path is None:
        raise UsageError(f"no --path given; expected the {args.kind} to look at.")
    if args.kind != "webcam" and not Path(args.path).exists():
        raise DataError(f"'{args.path}' does not exist; expected an image, a folder or a video. Check --path.")
    predictor = load_predictor(args)
    print(f"model: {predictor.source}, input {predictor.input_size.height}x{predictor.input_size.width}")
    output = _output_dir(args, predictor)
    if args.kind == "image":
        _look_at_images(args, predictor, output)
    else:
        _look_at_frames(args, predictor, output)
    print(f"pictures: {output}" if output is not None else "no pictures were written; --save_result writes them")


def _output_dir(args: argparse.Namespace, predictor: Predictor) -> Path | None:
    """Return the folder of the pictures: the one asked for, or a new one in the official place."""
    from datetime import datetime

    from yolox.files import make_output_dir

    if args.output_dir is not None:
        return make_output_dir(Path(args.output_dir))
    if not args.save_result:
        return None
    name = args.experiment_name or predictor.experiment_name
    stamp = datetime.now().strftime("%Y_%m_%d_%H_%M_%S")
    return make_output_dir(Path("YOLOX_outputs") / name / "vis_res" / stamp)


def _look_at_images(args: argparse.Namespace, predictor: Predictor, output: Path | None) -> None:
    from yolox.visualize import draw_detections

    root = Path(args.path)
    files = _image_files(root)
    bad = 0
    for file in files:
        image = _read(file)
        if image is None:
            print(f"skipped: '{file}' is unreadable or truncated", file=sys.stderr)
            bad += 1
            continue
        found, elapsed_ms = predictor(image, args.conf, args.nms)
        print(f"{file}: {_describe(found, predictor.class_names)}, {elapsed_ms:.1f} ms")
        if output is not None:
            relative = file.relative_to(root) if root.is_dir() else Path(file.name)
            _write(output / relative, draw_detections(image, found, predictor.class_names))
    if bad == len(files):
        raise DataError(f"none of the {bad} images in '{root}' could be read; expected whole image files.")
    if bad:
        print(f"{bad} of {len(files)} images were skipped")


def _image_files(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not files:
        raise DataError(f"'{root}' holds no image; expected files ending in {', '.join(EXTENSIONS)}.")
    return files


def _read(file: Path) -> Image | None:
    from yolox.data.image_files import read_file_size, read_image

    size = read_file_size(file)
    return None if size is None else read_image(file, size)


def _write(path: Path, picture: Image) -> None:
    import cv2

    from yolox.files import atomic_path, make_output_dir

    make_output_dir(path.parent)
    done, data = cv2.imencode(path.suffix, picture)
    if not done:
        raise YoloxError(f"cannot encode '{path}' as {path.suffix}. Convert the image to .png or .jpg first.")
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.tobytes())


def _describe(found: Detections, names: Sequence[str]) -> str:
    counts = Counter(names[label] if label < len(names) else f"class {label}" for label in found.labels.tolist())
    listed = ", ".join(f"{name} {count}" for name, count in counts.most_common())
    total = len(found.labels)
    return f"{total} object{'' if total == 1 else 's'}" + (f" ({listed})" if listed else "")


def _look_at_frames(args: argparse.Namespace, predictor: Predictor, output: Path | None) -> None:
    """Follow a video or a camera to its end, Ctrl-C, or q, Q or Escape in the window where there is one."""
    import cv2

    from yolox.visualize import draw_detections

    source = args.camid if args.kind == "webcam" else args.path
    capture = cv2.VideoCapture(source)
    if not capture.isOpened():
        raise DataError(f"cannot open {args.kind} '{source}'; expected a video that OpenCV reads or a camera's number.")
    window = _open_window()
    writer: cv2.VideoWriter | None = None
    number = 0
    try:
        for number, frame in enumerate(_frames(capture), start=1):
            found, elapsed_ms = predictor(frame, args.conf, args.nms)
            print(f"frame {number}: {_describe(found, predictor.class_names)}, {elapsed_ms:.1f} ms")
            picture = draw_detections(frame, found, predictor.class_names)
            if output is not None:
                writer = writer or _video_writer(capture, args, output, Size(*frame.shape[:2]))
                writer.write(picture)
            if window is not None and _wants_to_stop(window, picture):
                break
    finally:
        capture.release()
        if writer is not None:
            writer.release()
    if number == 0:
        raise DataError(f"{args.kind} '{source}' gave no picture; expected at least one.")


def _frames(capture: cv2.VideoCapture) -> Iterator[Any]:
    while True:
        good, frame = capture.read()
        if not good:
            return
        yield frame


def _video_writer(capture: cv2.VideoCapture, args: argparse.Namespace, output: Path, size: Size) -> cv2.VideoWriter:
    import cv2

    name = Path(args.path).with_suffix(".mp4").name if args.kind == "video" else "camera.mp4"
    rate = capture.get(cv2.CAP_PROP_FPS) or _USUAL_RATE
    code = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(output / name), code, rate, (size.width, size.height))
    if not writer.isOpened():
        raise YoloxError(f"cannot write '{output / name}' as mp4v. Choose another --output_dir.")
    return writer


def _open_window() -> str | None:
    """Return the name of a window, or None where no screen is attached or OpenCV was built without windows."""
    import cv2

    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return None
    try:
        cv2.namedWindow("yolox", cv2.WINDOW_NORMAL)
    except cv2.error:
        return None
    return "yolox"


def _wants_to_stop(window: str, picture: Image) -> bool:
    import cv2

    cv2.imshow(window, picture)
    return cv2.waitKey(1) & 0xFF in (_KEY_ESCAPE, ord("q"), ord("Q"))


if __name__ == "__main__":
    sys.exit(main())
