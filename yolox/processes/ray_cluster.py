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
from functools import partial
from pathlib import Path
from typing import Any

from yolox.errors import UsageError, needs
from yolox.processes.addresses import check_cluster, other_program

_log = logging.getLogger(__name__)

_HEALTH = ("/grpc.health.v1.Health/Check", b"")
"""Of gRPC itself; the control service of a cluster answers it."""
_CLIENT_PING = ("/ray.rpc.RayletDriver/ClusterInfo", b"\x08\x06")
"""The field 1, type, is 6, PING: what a Ray Client asks first."""
_NO_CLUSTER = (
    "no cluster answers at that port. Expected its own, such as 6379; if a Ray Client server is there (port 10001), "
    "write ray://HOST:PORT."
)
_NO_CLIENT_SERVER = (
    "no Ray Client server answers at that port. Expected its own, such as 10001; the cluster itself (port 6379) is "
    "joined as HOST:PORT, from a machine that is part of it."
)


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
    """Ask who is at an address; Ray itself would wait for half a minute, or for many, where no Ray answers.

    Raises:
        UsageError: When nobody answers, or no Ray does, or the wrong one of its servers.
    """
    if address == "auto":
        address = _started_here() or address
    scheme = address.rpartition("://")[0]
    if address in ("auto", "local") or scheme not in ("", "ray"):
        return
    expected = "ray://HOST:PORT, often 10001" if scheme else "HOST:PORT, often 6379"
    check_cluster("Ray", address, expected, partial(_ask, client=bool(scheme)))


def _ask(connection: socket.socket, place: str, seconds: float, *, client: bool) -> str | None:
    """Ask over gRPC, as Ray speaks, on a connection of its own: the Ray Client server, or the cluster itself."""
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return None  # its certificates are for Ray to read
    with needs("grpcio", "pip install 'yolox-cpu[ray]'"):
        import grpc
    end = time.monotonic() + seconds
    with grpc.insecure_channel(place, [("grpc.enable_http_proxy", 0)]) as channel:  # Ray takes no proxy either
        try:
            grpc.channel_ready_future(channel).result(seconds)
            method, request = _CLIENT_PING if client else _HEALTH
            channel.unary_unary(method)(request, timeout=max(0.01, end - time.monotonic()))
        except grpc.FutureTimeoutError:
            return other_program("Ray")
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNIMPLEMENTED:
                return _NO_CLIENT_SERVER if client else _NO_CLUSTER
    return None


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
