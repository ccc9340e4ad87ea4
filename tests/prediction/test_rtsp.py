"""RTSP cameras on the loopback that drop their connections: JPEG over RTP in the RTSP connection (RFC 2326, 2435)."""

from __future__ import annotations

import socketserver
import struct
import threading
from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from yolox.errors import DataError, without_login
from yolox.prediction import streams
from yolox.prediction.sources import Sources

FRAMES_A_CONNECTION = 12
HEIGHT, WIDTH = 48, 64
SDP = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 26\r\na=control:track\r\n"


def rtp_packet(number: int, shade: int) -> bytes:
    """Return the packet of one frame: tables and pixels of a JPEG file without its headers."""
    data = cv2.imencode(".jpg", np.full((HEIGHT, WIDTH, 3), shade, np.uint8))[1].tobytes()
    tables, at = b"", 2
    while data[at + 1] != 0xDA:  # start of the scan
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xDB:  # quantisation tables: an index and 64 numbers each
            body = data[at + 4 : at + 2 + size]
            tables += b"".join(body[k + 1 : k + 65] for k in range(0, len(body), 65))
        at += 2 + size
    scan = data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") : -2]
    header = struct.pack(">BBHII", 0x80, 0x80 | 26, number, 3000 * number, 7)  # the last packet of its frame
    jpeg = struct.pack(">IBBBB", 0, 1, 255, WIDTH // 8, HEIGHT // 8) + struct.pack(">BBH", 0, 0, len(tables))
    return header + jpeg + tables + scan


class _Camera(socketserver.StreamRequestHandler):
    plays: dict[str, int]

    def handle(self) -> None:
        while request := self.rfile.readline().decode().split():
            fields = {}
            while line := self.rfile.readline().decode().strip():
                name, _, value = line.partition(":")
                fields[name.lower()] = value.strip()
            answer = {"CSeq": fields["cseq"], "Session": "1"}
            body = SDP if request[0] == "DESCRIBE" else ""
            if request[0] == "OPTIONS":
                answer["Public"] = "OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN"
            elif request[0] == "SETUP":
                answer["Transport"] = "RTP/AVP/TCP;unicast;interleaved=0-1"
            if body:
                answer |= {"Content-Type": "application/sdp", "Content-Length": str(len(body))}
            gone = request[0] == "DESCRIBE" and self.plays.get(request[1], 0) >= 3
            lines = [f"RTSP/1.0 {'404 Not Found' if gone else '200 OK'}", *(f"{k}: {v}" for k, v in answer.items())]
            self.wfile.write("\r\n".join([*lines, "", body]).encode())
            if request[0] == "PLAY":
                track = request[1].rstrip("/")
                self.plays[track] = self.plays.get(track, 0) + 1
                for number in range(FRAMES_A_CONNECTION):
                    packet = rtp_packet(number, 15 * number)
                    self.wfile.write(struct.pack(">cBH", b"$", 0, len(packet)) + packet)
                return


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(streams, "FIRST_DELAY_S", 0.01)
    _Camera.plays = {}
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Camera) as service:
        service.daemon_threads = True
        thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"rtsp://user:secret@127.0.0.1:{service.server_address[1]}"
        service.shutdown()
        thread.join()


@pytest.mark.parametrize("names", [("yard",), ("yard", "gate", "hall", "roof")], ids=len)
def test_an_rtsp_camera_goes_on_after_dropped_connections(camera: str, names: tuple[str, ...]) -> None:
    last: dict[str, int] = {}
    for picture in Sources([f"{camera}/{name}" for name in names], max_reconnects=2):
        assert picture.image.shape == (HEIGHT, WIDTH, 3)
        last[str(picture.source)] = picture.index
    assert last.keys() == set(names)
    assert min(last.values()) >= FRAMES_A_CONNECTION, "frames of a second connection"


def test_messages_show_no_password(camera: str, caplog: pytest.LogCaptureFixture) -> None:
    address = f"{camera}/gone"
    _Camera.plays = {address.replace("user:secret@", ""): 99}
    with pytest.raises(DataError, match=r"'rtsp://127.0.0.1:\d+/gone' gave no picture"):
        list(Sources(address, max_reconnects=1))
    assert "secret" not in caplog.text
    assert without_login("https://a:b@c.org/x@y") == "https://c.org/x@y"
