"""Start a fresh interpreter that runs one function, talk to it within time limits, and end it with all its children.

The main script of this process is never run again, so it works from a notebook and from a script without a main guard.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import parent_process, util
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import IO, Any

from yolox.errors import UsageError
from yolox.processes.messages import Channel
from yolox.temporary_folders import TemporaryFolder

# the empty entry is the working directory, where a file may have the name of any module
_BOOT = (
    f"import sys; sys.path = sys.argv[1].split({os.pathsep!r}) + [entry for entry in sys.path if entry]; "
    "from yolox.processes.inside import main; main()"
)
_ROOT = str(Path(__file__).resolve().parents[2])
_TAIL_BYTES = 1 << 16
_TAIL_LINES = 20
_KILL_SECONDS = 10.0
_TIDY_SECONDS = 1.0
_LONGEST_SOCKET_FOLDER = 107 - len("/pymp-xxxxxxxx/listener-xxxxxxxx")  # the kernel takes 107 bytes for a socket's path
_LONGEST_FOLDER = _LONGEST_SOCKET_FOLDER - len("/yolox-sockets-xxxxxxxx")
_OTHER_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
_AFTER_ITS_OWN = -101  # multiprocessing removes its folder, which lies in ours, at -100
_socket_folders: list[str | TemporaryFolder] = []  # the one in which multiprocessing makes its sockets


@dataclass(frozen=True)
class Program:
    """What a fresh interpreter is to run.

    Args:
        target: ``module:function``. The function gets the connection to this process, if there is one, and then the
            arguments; what it returns is the exit code.
        arguments: JSON values.
        python: The interpreter.
        environment: All variables of the process; None for those of this one.
        path: Folders to import from; None for those of this process, see `import_path`.
        cwd: Folder to work in; None for that of this process.
    """

    target: str
    arguments: Sequence[Any] = ()
    python: str = sys.executable
    environment: Mapping[str, str] | None = None
    path: Sequence[str] | None = None
    cwd: str | None = None


class ProcessFailure(Exception):  # noqa: N818 - it is expected that a process may end
    """A process that ended, or was ended, without an answer.

    Args:
        reason: One line.
        timed_out: Whether it was ended because its time was up.
        output: The last lines that it printed.
    """

    def __init__(self, reason: str, *, timed_out: bool = False, output: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.output = output
        self.timed_out = timed_out


def import_path(python: str = sys.executable) -> tuple[str, ...]:
    """Return where a process of ``python`` finds what this one can import.

    For another interpreter the folders of this one's own packages are left out: they hold libraries of another version.
    """
    here = dict.fromkeys([*(entry or os.getcwd() for entry in sys.path), _ROOT])
    if python == sys.executable:
        return tuple(here)
    return tuple(entry for entry in here if not entry.startswith((sys.prefix, sys.base_prefix)))


def start(program: Program, descriptor: int = -1, **streams: Any) -> subprocess.Popen[bytes]:
    """Start a process that leads a session of its own (Ctrl-C belongs to this process alone) and ends with this one.

    Args:
        program: What it runs.
        descriptor: File descriptor of its connection; -1 without one.
        streams: ``stdout`` and ``stderr`` of `subprocess.Popen`.

    Raises:
        OSError: When the interpreter cannot be started.
    """
    path = import_path(program.python) if program.path is None else program.path
    kernel = threading.current_thread() is threading.main_thread()
    facts = [str(os.getpid()), str(int(kernel)), str(descriptor), program.target]
    arguments = [*facts, json.dumps(list(program.arguments))]
    return subprocess.Popen(
        [program.python, "-c", _BOOT, os.pathsep.join(path), *arguments],
        pass_fds=() if descriptor < 0 else (descriptor,),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        env=dict(os.environ if program.environment is None else program.environment),
        cwd=program.cwd,
        **streams,
    )


class Process:
    """A started process, the channel to it, and its log. It ends with this object at the latest.

    Args:
        program: What it runs; its function gets a `multiprocessing.connection.Connection`.
        kinds: The messages that it may send.
        log: File that gets all that it prints; None for one without a name.

    Raises:
        OSError: When the interpreter cannot be started.
    """

    def __init__(self, program: Program, kinds: Iterable[type], log: Path | None = None) -> None:
        self.doing = "starting"
        self._log: IO[bytes] = log.open("ab+") if log is not None else tempfile.TemporaryFile()  # noqa: SIM115 - as long as it
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = start(program, theirs.fileno(), stdout=self._log, stderr=subprocess.STDOUT)
            except OSError:
                ours.close()
                self._log.close()
                raise
        self.channel = Channel(Connection(ours.detach()), kinds)
        self._end = weakref.finalize(self, _end, self._process, self.channel, self._log)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it runs no longer."""
        return self._process.poll() is not None

    def send(self, message: Any) -> None:
        """Send a message; where the process has died, the next `receive` says how."""
        with suppress(OSError):
            self.channel.send(message)

    def receive(self, seconds: float | None = None) -> Any:
        """Return its next message.

        Raises:
            ProcessFailure: When it has ended, or its time is up; it has been ended then.
        """
        try:
            return self.channel.receive(seconds)
        except TimeoutError:
            self._process.kill()
            reason, timed_out = f"stopped after {seconds or 0:.0f} s while {self.doing}", True
        except (EOFError, OSError):
            reason, timed_out = "", False
        lines = self._last_words()
        if not timed_out:
            reason = self._death(lines)
        self.stop()
        raise ProcessFailure(reason, timed_out=timed_out, output="\n".join(lines[-_TAIL_LINES:]))

    def stop(self, seconds: float = 0.0) -> None:
        """End the process and all that it has started; calling it again does no harm.

        Args:
            seconds: How long it may take to end by itself once its channel is closed.
        """
        if self._end.alive:
            self.channel.close()
            if seconds:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(seconds)
            self._end()

    def _last_words(self) -> list[str]:
        """Wait for its end, which is near, and return what it printed last."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_KILL_SECONDS)
        return [] if self._log.closed else _last_lines(self._log)

    def _death(self, lines: Sequence[str]) -> str:
        code = self._process.poll()
        if code is not None and code < 0:
            return f"killed by signal {-code} ({signal.Signals(-code).name}) while {self.doing}"
        said = lines[-1].strip() if lines else "it printed nothing"
        return f"{'closed its channel' if code is None else f'ended with code {code}'} while {self.doing}: {said}"


def wait_for_any(processes: Sequence[Process], seconds: float | None = None) -> list[Process]:
    """Return those of the processes that have sent a message or ended; wait until there is one."""
    by_connection = {process.channel.connection: process for process in processes}
    return [by_connection[ready] for ready in wait(list(by_connection), seconds) if isinstance(ready, Connection)]


def kill_all(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Kill processes and the children that stayed in their groups, and wait until the processes are gone.

    Of those that still run, the children get a moment to end by themselves: one of them is the process of Python that
    removes the semaphores of a killed one.
    """
    alive = [process for process in processes if process.poll() is None]
    for process in alive:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    _wait_until(lambda: all(process.poll() is not None for process in processes), _KILL_SECONDS)
    _wait_until(lambda: not any(_signal_group(process, 0) for process in alive), _TIDY_SECONDS)
    for process in processes:
        _signal_group(process, signal.SIGKILL)


def _signal_group(process: subprocess.Popen[bytes], number: int) -> bool:
    """Send a signal to what is in the group of a process; return whether there is anything."""
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _wait_until(done: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.01)


def tail(path: Path, lines: int = _TAIL_LINES) -> str:
    """Return the last lines of a text file; empty where there is none."""
    try:
        with path.open("rb") as handle:
            return "\n".join(_last_lines(handle)[-lines:])
    except OSError:
        return ""


def _last_lines(handle: IO[bytes]) -> list[str]:
    size = handle.seek(0, os.SEEK_END)
    handle.seek(max(0, size - _TAIL_BYTES))
    return [line for line in handle.read().decode("utf-8", errors="replace").splitlines() if line.strip()]


def _end(process: subprocess.Popen[bytes], channel: Channel, log: IO[bytes]) -> None:
    channel.close()
    log.close()
    kill_all([process])


def package_path(environment: Mapping[str, str]) -> str:
    """Return a PYTHONPATH with which a fresh interpreter finds this very package first."""
    return os.pathsep.join([_ROOT, *filter(None, [environment.get("PYTHONPATH")])])


def choose_socket_folder() -> None:
    """Have ``multiprocessing`` make its sockets in a folder that goes even where this process is killed.

    It acts on this process and those that it starts, and only before the first of them.

    Raises:
        UsageError: When there is no folder with a short name.
    """
    if _socket_folders or parent_process() is not None:  # which has chosen
        return
    folder = TemporaryFolder("sockets", short_temporary_folder(), at_exit=False)
    keep_sockets_in(str(folder.path))
    util.Finalize(None, folder.remove, exitpriority=_AFTER_ITS_OWN)
    _socket_folders.append(folder)


def short_temporary_folder() -> Path:
    """Return the folder for temporary files, or another one where its name is too long for a socket in it.

    Raises:
        UsageError: When there is no folder with a short name.
    """
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) <= _LONGEST_FOLDER:
        return Path(folder)
    for other in _OTHER_FOLDERS:
        if os.access(other, os.W_OK | os.X_OK):
            return Path(other)
    raise UsageError(
        f"TMPDIR is '{folder}', {len(os.fsencode(folder))} bytes long; sockets between processes need a folder of at "
        f"most {_LONGEST_FOLDER}. Set TMPDIR to a shorter path."
    )


def keep_sockets_in(folder: str) -> None:
    """Have ``multiprocessing`` make its sockets in a folder, unless its name is too long for them.

    It acts on this process and those that it starts, and only the first time.
    """
    if len(os.fsencode(folder)) > _LONGEST_SOCKET_FOLDER:
        return
    before = tempfile.tempdir
    tempfile.tempdir = folder
    try:
        util.get_temp_dir()  # it remembers the folder that it makes
    finally:
        tempfile.tempdir = before
    _socket_folders.append(folder)
