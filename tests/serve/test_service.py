"""The service on the loopback: right answers, limits, overload, and that it goes on afterwards."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from yolox.prediction.models import Predictor
from yolox.serve.server import build_server
from yolox.serve.service import Limits, build_app
from yolox.structures import Size

LIMITS = Limits(
    batch_size=4,
    max_wait_ms=20.0,
    queue_size=3,
    max_bytes=50_000,
    receive_seconds=10.0,
    answer_seconds=2.0,
    connections=20,
    idle_seconds=1.0,
)
HASTY = replace(LIMITS, receive_seconds=0.5)
"""For tests that wait for this time; a busy machine may drop any connection in it."""
HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
PICTURE = cv2.imencode(".png", np.full((32, 64, 3), 60, np.uint8))[1].tobytes()


class Network:
    """One box in every image; it can be held up and broken."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.free.set()
        self.broken = False
        self.batches: list[int] = []

    def __call__(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        self.free.wait(10)
        if self.broken:
            raise RuntimeError("the network is broken")
        self.batches.append(len(images))
        boxes = np.tile(np.array([4, 2, 20, 12], np.float32), (len(images), 1, 1))
        return boxes, np.tile(np.array([0.1, 0.8], np.float32), (len(images), 1, 1))


class Service:
    def __init__(self, limits: Limits) -> None:
        self.network = Network()
        predictor = Predictor(self.network, Size(32, 32), ("apple", "bolt"), "a test", "test", "none")
        self.server = build_server(build_app(predictor, limits), limits)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})

    def post(self, data: bytes = PICTURE, query: str = "") -> tuple[int, dict[str, object]]:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        request = urllib.request.Request(f"{self.address}/predict{query}", data=data, method="POST")
        try:
            with opener.open(request, timeout=10) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def answers(self) -> bool:
        """Return whether there is a prediction, once a connection has lasted long enough to ask for it."""
        for _ in range(20):
            with suppress(ConnectionError, urllib.error.URLError):
                return self.post()[0] == 200
        return False

    def get(self, path: str) -> str:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.address + path, timeout=10) as response:
            return str(response.read().decode())


@pytest.fixture
def service() -> Iterator[Service]:
    with running(LIMITS) as started:
        yield started


@pytest.fixture
def hasty() -> Iterator[Service]:
    with running(HASTY) as started:
        yield started


@contextmanager
def running(limits: Limits) -> Iterator[Service]:
    service = Service(limits)
    service.thread.start()
    while not service.server.started:
        time.sleep(0.01)
    yield service
    service.network.free.set()
    service.server.should_exit = True
    service.thread.join(10)
    service.listener.close()
    assert not service.thread.is_alive()


def test_predictions_health_and_metrics(service: Service) -> None:
    status, content = service.post(query="?confidence=0.5&nms_iou=0.5")
    assert status == 200
    assert (content["height"], content["width"]) == (32, 64)
    assert content["objects"] == [
        {"name": "bolt", "label": 1, "score": pytest.approx(0.8), "box_xyxy": [8.0, 4.0, 40.0, 24.0]}
    ]
    assert service.post(query="?confidence=0.9")[1]["objects"] == []
    health = json.loads(service.get("/healthz"))
    assert (health["status"], health["class_names"]) == ("ok", ["apple", "bolt"])
    metrics = service.get("/metrics")
    assert 'yolox_requests_total{status="200"} 2' in metrics
    assert "yolox_images_total 2" in metrics


def test_requests_at_the_same_time_share_a_batch(service: Service) -> None:
    with ThreadPoolExecutor(3) as pool:
        service.network.free.clear()
        first = pool.submit(service.post)
        while json.loads(service.get("/healthz"))["status"] == "ok" and not first.running():
            time.sleep(0.01)
        others = [pool.submit(service.post) for _ in range(2)]
        time.sleep(0.3)
        service.network.free.set()
        assert [one.result()[0] for one in (first, *others)] == [200] * 3
    assert sum(service.network.batches) == 3
    assert len(service.network.batches) <= 2


@pytest.mark.parametrize(
    ("data", "query", "status", "part"),
    [
        (b"no image", "", 422, "no readable image"),
        (b"", "", 422, "empty"),
        (PICTURE[:-20], "", 422, "no readable image"),
        (b"x" * 60_000, "", 413, "at most 50000"),
        (PICTURE, "?confidence=2", 422, "from 0 to 1"),
        (PICTURE, "?nms_iou=nan", 422, "from 0 to 1"),
        (PICTURE, "?confidence=much", 422, "from 0 to 1"),
    ],
)
def test_bad_requests(service: Service, data: bytes, query: str, status: int, part: str) -> None:
    found, content = service.post(data, query)
    assert found == status
    assert part in str(content["error"])
    assert service.post()[0] == 200


def test_overload_is_refused_and_passes(service: Service) -> None:
    service.network.free.clear()
    with ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(service.post) for _ in range(16)]
        while sum(answer.done() for answer in answers) < 16 - (LIMITS.batch_size * 1 + LIMITS.queue_size + 1):
            time.sleep(0.01)
        service.network.free.set()
        codes = [answer.result()[0] for answer in answers]
    assert set(codes) == {200, 503}
    assert service.post()[0] == 200


def test_a_broken_network_and_one_that_hangs(service: Service) -> None:
    service.network.broken = True
    assert service.post()[0] == 500
    service.network.broken = False
    assert service.post()[0] == 200
    service.network.free.clear()
    assert service.post()[0] == 504
    service.network.free.set()
    assert service.post()[0] == 200


def test_a_slow_client_is_let_go(hasty: Service) -> None:
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=10) as client:
        client.sendall(HEAD + b"abc")
        assert b"408" in client.recv(1000)
    assert hasty.answers()


def connected(service: Service) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), timeout=10)


def is_closed(client: socket.socket) -> bool:
    try:
        return client.recv(1000) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("sent", [b"", b"P", b"POST /predict HTTP/1.1\r\nHost: x\r\nX"])
def test_a_connection_without_a_whole_request_is_closed(hasty: Service, sent: bytes) -> None:
    with connected(hasty) as client:
        client.sendall(sent)
        assert is_closed(client)


@pytest.mark.parametrize("start", [b"POST /predict HTTP/1.1\r\nX: ", HEAD], ids=["head", "body after the answer"])
def test_bytes_that_trickle_keep_no_connection(hasty: Service, start: bytes) -> None:
    with connected(hasty) as client:
        client.sendall(start)
        with pytest.raises(OSError, match=r"reset|pipe"):
            for _ in range(600):
                client.sendall(b"x")
                time.sleep(0.02)


def test_a_client_that_reads_no_answer_is_let_go(hasty: Service) -> None:
    """Asked of the server: a client whose window is closed may hear of it only at its next probe, a minute later."""
    requests = 1000 * b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    open_connections = hasty.server.server_state.connections
    with connected(hasty) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(1)
        with pytest.raises(OSError, match=r"reset|pipe|timed out"):
            while True:
                client.sendall(requests)
        end = time.monotonic() + 60
        while open_connections:
            assert time.monotonic() < end, "the server keeps the connection"
            time.sleep(0.05)
    assert hasty.answers()


def test_idle_connections_keep_nobody_out_for_long(hasty: Service) -> None:
    idle = [connected(hasty) for _ in range(LIMITS.connections)]
    for client in idle:
        assert is_closed(client)
        client.close()
    assert hasty.answers()


def test_a_connection_serves_request_after_request(service: Service) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=10)
    connection.connect()
    kept = connection.sock
    for _ in range(5):
        connection.request("POST", "/predict", PICTURE)
        assert connection.getresponse().read()
        assert connection.sock is kept
    assert is_closed(kept)
    connection.close()
    assert Limits().idle_seconds > 60, "the time that proxies keep a connection"


def test_the_command_listens_on_the_loopback_and_ends_on_sigterm(tmp_path_factory: pytest.TempPathFactory) -> None:
    import torch

    from yolox.experiments import get_experiment
    from yolox.models.detector import build_detector

    model = tmp_path_factory.mktemp("serve") / "nano.pth"
    torch.save({"model": build_detector(get_experiment("yolox_nano").model).state_dict()}, model)
    words = [sys.executable, "-m", "yolox", "serve", str(model), "--port", "0", "--tsize", "64"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        address = next(line for line in lines if line.startswith("listening: ")).split()[1]
        assert address.startswith("http://127.0.0.1:")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(urllib.request.Request(address, data=PICTURE), timeout=60) as response:
            assert json.load(response)["height"] == 32
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 143
