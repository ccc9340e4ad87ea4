"""The service: ``POST /predict`` takes the bytes of an image file, ``/healthz`` and ``/metrics`` say how it goes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from yolox.errors import DataError, UsageError, YoloxError, needs
from yolox.prediction.models import Predictor
from yolox.prediction.results import Result
from yolox.prediction.run import named_boxes
from yolox.prediction.sources import decode_bytes
from yolox.serve.batching import Batcher, BusyError
from yolox.serve.metrics import Metrics
from yolox.structures import Detections, Image, Size

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """The limits of a request.

    Args:
        batch_size: Images that go through the network together.
        max_wait_ms: How long an image waits for others.
        queue_size: Images that may wait; a request beyond is answered 503 at once.
        max_bytes: Size of a request's body; a larger one is answered 413.
        receive_seconds: Time in which the head of a first request must have arrived, and then the body (408).
        answer_seconds: Time in which the answer must be there (504).
        connections: Connections at the same time.
        idle_seconds: How long a connection waits for its next request. Longer than proxies keep theirs (60 s), so that
            it is never closed at the moment when one sends a request.
    """

    batch_size: int = 8
    max_wait_ms: float = 2.0
    queue_size: int = 64
    max_bytes: int = 20_000_000
    receive_seconds: float = 20.0
    answer_seconds: float = 30.0
    connections: int = 256
    idle_seconds: float = 75.0


class _RefusalError(YoloxError):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def build_app(predictor: Predictor, limits: Limits = Limits()) -> Any:
    """Return the ASGI application.

    Args:
        predictor: The model.
        limits: What a request may cost.

    Raises:
        MissingDependencyError: When the extra ``serve`` is not installed.
    """
    with needs("fastapi", "pip install 'yolox-cpu[serve]'"):
        from fastapi import FastAPI
        from starlette.responses import JSONResponse, PlainTextResponse
    metrics = Metrics()
    batcher = Batcher(predictor, limits.batch_size, limits.max_wait_ms, limits.queue_size, metrics)

    @asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        batcher.start()
        yield
        batcher.stop()

    async def predict(request: Any) -> Any:
        started = time.monotonic()
        status, content = await _answer(_predict(request, predictor, batcher, limits))
        metrics.request(status, time.monotonic() - started)
        headers = {"Retry-After": "1"} if status == 503 else None
        return JSONResponse(content, status, headers)

    async def health(_request: Any) -> Any:
        state = "ok" if batcher.alive else "stopped"
        facts = {
            "status": state,
            "model": predictor.name,
            "method": predictor.method,
            "input_size": list(predictor.input_size),
            "class_names": list(predictor.class_names),
        }
        return JSONResponse(facts, 200 if batcher.alive else 503)

    async def show_metrics(_request: Any) -> Any:
        return PlainTextResponse(metrics.text(batcher.waiting), media_type="text/plain; version=0.0.4")

    app = FastAPI(title="yolox", lifespan=lifespan, openapi_url=None)
    app.add_route("/predict", predict, methods=["POST"])
    app.add_route("/healthz", health, methods=["GET"])
    app.add_route("/metrics", show_metrics, methods=["GET"])
    return app


async def _answer(work: Awaitable[dict[str, Any]]) -> tuple[int, dict[str, Any]]:
    """Return status and content of a request: what ``work`` gives, or what went wrong with it."""
    try:
        return 200, await work
    except _RefusalError as refusal:
        return refusal.status, {"error": str(refusal)}
    except BusyError as error:
        return 503, {"error": str(error)}
    except (DataError, UsageError) as error:
        return 422, {"error": str(error)}
    except Exception:  # noqa: BLE001 - logged whole; the service goes on
        _log.exception("a prediction failed")
        return 500, {"error": "the prediction failed; the log of the service says why"}


async def _predict(request: Any, predictor: Predictor, batcher: Batcher, limits: Limits) -> dict[str, Any]:
    confidence = _share(request.query_params, "confidence", 0.25)
    nms_iou = _share(request.query_params, "nms_iou", 0.45)
    if batcher.waiting >= limits.queue_size:  # before the body is read: overload must cost little
        raise BusyError("too many requests are waiting; try again later")
    try:
        data = await asyncio.wait_for(_body(request, limits.max_bytes), limits.receive_seconds)
    except asyncio.TimeoutError as error:
        raise _RefusalError(408, f"the body did not arrive within {limits.receive_seconds:g} s") from error
    image = await asyncio.to_thread(decode_bytes, data, "the body of the request")
    started = time.monotonic()
    answer = asyncio.wrap_future(batcher.submit(image, confidence, nms_iou))
    try:
        found = await asyncio.wait_for(answer, limits.answer_seconds)
    except asyncio.TimeoutError as error:
        raise _RefusalError(504, f"no answer within {limits.answer_seconds:g} s") from error
    return _result(image, found, predictor, 1000.0 * (time.monotonic() - started)).to_dict()


async def _body(request: Any, max_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _RefusalError(413, f"the body has {declared} bytes; at most {max_bytes} are taken")
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > max_bytes:
            raise _RefusalError(413, f"the body has more than {max_bytes} bytes")
        parts.append(part)
    if size == 0:
        raise _RefusalError(422, "the body is empty; send the bytes of an image file: curl --data-binary @image.jpg")
    return b"".join(parts)


def _share(parameters: Any, name: str, default: float) -> float:
    text = parameters.get(name)
    try:
        value = default if text is None else float(text)
    except ValueError as error:
        raise _RefusalError(422, f"{name} got '{text}', expected a number from 0 to 1") from error
    if not 0.0 <= value <= 1.0:
        raise _RefusalError(422, f"{name} got '{text}', expected a number from 0 to 1")
    return value


def _result(image: Image, found: Detections, predictor: Predictor, elapsed_ms: float) -> Result:
    names = predictor.class_names
    boxes = named_boxes(found, names)
    return Result(image, Size(*image.shape[:2]), boxes, names, "request", elapsed_ms=elapsed_ms)
