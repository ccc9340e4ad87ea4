"""Files from the network: read with limits, resumed after a cut, checked before they are used."""

from __future__ import annotations

import logging
import os
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from yolox.errors import DataError, YoloxError, without_login

_log = logging.getLogger(__name__)

LARGEST_IMAGE_BYTES = 100_000_000
TIMEOUT_S = 20.0  # without a byte
ATTEMPTS = 4
PIECE = 1 << 16
_HEADERS = {"User-Agent": "yolox-cpu", "Accept-Encoding": "identity"}


class DownloadError(YoloxError):
    """A file that could not be downloaded whole."""

    exit_code = 4


def read_address(address: str, largest: int = LARGEST_IMAGE_BYTES, timeout: float = TIMEOUT_S) -> bytes:
    """Return what lies behind an http or https address; proxies of the environment are used.

    Raises:
        DataError: When it cannot be read or is larger than ``largest`` bytes.
    """
    try:
        with urllib.request.urlopen(_request(address, _HEADERS), timeout=timeout) as response:
            data: bytes = response.read(largest + 1)
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise DataError(
            f"'{without_login(address)}' cannot be read: {error}. Check the address and the connection."
        ) from error
    if len(data) > largest:
        raise DataError(
            f"'{without_login(address)}' holds more than {largest} bytes; expected an image. Download it first."
        )
    return data


def _request(address: str, headers: dict[str, str]) -> urllib.request.Request:
    """Return a request with the login of the address, if it has one, where only its server reads it."""
    request = urllib.request.Request(without_login(address), headers=headers)
    parts = urlsplit(address)
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        request.add_unredirected_header("Authorization", f"Basic {b64encode(login).decode()}")
    return request


def download(
    address: str,
    target: Path,
    *,
    check: Callable[[Path], None],
    progress: Callable[[int, int | None], None] | None = None,
    timeout: float = TIMEOUT_S,
    attempts: int = ATTEMPTS,
) -> None:
    """Download ``address`` to ``target``, which appears only whole and checked.

    A connection that stalls or is cut is taken up again where it ended, from ``target.part``; that file stays after a
    failure, so the next call goes on from there.

    Args:
        address: An http or https address; proxies of the environment (``https_proxy``) are used.
        target: Where the file goes; its folder exists.
        check: Raises a `YoloxError` when the finished file is not the one that was wanted; it is removed then.
        progress: Called with the bytes so far and in all (None where the server does not say).
        timeout: Seconds without a byte after which a connection counts as stalled.
        attempts: Connections without any progress, at most.

    Raises:
        DownloadError: When the file cannot be had whole.
    """
    part = target.with_name(target.name + ".part")
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _fetch(address, part, progress, timeout)
            break
        except (OSError, HTTPException, ValueError) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429:
                raise DownloadError(f"'{without_login(address)}' answered {error.code} {error.reason}.") from error
            grown = part.exists() and part.stat().st_size > before
            failures = 0 if grown else failures + 1
            if failures >= attempts:
                raise DownloadError(f"'{without_login(address)}' cannot be downloaded: {error}.") from error
            _log.warning("'%s' broke off (%s); going on where it ended", without_login(address), error)
            time.sleep(min(0.2 * 2**failures, 5.0))
    try:
        check(part)
    except YoloxError:
        part.unlink(missing_ok=True)
        raise
    os.replace(part, target)


def _fetch(address: str, part: Path, progress: Callable[[int, int | None], None] | None, timeout: float) -> None:
    """Append the missing bytes to ``part``; return only when the server's length is reached.

    Raises:
        ConnectionError: When the connection ends before that.
    """
    done = part.stat().st_size if part.exists() else 0
    headers = dict(_HEADERS) | ({"Range": f"bytes={done}-"} if done else {})
    try:
        response = urllib.request.urlopen(_request(address, headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and done:  # nothing is missing, or the part is of another file: the check decides
            error.close()
            return
        raise
    with response:
        if done and response.status != 206:
            done = 0  # a server that knows no ranges begins again
        total = _total(response, done)
        with part.open("ab" if done else "wb") as file:
            while piece := response.read1(PIECE):  # what is there, so that a stall loses nothing
                file.write(piece)
                done += len(piece)
                if progress is not None:
                    progress(done, total)
    if total is not None and done < total:
        raise ConnectionError(f"the connection ended after {done} of {total} bytes")


def _total(response: HTTPResponse | Any, done: int) -> int | None:
    length = response.headers.get("Content-Length")
    return done + int(length) if length is not None and length.isdigit() else None
