"""The published weights by name: downloaded once, checked, kept in the cache folder.

Addresses: the files of release 0.1.1rc0 of Megvii-BaseDetection/YOLOX (Apache-2.0), trained on COCO. A mirror is named
by ``YOLOX_WEIGHTS_URL`` (the folder that holds the files). Other digests than those known here come from the file that
``YOLOX_WEIGHTS_SHA256`` names, in the form of ``sha256sum``; a digest that is known nowhere else from the mirror's own
``SHA256SUMS``.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from yolox.downloads import DownloadError, download, read_address
from yolox.errors import DataError, ModelFileError, UsageError
from yolox.experiments import canonical_name
from yolox.files import cache_root, make_output_dir, sha256_of

_log = logging.getLogger(__name__)

RELEASE = "https://github.com/Megvii-BaseDetection/YOLOX/releases/download/0.1.1rc0"
PUBLISHED: Mapping[str, tuple[str, str | None]] = {
    "yolox_nano": ("yolox_nano.pth", "cd28f55fbbc1829f99d9ac9b38a16d259a22889739c8728ea877610201feff7b"),
    "yolox_tiny": ("yolox_tiny.pth", "9de513de589ac98bb92d3bca53b5af7b9acfa9b0bacb831f7999d0f7afaee8f0"),
    "yolox_s": ("yolox_s.pth", "f55ded7181e1b0c13285c56e7790b8f0e8f8db590fe4edb37f0b7f345c913a30"),
    "yolox_m": ("yolox_m.pth", "60076992b32da82951c90cfa7bd6ab70eba9eda243e08b940a396f60ac2d19b6"),
    "yolox_l": ("yolox_l.pth", "1e6b7fa6240375370b2a8a8eab9066b3cdd43fd1d0bfa8d2027fd3a51def2917"),
    "yolox_x": ("yolox_x.pth", "5652330b6ae860043f091b8f550a60c10e1129f416edfdb65c259be6caf355cf"),
    "yolov3": ("yolox_darknet.pth", None),
}
"""File and SHA-256 of each model. Each digest was found, equal, in at least two independent projects that pin it; none
was for ``yolov3``, so its structure alone is checked unless a list of digests names it."""
MIRROR, DIGESTS = "YOLOX_WEIGHTS_URL", "YOLOX_WEIGHTS_SHA256"
LARGEST_LIST = 1_000_000


def weights_folder() -> Path:
    """Return the folder where published weights are kept; a file placed there by hand is used without a download."""
    return cache_root() / "weights"


def find_checkpoint(checkpoint: str | Path) -> Path:
    """Return the file of a checkpoint: the path itself, or the published weights of that name, downloaded if need be.

    An existing file always wins over a name, and a path with a folder or an ending is never a name.

    Raises:
        DownloadError: When the weights cannot be downloaded.
        ModelFileError: When the downloaded file is not the published one.
    """
    path = Path(checkpoint)
    if path.exists() or path.suffix or len(path.parts) != 1:
        return path
    try:
        name = canonical_name(str(checkpoint))
    except UsageError:
        return path
    file, _ = PUBLISHED[name]
    target = weights_folder() / file
    return target if target.is_file() else _fetch(name, target)


def _fetch(name: str, target: Path) -> Path:
    """Download under a lock, so that several processes that ask at once download once."""
    from filelock import FileLock

    make_output_dir(target.parent)
    base = os.environ.get(MIRROR) or RELEASE
    address = f"{base.rstrip('/')}/{target.name}"
    with FileLock(target.with_name(target.name + ".lock")):
        if target.is_file():  # somebody else has just done it
            return target
        if not address.lower().startswith(("http://", "https://")):
            raise UsageError(f"{MIRROR} is '{base}'; expected an address that starts with http:// or https://.")
        _log.info("downloading %s to %s", address, target)
        digest = _digest(name, base)
        try:
            download(address, target, check=lambda part: _check(part, address, digest), progress=_progress())
        except DownloadError as error:
            raise DownloadError(f"{error} {_by_hand(target)}") from error
    return target


def _by_hand(target: Path) -> str:
    return (
        f"Without a connection, get '{target.name}' from {RELEASE} elsewhere and place it at '{target}', or give its "
        f"path with -c. {MIRROR} names a mirror; https_proxy a proxy."
    )


def _digest(name: str, base: str) -> str | None:
    """Return the SHA-256 to expect: that of the user's list, else the known one, else that of the mirror's list."""
    file, known = PUBLISHED[name]
    listed = os.environ.get(DIGESTS)
    if listed:
        try:
            text = Path(listed).read_text(encoding="ascii", errors="replace")
        except OSError as error:
            raise UsageError(f"{DIGESTS} names '{listed}', which cannot be read: {error.strerror}.") from error
        return _listed(text, file) or known
    if known is not None or base == RELEASE:
        return known
    try:
        return _listed(read_address(f"{base.rstrip('/')}/SHA256SUMS", LARGEST_LIST).decode("ascii", "replace"), file)
    except DataError:
        return None


def _listed(text: str, file: str) -> str | None:
    """Return the digest of ``file`` in lines such as ``<64 digits>  yolox_s.pth``."""
    for line in text.splitlines():
        digest, _, name = line.strip().partition(" ")
        if Path(name.strip().lstrip("*")).name == file and len(digest) == 64:
            return digest.lower()
    return None


def _check(part: Path, address: str, digest: str | None) -> None:
    """Refuse a file that is not the published one.

    Raises:
        ModelFileError: When its digest or its form is another one.
    """
    if digest is not None:
        found = sha256_of(part)
        if found != digest:
            raise ModelFileError(
                f"what '{address}' gave has the SHA-256 {found}, expected {digest}; it is not used. Check the mirror, "
                f"the proxy and {DIGESTS}."
            )
        return
    with part.open("rb") as file:
        start = file.read(2)
    if start != b"PK" and start[:1] != b"\x80":  # names and shapes of its weights are checked whenever it is loaded
        raise ModelFileError(f"what '{address}' gave is no file of PyTorch; it is not used. Check the mirror.")


def _progress() -> Callable[[int, int | None], None]:
    """Return a callback that keeps one line of a terminal up to date; elsewhere the log says enough."""
    live = sys.stderr.isatty()

    def show(done: int, total: int | None) -> None:
        if live:
            of = f" of {total / 1e6:.1f}" if total else ""
            end = "\n" if done == total else ""
            sys.stderr.write(f"\r{done / 1e6:.1f}{of} MB {end}")
            sys.stderr.flush()

    return show
