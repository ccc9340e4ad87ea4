"""``python -m benchmarks.service_load MODEL IMAGE``: a running service under a bounded load, and right after it.

The service is started on the loopback, asked by a number of clients for a number of seconds, at most so many times, and
ended. With ``--load 0.9`` it is first asked as fast as it answers for a while, then at that share of the rate found.
What is printed: requests/s, answers by status and errors of dropped connections, latency of the good answers, memory in
each tenth of the time, and latency of single requests afterwards.
"""

from __future__ import annotations

import argparse
import http.client
import json
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from yolox.cpu.cgroups import kernel_bytes

LARGEST_COUNT, LONGEST_S, MOST_CLIENTS = 1_000_000, 3600.0, 64
TRIAL_S = 20.0
AFTERWARDS = 20


class Load:
    """Clients that ask as fast as they get answers, until the time or the number of requests is used up.

    Args:
        port: Port of the service on the loopback.
        data: The bytes of an image file.
        seconds: How long.
        count: Requests in all, at most.
        rate: Requests a second, at most; None as fast as there are answers.
    """

    def __init__(self, port: int, data: bytes, seconds: float, count: int, rate: float | None = None) -> None:
        self._port = port
        self._data = data
        self._until = time.monotonic() + seconds
        self._left = count
        self._interval = 0.0 if rate is None else 1.0 / rate
        self._next = time.monotonic()
        self._lock = threading.Lock()
        self.answers: Counter[str] = Counter()
        self.latencies_ms: list[float] = []
        self.memory_mb: list[float | None] = []

    def run(self, clients: int, pid: int | None = None) -> float:
        """Run the clients and return the seconds that it took; ``memory_mb`` is that of process ``pid`` meanwhile."""
        started = time.monotonic()
        threads = [threading.Thread(target=self._ask_on, daemon=True) for _ in range(clients)]
        for thread in threads:
            thread.start()
        pause = max(0.1, (self._until - started) / 10)
        for thread in threads:
            while thread.is_alive():
                if pid is not None:
                    self.memory_mb.append(_memory_mb(pid, "VmRSS"))
                thread.join(pause)
        return time.monotonic() - started

    def _ask_on(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        ended = time.perf_counter()
        while time.monotonic() < self._until:
            with self._lock:
                if self._left == 0:
                    break
                self._left -= 1
                turn, self._next = self._next, max(self._next, time.monotonic()) + self._interval
            time.sleep(max(0.0, turn - time.monotonic()))
            started = time.perf_counter()
            try:
                connection.request("POST", "/predict", self._data)
                response = connection.getresponse()
                response.read()
                answer = str(response.status)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                answer = f"{type(error).__name__}, {started - ended:.1f} s after the answer before"
            ended = time.perf_counter()
            with self._lock:
                self.answers[answer] += 1
                if answer == "200":
                    self.latencies_ms.append(1000.0 * (ended - started))
        connection.close()


def main() -> int:
    """Run the load and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("image", type=Path)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--load", type=float, help="share of the highest rate, 0 to 1")
    args = parser.parse_args()
    clients, seconds = min(args.clients, MOST_CLIENTS), min(args.seconds, LONGEST_S)
    data = args.image.read_bytes()
    words = [sys.executable, "-m", "yolox", "serve", args.model, "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            port = _port(process)
            Load(port, data, 5.0, AFTERWARDS).run(1)  # warm-up
            rate = None
            if args.load is not None:
                trial = Load(port, data, TRIAL_S, LARGEST_COUNT)
                elapsed = trial.run(clients)
                if not trial.answers["200"]:
                    print("the service answered no request of the trial; what it printed says why", file=sys.stderr)
                    return 1
                rate = args.load * trial.answers["200"] / elapsed
            load = Load(port, data, seconds, min(args.count, LARGEST_COUNT), rate)
            elapsed = load.run(clients, process.pid)
            after = Load(port, data, 30.0, AFTERWARDS)
            after.run(1)
            peak_mb = _memory_mb(process.pid, "VmHWM")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
    facts = {
        "clients": clients,
        "wanted_requests_per_s": None if rate is None else round(rate, 1),
        "seconds": round(elapsed, 1),
        "requests_per_s": round(sum(load.answers.values()) / elapsed, 1),
        "answers": dict(sorted(load.answers.items())),
        "latency_ms": _quantiles(load.latencies_ms),
        "single_request_afterwards_ms": _quantiles(after.latencies_ms),
        "memory_mb": load.memory_mb,
        "peak_memory_mb": peak_mb,
    }
    print(json.dumps(facts, indent=2))
    return 0 if load.answers["200"] and after.answers["200"] == AFTERWARDS else 1


def _port(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("listening: "):
            return int(line.split()[1].split(":")[2].split("/")[0])
    raise SystemExit("the service did not start; what it printed says why")


def _quantiles(values: list[float]) -> dict[str, float]:
    if len(values) < 2:
        return {}
    cuts = statistics.quantiles(values, n=100)
    return {"p50": round(cuts[49], 1), "p90": round(cuts[89], 1), "p99": round(cuts[98], 1)}


def _memory_mb(pid: int, kind: str) -> float | None:
    found = kernel_bytes(Path(f"/proc/{pid}/status"), kind)
    return None if found is None else round(found / 1e6, 1)


if __name__ == "__main__":
    sys.exit(main())
