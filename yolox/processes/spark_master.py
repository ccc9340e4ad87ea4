"""Whether a Spark master is where one is expected: Spark itself asks for a minute, and then makes a dead context."""

from __future__ import annotations

import socket
import struct
import time
from contextlib import suppress
from urllib.parse import urlsplit

from yolox.errors import UsageError

_CONNECT_SECONDS = 10.0
_STREAM = b"/files/none"
_REQUEST = struct.pack(">qBi", 8 + 1 + 4 + len(_STREAM), 6, len(_STREAM)) + _STREAM
"""A frame of Spark's network layer: its length, the type of a request for a stream, and the name of a stream. A master
answers that it has no such stream, and its log says nothing."""
_LONGEST_FRAME = 2**31


def check_spark_master(address: str) -> None:
    """Ask whether a master answers at ``spark://host:port``, or at one of several, ``spark://host:port,host:port``.

    Only silence and another protocol are refused: a master that ends the connection, as one with TLS does, may be one.

    Raises:
        UsageError: When none does.
    """
    reasons = []
    for place in address.removeprefix("spark://").split(","):
        try:
            parts = urlsplit(f"//{place}")
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise UsageError(f"'{address}' is no address of a Spark master: {error}. Expected HOST:PORT.") from error
        if host is None or port is None:
            raise UsageError(f"'{address}' is no address of a Spark master; expected spark://HOST:PORT, often 7077.")
        reason = _reason(host, port)
        if reason is None:
            return
        reasons.append(reason)
    raise UsageError(f"the Spark cluster at '{address}' cannot be joined: {'; '.join(reasons)}")


def _reason(host: str, port: int) -> str | None:
    """Return why no master is there, or None where one may be."""
    end = time.monotonic() + _CONNECT_SECONDS
    try:
        connection = socket.create_connection((host, port), _CONNECT_SECONDS)
    except OSError as error:
        return f"{error.strerror or error}. Is it running there?"
    received = b""
    with connection, suppress(ConnectionError):
        connection.sendall(_REQUEST)
        while len(received) < 8:
            connection.settimeout(max(0.01, end - time.monotonic()))
            try:
                chunk = connection.recv(64)
            except TimeoutError:
                return "what listens there does not answer as Spark does. Is it the right port?"
            if not chunk:
                break
            received += chunk
    if len(received) >= 8 and not 8 < struct.unpack(">q", received[:8])[0] < _LONGEST_FRAME:
        return "what listens there does not answer as Spark does. Is it the right port?"
    return None
