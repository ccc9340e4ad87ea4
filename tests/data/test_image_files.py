from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolox.data.image_files import read_file_size, read_image
from yolox.structures import Size


def gradient(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=-1).astype(np.uint8)


def turned_jpeg(path: Path, image: np.ndarray, orientation: int) -> None:
    """Write a JPEG with an Exif orientation tag."""
    data = cv2.imencode(".jpg", image)[1].tobytes()
    tiff = b"II*\x00" + struct.pack("<IH", 8, 1) + struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0) + b"\0\0\0\0"
    body = b"Exif\0\0" + tiff
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:])


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp"])
def test_reads_what_opencv_reads(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a b ü{suffix}"
    path.write_bytes(cv2.imencode(suffix, gradient(40, 60))[1].tobytes())
    image = read_image(path, Size(40, 60))
    expected = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(image, expected)
    assert read_file_size(path) == Size(40, 60)


def test_grey_and_transparent_files_become_bgr(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "grey.png"), gradient(20, 30)[..., 0])
    cv2.imwrite(str(tmp_path / "alpha.png"), np.dstack([gradient(20, 30), np.full((20, 30), 9, np.uint8)]))
    for name in ("grey.png", "alpha.png"):
        image = read_image(tmp_path / name, Size(20, 30))
        assert image is not None
        assert image.shape == (20, 30, 3)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.95])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str, kept: float) -> None:
    data = cv2.imencode(suffix, gradient(90, 120))[1].tobytes()
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data[: int(len(data) * kept)])
    assert read_image(path, Size(90, 120)) is None


def test_bytes_behind_the_end_mark_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(cv2.imencode(".jpg", gradient(90, 120))[1].tobytes() + b"\0" * 50)
    assert read_image(path, Size(90, 120)) is not None


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    assert read_image(tmp_path / "absent.jpg", Size(1, 1)) is None
    assert read_file_size(tmp_path / "absent.jpg") is None
    (tmp_path / "text.jpg").write_text("not an image")
    assert read_image(tmp_path / "text.jpg", Size(1, 1)) is None
    assert read_file_size(tmp_path / "text.jpg") is None
    assert read_image(tmp_path, Size(1, 1)) is None


@pytest.mark.parametrize(("least", "shape"), [((100, 150), (100, 150)), ((50, 75), (50, 75)), ((26, 38), (50, 75))])
def test_reduced_decoding_stays_large_enough(tmp_path: Path, least: tuple[int, int], shape: tuple[int, int]) -> None:
    path = tmp_path / "a.jpg"
    cv2.imwrite(str(path), gradient(100, 150))
    image = read_image(path, Size(100, 150), at_least=Size(*least))
    assert image is not None
    assert image.shape[:2] == shape


def test_reduced_decoding_looks_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    cv2.imwrite(str(path), cv2.GaussianBlur(gradient(401, 603), (0, 0), 3))
    full = read_image(path, Size(401, 603))
    small = read_image(path, Size(401, 603), at_least=Size(100, 150))
    assert full is not None
    assert small is not None
    assert small.shape[:2] == (101, 151)
    reference = cv2.resize(full, (151, 101), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - reference).mean() < 3


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_orientation_applies_unless_the_labels_mean_the_raw_pixels(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "a.jpg"
    turned_jpeg(path, gradient(40, 60), orientation)
    shown = Size(40, 60) if orientation < 5 else Size(60, 40)
    image = read_image(path, shown)
    assert image is not None
    assert image.shape[:2] == tuple(shown)
    assert read_file_size(path) == shown
    raw = read_image(path, Size(40, 60))
    assert raw is not None
    assert raw.shape[:2] == (40, 60)
    if orientation == 6:
        np.testing.assert_array_equal(np.rot90(raw, -1), image)
