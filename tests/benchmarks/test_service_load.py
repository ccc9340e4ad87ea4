"""The load on a service: every request is counted once, by its answer and by its time."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from benchmarks.service_load import SLICES, Answer, Load, summary


class Handler(BaseHTTPRequestHandler):
    """Answers three requests, refuses the fourth, and so on."""

    protocol_version = "HTTP/1.1"
    count = 0
    lock = threading.Lock()

    def do_POST(self) -> None:
        assert self.rfile.read(int(self.headers["Content-Length"])) == b"image"
        with Handler.lock:
            Handler.count += 1
            status = 200 if Handler.count % 4 else 503
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    Handler.count = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_every_request_is_counted_in_its_slice(port: int) -> None:
    load = Load(port, b"image", seconds=120.0, count=40)
    load.run(3, os.getpid())
    assert summary(load.answers)["answers"] == {"200": 30, "503": 10}
    assert all(answer.latency_ms > 0 for answer in load.answers)
    slices: list[Any] = load.slices()
    assert [part["until_s"] for part in slices] == [20.0 * number for number in range(1, SLICES + 1)]
    total: Counter[str] = Counter()
    for part in slices:
        total.update(part["answers"])
    assert total == {"200": 30, "503": 10}
    assert all(isinstance(value, float) for value in load.memory_mb)


def test_the_latency_is_that_of_good_answers() -> None:
    answers = [Answer(float(number), "200", 10.0) for number in range(100)] + [Answer(1.0, "503", 5000.0)] * 50
    assert summary(answers) == {
        "answers": {"200": 100, "503": 50},
        "latency_ms": {"p50": 10.0, "p90": 10.0, "p99": 10.0},
    }


def test_connections_that_are_dropped_are_counted() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        free = server.server_address[1]  # closed when the load comes
    load = Load(free, b"image", seconds=120.0, count=2)
    load.run(1)
    assert sum(summary(load.answers)["answers"].values()) == 2  # type: ignore[attr-defined]
    assert all(answer.status.startswith("ConnectionRefusedError") for answer in load.answers)
