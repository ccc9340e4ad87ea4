"""Streams on the loopback whose connections are dropped."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from loopback import serving

from yolox.errors import DataError
from yolox.experiments import get_experiment
from yolox.models.detector import build_detector
from yolox.prediction import streams
from yolox.prediction.sources import Sources
from yolox.tools import command

FRAMES_A_CONNECTION = 6


class _Camera(BaseHTTPRequestHandler):
    """Sends a few JPEG frames and drops the connection; after three connections it is gone.

    The one called ``hangs.mjpg`` takes connections and never answers. Only the connections of the decoder count.
    """

    connections: dict[str, int]
    awake: threading.Event

    def do_GET(self) -> None:
        if "hangs" in self.path:
            self.connections[self.path] = self.connections.get(self.path, 0) + 1
            self.awake.wait(60)
            return
        if "Lavf" not in self.headers.get("User-Agent", ""):
            self.send_error(401)
            return
        served = self.connections.get(self.path, 0)
        self.connections[self.path] = served + 1
        if served >= 3:
            self.send_error(503)
            return
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for number in range(FRAMES_A_CONNECTION):
            image = np.full((48, 64, 3), 40 * number, np.uint8)
            data = cv2.imencode(".jpg", image)[1].tobytes()
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n".encode()
            self.wfile.write(head + data + b"\r\n")


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(streams, "FIRST_DELAY_S", 0.01)
    _Camera.connections, _Camera.awake = {}, threading.Event()
    with serving(_Camera) as address:
        yield address
        _Camera.awake.set()


def test_a_stream_goes_on_after_dropped_connections(camera: str) -> None:
    source = Sources(f"{camera}/stream.mjpg", max_reconnects=2)
    assert source.live
    pictures = list(source)
    assert _Camera.connections["/stream.mjpg"] >= 3
    assert len(pictures) > 2 * FRAMES_A_CONNECTION - 3  # the decoder may keep the last frame of a connection
    assert [picture.index for picture in pictures] == list(range(len(pictures)))
    assert {picture.source for picture in pictures} == {"stream.mjpg"}
    assert pictures[0].image.shape == (48, 64, 3)


def test_four_cameras_go_on_after_dropped_connections(camera: str) -> None:
    source = Sources([f"{camera}/camera{number}.mjpg" for number in range(4)], max_reconnects=2)
    last = {picture.source: picture.index for picture in source}
    assert last.keys() == {f"camera{number}.mjpg" for number in range(4)}
    assert min(_Camera.connections.values()) >= 3
    assert min(last.values()) > 2 * FRAMES_A_CONNECTION - 4, "frames of a third connection"


def test_a_camera_that_hangs_holds_up_no_other(camera: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "OPEN_TIMEOUT_MS", 60_000)  # a busy machine may need long for the others
    names = ("hangs.mjpg", "a.mjpg", "b.mjpg", "c.mjpg")
    last: dict[str, int] = {}
    for picture in Sources([f"{camera}/{name}" for name in names], max_reconnects=2):
        last[str(picture.source)] = picture.index
        finished = [name for name in names[1:] if last.get(name, 0) > 2 * FRAMES_A_CONNECTION - 4]
        if len(finished) == 3:
            break
    assert _Camera.connections["/hangs.mjpg"] == 1, "all others had finished while it hung"


def test_the_command_watches_four_cameras(camera: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    torch.save({"model": build_detector(get_experiment("yolox_nano").model).state_dict()}, tmp_path / "model.pth")
    words = ["predict", *(f"{camera}/camera{number}.mjpg" for number in range(4))]
    words += ["-c", str(tmp_path / "model.pth"), "--tsize", "64", "--json", "--max_reconnects", "2"]
    assert command.main(words) == 0
    told = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert {Path(row["image"]).name.partition("_")[0] for row in told} == {f"camera{number}" for number in range(4)}


def test_a_stream_that_is_not_there(camera: str) -> None:
    _Camera.connections = {"/none.mjpg": 99}
    with pytest.raises(DataError, match="gave no picture"):
        list(Sources(f"{camera}/none.mjpg", max_reconnects=1))


@pytest.mark.parametrize("address", ["rtsp://127.0.0.1:99999/x", "http://127.0.0.1:port/x.mjpg", "rtsp://a..b/x"])
def test_addresses_that_no_server_can_have(address: str) -> None:
    with pytest.raises(DataError):
        list(Sources(address, max_reconnects=0))


def test_a_video_ends(tmp_path: Path) -> None:
    file = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (64, 48))
    for shade in (0, 100, 200):
        writer.write(np.full((48, 64, 3), shade, np.uint8))
    writer.release()
    pictures = list(Sources(file))
    assert [picture.name for picture in pictures] == ["film_000000.jpg", "film_000001.jpg", "film_000002.jpg"]
    assert pictures[0].rate == pytest.approx(10.0)
    assert pictures[0].path == file
    with pytest.raises(DataError, match="cannot open video"):
        (tmp_path / "broken.mp4").write_bytes(b"no video")
        list(Sources(tmp_path / "broken.mp4"))
