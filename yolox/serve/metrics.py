"""Counters of the service in the text format of Prometheus."""

from __future__ import annotations

import threading
from collections import Counter

_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Counts requests by status, images, batches and seconds; any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[int] = Counter()
        self._buckets: Counter[float] = Counter()
        self._request_seconds = 0.0
        self._images = 0
        self._batches = 0
        self._predict_seconds = 0.0

    def request(self, status: int, seconds: float) -> None:
        """Count an answered request and how long it took, waiting included."""
        with self._lock:
            self._requests[status] += 1
            self._request_seconds += seconds
            for bound in _BOUNDS_S:
                self._buckets[bound] += seconds <= bound

    def batch(self, images: int, seconds: float) -> None:
        """Count a batch that went through the network."""
        with self._lock:
            self._batches += 1
            self._images += images
            self._predict_seconds += seconds

    def text(self, waiting: int) -> str:
        """Return all counters; ``waiting`` is the present length of the queue."""
        with self._lock:
            total = sum(self._requests.values())
            lines = [
                "# TYPE yolox_requests_total counter",
                *(f'yolox_requests_total{{status="{code}"}} {n}' for code, n in sorted(self._requests.items())),
                "# TYPE yolox_request_seconds histogram",
                *(f'yolox_request_seconds_bucket{{le="{bound:g}"}} {self._buckets[bound]}' for bound in _BOUNDS_S),
                f'yolox_request_seconds_bucket{{le="+Inf"}} {total}',
                f"yolox_request_seconds_sum {self._request_seconds:.6f}",
                f"yolox_request_seconds_count {total}",
                "# TYPE yolox_images_total counter",
                f"yolox_images_total {self._images}",
                "# TYPE yolox_batches_total counter",
                f"yolox_batches_total {self._batches}",
                "# TYPE yolox_predict_seconds_total counter",
                f"yolox_predict_seconds_total {self._predict_seconds:.6f}",
                "# TYPE yolox_queue_length gauge",
                f"yolox_queue_length {waiting}",
            ]
        return "\n".join(lines) + "\n"
