"""``python -m benchmarks.service_load MODEL IMAGE``: a running service under a bounded load, and right after it.

The service is started on the loopback, asked by a number of clients for a number of seconds, at most so many times, and
ended. With ``--load 0.9`` it is first asked as fast as it answers for a while, then at that share of the rate found.
With ``--overload 60`` twice as many clients as its queue holds ask it for 60 s after that, as fast as they get answers.
What is printed: requests/s, answers by status and errors of dropped connections, latency of the good answers, both in
all and in each sixth of the time, memory in each sixtieth, and latency of single requests afterwards, one a second.
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
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from yolox.cpu.cgroups import kernel_bytes
from yolox.serve.service import Limits

LARGEST_COUNT, LONGEST_S, MOST_CLIENTS = 1_000_000, 3600.0, 64
OVERLOAD_CLIENTS, LONGEST_OVERLOAD_S = 2 * Limits().queue_size, 300.0
SLICES, MEMORY_SAMPLES = 6, 60
WARM_UP = 20


class Answer(NamedTuple):
    """One request.

    Args:
        second: When it ended, in seconds since the load began.
        status: Status of the answer, or what became of the connection.
        latency_ms: From the request to the last byte of the answer.
    """

    second: float
    status: str
    latency_ms: float


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
        self._seconds = seconds
        self._started = self._next = time.monotonic()
        self._left = count
        self._interval = 0.0 if rate is None else 1.0 / rate
        self._lock = threading.Lock()
        self.answers: list[Answer] = []
        self.memory_mb: list[float | None] = []

    def run(self, clients: int, pid: int | None = None) -> float:
        """Run the clients and return the seconds that it took; ``memory_mb`` is that of process ``pid`` meanwhile."""
        threads = [threading.Thread(target=self._ask_on, daemon=True) for _ in range(clients)]
        for thread in threads:
            thread.start()
        pause = max(0.1, self._seconds / MEMORY_SAMPLES)
        for thread in threads:
            while thread.is_alive():
                if pid is not None:
                    self.memory_mb.append(_memory_mb(pid, "VmRSS"))
                thread.join(pause)
        return time.monotonic() - self._started

    def slices(self) -> list[dict[str, object]]:
        """Return answers and latency of each sixth of the time."""
        width = self._seconds / SLICES
        parts: list[list[Answer]] = [[] for _ in range(SLICES)]
        for answer in self.answers:
            parts[min(SLICES - 1, int(answer.second / width))].append(answer)
        return [{"until_s": round(width * (number + 1), 1), **summary(part)} for number, part in enumerate(parts)]

    def _ask_on(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        ended = time.perf_counter()
        while time.monotonic() < self._started + self._seconds:
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
                status = str(response.status)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                status = f"{type(error).__name__}, {started - ended:.1f} s after the answer before"
            ended = time.perf_counter()
            with self._lock:
                self.answers.append(Answer(time.monotonic() - self._started, status, 1000.0 * (ended - started)))
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
    parser.add_argument("--trial", type=float, default=20.0, help="seconds in which the highest rate is found")
    parser.add_argument("--overload", type=float, default=0.0, help="seconds of overload before the single requests")
    args = parser.parse_args()
    words = [sys.executable, "-m", "yolox", "serve", args.model, "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            facts, good = _measure(args, process)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    print(json.dumps({**facts, "exit_code": process.returncode}, indent=2))
    return 0 if good else 1


def _measure(args: argparse.Namespace, process: subprocess.Popen[str]) -> tuple[dict[str, object], bool]:
    """Return what is printed, and whether some requests of the load and all single ones afterwards were answered."""
    port, data, pid = _port(process), args.image.read_bytes(), process.pid
    clients, seconds = min(args.clients, MOST_CLIENTS), min(args.seconds, LONGEST_S)
    facts: dict[str, object] = {"clients": clients}
    Load(port, data, 5.0, WARM_UP).run(1)
    rate = None
    if args.load is not None:
        trial = Load(port, data, min(args.trial, LONGEST_S), LARGEST_COUNT)
        elapsed = trial.run(clients)
        highest = sum(answer.status == "200" for answer in trial.answers) / elapsed
        if not highest:
            raise SystemExit("the service answered no request of the trial; what it printed says why")
        rate = args.load * highest
        facts |= {"highest_requests_per_s": round(highest, 1), "wanted_requests_per_s": round(rate, 1)}
    load = Load(port, data, seconds, min(args.count, LARGEST_COUNT), rate)
    elapsed = load.run(clients, pid)
    facts |= {"seconds": round(elapsed, 1), **summary(load.answers)}
    facts |= {"requests_per_s": round(len(load.answers) / elapsed, 1), "memory_mb": load.memory_mb}
    facts["slices"] = load.slices()
    if args.overload:
        overload = Load(port, data, min(args.overload, LONGEST_OVERLOAD_S), LARGEST_COUNT)
        overload.run(OVERLOAD_CLIENTS, pid)
        facts["overload"] = {"clients": OVERLOAD_CLIENTS, **summary(overload.answers), "memory_mb": overload.memory_mb}
    after = Load(port, data, min(seconds, 60.0), LARGEST_COUNT, rate=1.0)
    after.run(1, pid)
    facts["single_requests_afterwards"] = {**summary(after.answers), "memory_mb": after.memory_mb[-1:]}
    afterwards = {answer.status for answer in after.answers}
    good = any(answer.status == "200" for answer in load.answers) and afterwards == {"200"}
    return facts | {"peak_memory_mb": _memory_mb(pid, "VmHWM")}, good


def summary(answers: Sequence[Answer]) -> dict[str, object]:
    """Return how many requests ended in which way, and how long those with a good answer took."""
    latencies = [answer.latency_ms for answer in answers if answer.status == "200"]
    counts = Counter(answer.status for answer in answers)
    return {"answers": dict(sorted(counts.items())), "latency_ms": _quantiles(latencies)}


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
