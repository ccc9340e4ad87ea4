"""Whether a Spark master is where one is expected: Spark itself asks for a minute, and then makes a dead context."""

from __future__ import annotations

import socket
import struct
import time
from contextlib import suppress

from yolox.processes.addresses import check_cluster, other_program

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
    check_cluster("Spark", address, "spark://HOST:PORT, often 7077", _ask)


def _ask(connection: socket.socket, place: str, seconds: float) -> str | None:
    """Return why no master is there, or None where one may be."""
    end = time.monotonic() + seconds
    received = b""
    with suppress(ConnectionError):
        connection.sendall(_REQUEST)
        while len(received) < 8:
            connection.settimeout(max(0.01, end - time.monotonic()))
            try:
                chunk = connection.recv(64)
            except TimeoutError:
                return other_program("Spark")
            if not chunk:
                break
            received += chunk
    if len(received) >= 8 and not 8 < struct.unpack(">q", received[:8])[0] < _LONGEST_FRAME:
        return other_program("Spark")
    return None
