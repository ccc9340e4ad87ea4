"""Bytes that processes share: a file mapped into memory, on disk or in memory alone."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class MappedFile:
    """A mapped file; a process that gets a copy of this object maps the same bytes.

    Without a path it lies in memory, independent of the size of ``/dev/shm``, and is gone with the process that made
    it, however that ends.

    Args:
        num_bytes: Its length.
        path: An existing file of that length on disk.
    """

    def __init__(self, num_bytes: int, path: str | None = None) -> None:
        self.num_bytes = num_bytes
        self._descriptor: int | None = None
        self._owner = os.getpid()
        self._bytes: NDArray[np.uint8] | None = None
        self._path = path or self._make_memory_file()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bytes": None, "_descriptor": None}

    def __del__(self) -> None:
        descriptor = getattr(self, "_descriptor", None)
        if descriptor is not None:
            os.close(descriptor)
            if os.getpid() == self._owner and not self._path.startswith("/proc/"):
                Path(self._path).unlink(missing_ok=True)

    @property
    def bytes(self) -> NDArray[np.uint8]:
        """The bytes, mapped when first asked for."""
        if self._bytes is None:
            self._bytes = np.asarray(np.memmap(self._path, np.uint8, "r+", shape=(self.num_bytes,)))
        return self._bytes

    def _make_memory_file(self) -> str:
        if hasattr(os, "memfd_create"):
            self._descriptor = os.memfd_create("yolox-images")
            path = f"/proc/{os.getpid()}/fd/{self._descriptor}"
        else:
            self._descriptor, path = tempfile.mkstemp(prefix="yolox-images-")
        os.ftruncate(self._descriptor, self.num_bytes)
        return path
