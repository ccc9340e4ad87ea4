from __future__ import annotations

import io
import random
import struct
import tracemalloc
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image as PillowImage

from yolox.data.image_files import MAX_PIXELS, decode, list_images, read_file_size, read_image, why_unreadable
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


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_format_shows_an_orientation_alike(tmp_path: Path, suffix: str, orientation: int) -> None:
    corner = np.zeros((40, 64, 3), np.uint8)
    corner[:16, :16] = (0, 0, 255)
    exif = PillowImage.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a{suffix}"
    PillowImage.fromarray(corner[..., ::-1]).save(path, exif=exif, quality=95)
    size = read_file_size(path)
    assert size == ((64, 40) if orientation >= 5 else (40, 64))
    image = read_image(path, size)
    assert image is not None
    assert image.shape[:2] == size
    top, left = orientation in (1, 2, 5, 6), orientation in (1, 4, 5, 8)
    shown = image[:16] if top else image[-16:]
    assert (shown[:, :16] if left else shown[:, -16:])[..., 2].mean() > 200
    assert image[..., 2].mean() < 60
    if orientation >= 5 and suffix != ".tif":
        raw = read_image(path, Size(40, 64))
        assert raw is not None
        assert raw[:16, :16, 2].mean() > 200


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_twelve_and_sixteen_bits_fill_the_range(tmp_path: Path, suffix: str) -> None:
    grey = gradient(20, 30)[..., 0]
    for name, image in (("twelve", grey.astype(np.uint16) * 16), ("sixteen", grey.astype(np.uint16) * 257)):
        cv2.imwrite(str(tmp_path / (name + suffix)), image)
        found = read_image(tmp_path / (name + suffix), Size(20, 30))
        assert found is not None
        assert np.abs(found[..., 0].astype(int) - grey).max() <= 1


def test_large_images_of_twelve_bits_fill_the_range(tmp_path: Path) -> None:
    """Of more pixels than those that OpenCV decodes to 8 bits by itself, which takes 16 bits for the range."""
    size = Size(4200, 8000)
    cv2.imwrite(str(tmp_path / "large.png"), np.full(size, 4095, np.uint16), [cv2.IMWRITE_PNG_COMPRESSION, 0])
    found = read_image(tmp_path / "large.png", size)
    assert found is not None
    assert (found[:: size.height - 1, :: size.width - 1] == 255).all()


@pytest.mark.parametrize("scale", [1 / 255, 1.0, 3.0])
def test_float_images_become_grey_levels(tmp_path: Path, scale: float) -> None:
    values = gradient(20, 30)[..., 0].astype(np.float32) * np.float32(scale)
    values[0, 0] = np.nan
    PillowImage.fromarray(values).save(tmp_path / "a.tif")
    image = read_image(tmp_path / "a.tif", Size(20, 30))
    assert image is not None
    assert image.max() > 240
    assert image[0, 0].tolist() == [0, 0, 0]
    assert read_file_size(tmp_path / "a.tif") == Size(20, 30)


def test_colours_under_transparent_pixels_are_not_shown(tmp_path: Path) -> None:
    image = np.full((20, 30, 4), (0, 255, 0, 255), np.uint8)
    image[:, :10, 3] = 0
    image[:, 10:20, 3] = 128
    cv2.imwrite(str(tmp_path / "a.png"), image)
    found = read_image(tmp_path / "a.png", Size(20, 30))
    assert found is not None
    assert found[5, 5].tolist() == [114, 114, 114]
    assert found[5, 15].tolist() == [57, 185, 57]
    assert found[5, 25].tolist() == [0, 255, 0]
    PillowImage.fromarray(gradient(20, 30)).quantize(8).save(tmp_path / "p.png", transparency=0)
    assert read_image(tmp_path / "p.png", Size(20, 30)) is not None


def test_whole_images_with_odd_tails_are_used(tmp_path: Path) -> None:
    noise = bytes(random.Random(0).randrange(256) for _ in range(5000))
    for suffix in (".jpg", ".png"):
        data = cv2.imencode(suffix, gradient(90, 120))[1].tobytes()
        for tail in (noise, b"\xff\xda" + noise, data[: len(data) // 2], b"\0" * 100):
            (tmp_path / f"a{suffix}").write_bytes(data + tail)
            assert read_image(tmp_path / f"a{suffix}", Size(90, 120)) is not None


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = zlib.compress(b"\0" * 1000)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_decompression_bombs_are_refused_from_their_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    path = tmp_path / "a.png"
    for width, height in ((60000, 60000), (MAX_PIXELS // 100 + 1, 100)):
        path.write_bytes(png_header(width, height))
        assert read_image(path, Size(10, 10)) is None
        assert "more than the limit" in why_unreadable(path)
    webp = struct.pack("<4sI4s4sIBI", b"RIFF", 22, b"WEBP", b"VP8L", 10, 0x2F, 9_999 | 10_799 << 14) + bytes(5)
    path.write_bytes(webp)  # of 10000x10800 pixels, for which its decoder takes more than 1 GiB
    assert read_image(path, Size(10, 10)) is None
    assert "10000x10800 pixels, more than the limit" in why_unreadable(path)
    jp2 = bytearray(cv2.imencode(".jp2", gradient(64, 64))[1].tobytes())
    place = jp2.index(b"ihdr")
    jp2[place + 4 : place + 12] = struct.pack(">II", 6000, 10000)
    path.write_bytes(jp2)
    assert read_image(path, Size(10, 10)) is None
    assert "10000x6000 pixels, more than the limit" in why_unreadable(path)
    path.write_bytes(png_header(10000, 6000))
    assert "limit" not in why_unreadable(path), "PNG takes less for each pixel"
    stream = io.BytesIO()
    PillowImage.fromarray(gradient(20, 30)).save(stream, "JPEG")
    data = bytearray(stream.getvalue())
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", 65000, 65000)
    (tmp_path / "a.jpg").write_bytes(data)
    assert read_image(tmp_path / "a.jpg", Size(10, 10)) is None


def test_folders_are_listed_without_hidden_files_and_with_what_is_left_out(tmp_path: Path) -> None:
    wanted = ("b.JPG", "sub/a.png", "sub/deep/c.webp")
    other = ("x.gif", "sub/y.HEIC")
    ignored = ("._b.jpg", ".hidden.png", ".ipynb_checkpoints/b.jpg", "__MACOSX/b.jpg", "notes.txt")
    for name in (*wanted, *other, *ignored):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "sub" / "deep" / "loop").symlink_to(tmp_path / "sub")
    (tmp_path / "sub" / "gone.png").symlink_to("gone.png")  # to itself
    images, others = list_images(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in images] == [*wanted, "sub/gone.png"]
    assert sorted(path.name for path in others) == ["x.gif", "y.HEIC"]


def test_listed_files_have_the_order_of_their_paths(tmp_path: Path) -> None:
    names = ("a/b.png", "a.png", "a-b/c.png", "a/b/c.png", "a b.png", "B.png", "ä.png", "a.png.d/1.png", "a0.png")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "0").symlink_to(tmp_path / "a")  # the first way to a folder is the one that is taken
    images, _ = list_images(tmp_path)
    assert images == sorted(images)
    expected = {name.replace("a/b", "0/b") for name in names}
    assert {path.relative_to(tmp_path).as_posix() for path in images} == expected


def test_damaged_bytes_never_raise(tmp_path: Path) -> None:
    rng = random.Random(1)
    path = tmp_path / "a"
    for suffix in (".jpg", ".png", ".webp", ".tif", ".bmp"):
        data = cv2.imencode(suffix, gradient(30, 40))[1].tobytes()
        for _ in range(30):
            damaged = bytearray(data)
            for _ in range(rng.randrange(1, 12)):
                damaged[rng.randrange(min(len(damaged), 300))] = rng.randrange(256)
            path.write_bytes(damaged)
            read_file_size(path)
            image = read_image(path, Size(30, 40))
            assert image is None or (image.dtype == np.uint8 and image.ndim == 3)
            assert isinstance(why_unreadable(path), str)


def test_deep_images_take_little_more_memory_than_their_pixels() -> None:
    """The floats of a whole 16-bit image took 40 times its pixels as bytes: gigabytes for a file of 100 kB."""
    data = bytes(cv2.imencode(".png", np.zeros((1500, 1500, 4), np.uint16))[1])
    tracemalloc.start()
    image = decode(data, Size(1500, 1500))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert image is not None
    assert image.shape == (1500, 1500, 3)
    assert peak < 8 * image.size
