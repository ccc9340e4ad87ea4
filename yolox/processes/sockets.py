"""The folder of Python's own sockets between processes, whose paths the kernel limits to 107 bytes."""

from __future__ import annotations

import os
import tempfile
from multiprocessing import util

from yolox.errors import UsageError

_LONGEST = 107 - len("/pymp-xxxxxxxx/listener-xxxxxxxx")
_OTHERS = ("/tmp", "/var/tmp", "/dev/shm")


def keep_socket_paths_short() -> None:
    """Have ``multiprocessing`` make its sockets elsewhere where the folder for temporary files has too long a name.

    It acts on this process and those that it starts, and only before the first of them.

    Raises:
        UsageError: When there is no folder with a short name.
    """
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) <= _LONGEST:
        return
    for other in _OTHERS:
        if os.access(other, os.W_OK | os.X_OK):
            tempfile.tempdir = other
            try:
                util.get_temp_dir()  # it remembers the folder that it makes
            finally:
                tempfile.tempdir = folder
            return
    raise UsageError(
        f"TMPDIR is '{folder}', {len(os.fsencode(folder))} bytes long; sockets between processes need a folder of at "
        f"most {_LONGEST}. Set TMPDIR to a shorter path."
    )
