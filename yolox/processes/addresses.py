"""Whether a cluster is where one is expected: Ray and Spark themselves wait for minutes where nobody answers."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from yolox.errors import UsageError

CONNECT_SECONDS = 10.0
Ask = Callable[[socket.socket, str, float], "str | None"]
"""Given a connection, its place as ``host:port`` and the seconds that are left, asks as the library's own programs do.
Returns why no cluster is there, or None where one may be."""


def check_cluster(library: str, address: str, expected: str, ask: Ask) -> None:
    """Ask whether a cluster answers at ``host:port``, or at one of several, ``host:port,host:port``.

    Args:
        library: Whose cluster it is, for the messages.
        address: One place or several, behind ``scheme://`` or nothing.
        expected: What such an address looks like, for the messages.
        ask: What tells a cluster from other programs that listen.

    Raises:
        UsageError: When the address has another form, or no cluster answers within `CONNECT_SECONDS`.
    """
    wrong = f"'{address}' is no address of a {library} cluster"
    reasons = []
    for place in address.rpartition("://")[2].split(","):
        try:
            parts = urlsplit(f"//{place}")
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise UsageError(f"{wrong}: {error}. Expected {expected}") from error
        if host is None or port is None:
            raise UsageError(f"{wrong}. Expected {expected}")
        end = time.monotonic() + CONNECT_SECONDS
        try:
            connection = socket.create_connection((host, port), CONNECT_SECONDS)
        except (OSError, UnicodeError) as error:  # UnicodeError: a name that no machine can have
            reasons.append(f"{getattr(error, 'strerror', None) or error}. Is it running there?")
            continue
        with connection:
            reason = ask(connection, parts.netloc, max(0.01, end - time.monotonic()))
        if reason is None:
            return
        reasons.append(reason)
    raise UsageError(f"the {library} cluster at '{address}' cannot be joined: {'; '.join(reasons)}")


def other_program(library: str) -> str:
    """Return the reason where something listens that is no cluster."""
    return f"what listens there does not answer as {library} does. Is it the right port?"
