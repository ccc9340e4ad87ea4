from __future__ import annotations

import tracemalloc
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from loopback import serving
from PIL import Image as PilImage

from yolox.errors import DataError, UsageError
from yolox.files import mark_input_files
from yolox.prediction.sources import Sources
from yolox.prediction.writers import ResultWriter
from yolox.tools.run_tool import run_tool

LOGIN = b64encode(b"me:s@cret").decode()
BLUE, RED = (255, 0, 0), (0, 0, 255)  # BGR


def plain(colour: tuple[int, int, int], height: int = 12, width: int = 20) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in" / "deep er").mkdir(parents=True)
    for name, colour in (("b.png", BLUE), ("deep er/r.png", RED), ("a[1].png", RED)):
        assert cv2.imwrite(str(tmp_path / "in" / name), plain(colour))
    (tmp_path / "in" / "notes.txt").write_text("no image")
    return tmp_path / "in"


def test_files_folders_and_patterns(folder: Path) -> None:
    assert [picture.name for picture in Sources(folder)] == ["a[1].png", "b.png", "deep er/r.png"]
    assert [picture.path for picture in Sources(str(folder / "b.png"))] == [folder / "b.png"]
    assert [picture.name for picture in Sources(f"{folder}/**/*.png")] == ["a[1].png", "b.png", "deep er/r.png"]
    assert [picture.name for picture in Sources(folder / "a[1].png")] == ["a[1].png"]
    several = Sources([folder / "b.png", str(folder / "deep er")])
    assert [(picture.name, picture.index) for picture in several] == [("b.png", 0), ("r.png", 1)]
    (picture,) = Sources(folder / "b.png")
    assert picture.image[0, 0].tolist() == list(BLUE)


@pytest.mark.parametrize(
    "source",
    [
        plain(RED),
        PilImage.new("RGB", (20, 12), (255, 0, 0)),
        torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(3, 12, 20),
        torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None].expand(3, 12, 20),
        cv2.imencode(".png", plain(RED))[1].tobytes(),
        np.dstack([plain(RED), np.full((12, 20), 9, np.uint8)]),
    ],
    ids=["array", "PIL", "float tensor", "uint8 tensor", "bytes", "with alpha"],
)
def test_pictures_in_memory_are_bgr(source: object) -> None:
    (picture,) = Sources(source)
    assert picture.image.shape == (12, 20, 3)
    assert picture.image.dtype == np.uint8
    assert picture.image[5, 5].tolist() == list(RED)
    assert picture.path is None


def test_batches_and_grey_arrays() -> None:
    assert len(list(Sources(np.stack([plain(RED), plain(BLUE)])))) == 2
    assert len(list(Sources(torch.zeros(3, 3, 8, 8)))) == 3
    (grey,) = Sources(np.full((4, 6), 7, np.uint8))
    assert grey.image.shape == (4, 6, 3)
    assert len(list(Sources([plain(RED), PilImage.new("L", (3, 3))]))) == 2


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    for wrong, error, part in (
        (str(tmp_path / "nowhere.jpg"), DataError, "does not exist"),
        (str(tmp_path / "*.jpg"), DataError, "matches no file"),
        (tmp_path, DataError, "holds no image"),
        ([], DataError, "holds no picture"),
        (np.zeros((4, 4, 3), np.float32), UsageError, "expected uint8 BGR"),
        (torch.full((3, 4, 4), 255.0), UsageError, "expected 0 to 1"),
        (torch.zeros(4, 4), UsageError, "expected RGB"),
        (3.5, UsageError, "a float arrived"),
        (b"no image", DataError, "no readable image"),
    ):
        with pytest.raises(error, match=part):
            list(Sources(wrong))


class _Pictures(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        data = cv2.imencode(".png", plain(BLUE))[1].tobytes() if self.path == "/b.png" else b"<html>"
        locked = self.path == "/locked.png" and self.headers["Authorization"] != f"Basic {LOGIN}"
        data = data if self.path != "/locked.png" else cv2.imencode(".png", plain(RED))[1].tobytes()
        self.send_response(401 if locked else 404 if self.path == "/missing.png" else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(_Pictures) as address:
        yield address


def test_pictures_behind_addresses(server: str) -> None:
    (picture,) = Sources(f"{server}/b.png")
    assert (picture.name, picture.image[0, 0].tolist()) == ("b.png", list(BLUE))
    with pytest.raises(DataError, match="404"):
        Sources(f"{server}/missing.png")
    with pytest.raises(DataError, match="no readable image"):
        Sources(f"{server}/page.png")


def test_the_login_of_an_address_goes_to_its_server_and_into_no_message(server: str) -> None:
    address = server.replace("://", "://me:s%40cret@")
    (picture,) = Sources(f"{address}/locked.png")
    assert picture.image[0, 0].tolist() == list(RED)
    with pytest.raises(DataError, match="401") as refused:
        Sources(f"{server.replace('://', '://me:w0rd@')}/locked.png")
    assert "w0rd" not in str(refused.value)


def test_names_of_many_files_take_little_memory(tmp_path: Path) -> None:
    """A million files in a folder took a gigabyte before the first one was read; 250 bytes each are allowed here."""
    count = 3000
    for number in range(count):
        (tmp_path / f"{number:09d}.png").touch()
    tracemalloc.start()
    try:
        sources = Sources(tmp_path)
        mark_input_files(sources.files)
        writer = ResultWriter(tmp_path / "found")
        writer.check(sources.names)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(sources) == count
    assert used / count < 250


def test_absolute_paths_of_a_list_are_written_into_the_folder_that_is_asked_for(tmp_path: Path) -> None:
    image = tmp_path / "in" / "a.png"
    image.parent.mkdir()
    cv2.imwrite(str(image), np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "list.txt").write_text(f"{image}\n../{tmp_path.name}/in/a.png\n")
    sources = Sources(tmp_path / "list.txt")
    out = tmp_path / "out"
    out.mkdir()

    def body() -> None:
        mark_input_files(sources.files)
        ResultWriter(out).check(sources.names)
        with pytest.raises(UsageError, match="is an input of this command"):
            ResultWriter(tmp_path / "in").check(["a.png"])

    assert run_tool(body) == 0
    assert [picture.path for picture in sources] == [image, tmp_path / ".." / tmp_path.name / "in" / "a.png"]
