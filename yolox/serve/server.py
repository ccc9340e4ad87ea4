"""The HTTP server around the service: its socket, and how long a connection may take."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from yolox.errors import UsageError, needs
from yolox.prediction.models import Predictor
from yolox.serve.service import Limits, build_app

_MARGIN_S = 5.0
_GRACE_S = 10


def serve(
    predictor: Predictor, host: str, port: int, limits: Limits, ready: Callable[[str], None] | None = None
) -> None:
    """Serve until SIGINT or SIGTERM; requests that are under way are answered first.

    Args:
        predictor: The model.
        host: Address to listen on.
        port: 0 takes a free one.
        limits: What a request may cost.
        ready: Called with the address when the socket listens.

    Raises:
        MissingDependencyError: When the extra ``serve`` is not installed.
        UsageError: When the address cannot be listened on.
    """
    server = build_server(build_app(predictor, limits), limits)
    try:
        listener = socket.create_server((host, port), backlog=128)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}:{port}: {error.strerror or error}. Choose another --port."
        ) from error
    with listener:
        if ready is not None:
            ready(f"http://{host}:{listener.getsockname()[1]}")
        server.run(sockets=[listener])


def build_server(app: Any, limits: Limits) -> Any:
    """Return the uvicorn server of an ASGI application.

    Raises:
        MissingDependencyError: When the extra ``serve`` is not installed.
    """
    with needs("uvicorn", "pip install 'yolox-cpu[serve]'"):
        import uvicorn
    config = uvicorn.Config(
        app,
        http=_connection_type(limits),
        log_level="warning",
        access_log=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=round(limits.idle_seconds),
        timeout_graceful_shutdown=_GRACE_S,
    )
    return uvicorn.Server(config)


def _connection_type(limits: Limits) -> Any:
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class TimedConnection(H11Protocol):  # type: ignore[misc]
        """A connection that is closed when nothing comes of it.

        uvicorn itself waits for ever for a first request, for the rest of a head, for the rest of a body that was
        answered already, and for a client that does not read.
        """

        _end: asyncio.TimerHandle

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._end = self.loop.call_later(limits.receive_seconds, transport.abort)

        def data_received(self, data: bytes) -> None:
            waited = self._waits()
            super().data_received(data)
            if waited and not self._waits():
                self._end_in(limits.receive_seconds + limits.answer_seconds + _MARGIN_S)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self._waits():
                self._end_in(limits.idle_seconds)

        def connection_lost(self, exc: Exception | None) -> None:
            self._end.cancel()
            super().connection_lost(exc)

        def _waits(self) -> bool:
            """Whether no request is under way."""
            return self.cycle is None or self.cycle.response_complete

        def _end_in(self, seconds: float) -> None:
            self._end.cancel()
            self._end = self.loop.call_later(seconds, self.transport.abort)

    return TimedConnection
