"""Being part of a Ray cluster, or of a small one that lives only for the run."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from yolox.errors import UsageError, needs

_log = logging.getLogger(__name__)

_CONNECT_SECONDS = 10.0
_HEALTH = "/grpc.health.v1.Health/Check"  # of gRPC itself; the control service of a cluster answers it


@contextmanager
def ray_cluster(address: str | None = None, store_bytes: int = 80 * 2**20, *, client: bool = True) -> Iterator[Any]:
    """Yield the module ``ray`` while this process is part of a cluster; leave only what was joined here.

    A Ray that this process is already part of is used and left running. Else the cluster at ``address``, or at
    ``$RAY_ADDRESS``, is joined; without an address, a Ray of this machine is started.

    Args:
        address: ``host:6379`` from a machine of the cluster, ``auto`` for the cluster that was started on this machine,
            or ``ray://host:10001`` (Ray Client) from anywhere.
        store_bytes: Size of the object store of a Ray that is started here.
        client: Whether a Ray Client will do, through which this process is no part of the cluster itself.

    Raises:
        UsageError: When the cluster cannot be joined.
        MissingDependencyError: When Ray is not installed.
    """
    with needs("ray", "pip install 'yolox-cpu[ray]'"):
        import ray
        import ray.util.scheduling_strategies
    if ray.is_initialized():
        if address is not None:
            _log.warning("this process is part of a Ray cluster already: it is used, not '%s'", address)
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith("ray://") and not client:
        raise UsageError(
            f"'{address}' is the address of a Ray Client server; expected that of the cluster itself, such as "
            "'10.0.0.1:6379', from a machine that is part of it."
        )
    settings: dict[str, Any] = {"address": address, "logging_level": logging.ERROR, "log_to_driver": False}
    if address == "local":
        settings.update(include_dashboard=False, object_store_memory=store_bytes)
    _check_reachable(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    began = time.monotonic()
    try:
        with _kept_sigterm():
            ray.init(**settings)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(f"the Ray cluster at '{address}' cannot be joined: {error}") from error
    _log.debug("Ray at %s after %.1f s", address, time.monotonic() - began)
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ask who is at an address; Ray itself would wait for many minutes where nobody answers, or somebody else.

    Raises:
        UsageError: When nobody answers, or no Ray does.
    """
    if address == "auto":
        address = _started_here() or address
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"'{address}' is no address of a Ray cluster: {error}. Expected HOST:PORT.") from error
    if host is None or port is None:
        return  # "local", "auto"
    try:
        socket.create_connection((host, port), _CONNECT_SECONDS).close()
    except OSError as error:
        raise UsageError(
            f"the Ray cluster at '{address}' cannot be joined: {error.strerror or error}. Is it running there?"
        ) from error
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):  # its certificates are for Ray to read
        _check_answers(address, f"{host}:{port}")


def _check_answers(address: str, place: str) -> None:
    """Ask what listens there over gRPC, as Ray speaks.

    Raises:
        UsageError: When it does not speak gRPC, or is the Ray Client server where the cluster itself is asked for.
    """
    with needs("grpcio", "pip install 'yolox-cpu[ray]'"):
        import grpc
    with grpc.insecure_channel(place, [("grpc.enable_http_proxy", 0)]) as channel:  # Ray takes no proxy either
        try:
            grpc.channel_ready_future(channel).result(_CONNECT_SECONDS)
            channel.unary_unary(_HEALTH)(b"", timeout=_CONNECT_SECONDS)
        except grpc.FutureTimeoutError as error:
            raise UsageError(
                f"the Ray cluster at '{address}' cannot be joined: what listens there does not answer as Ray does. "
                "Is it the right port?"
            ) from error
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNIMPLEMENTED and not address.startswith("ray://"):
                raise UsageError(
                    f"the Ray cluster at '{address}' cannot be joined: no cluster answers at that port. Expected its "
                    "own, such as 6379; if a Ray Client server is there (port 10001), write ray://HOST:PORT."
                ) from error


def _started_here() -> str | None:
    """Return the address of the cluster that was started here last, as Ray keeps it; it may have ended."""
    try:
        return (Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray" / "ray_current_cluster").read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


@contextmanager
def _kept_sigterm() -> Iterator[None]:
    """Keep what SIGTERM does, which Ray changes; one that arrives meanwhile does it at the end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as stop:
        signal.signal(signal.SIGTERM, before)
        if stop.code == signal.SIGTERM:  # by Ray's handler
            signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
