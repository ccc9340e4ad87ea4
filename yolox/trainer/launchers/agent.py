"""Our representative on a machine of a cluster: starts workers there as they are started here, and reports on them.

It dials the supervisor, says what its machine is, and is told which ranks to start. Whatever engine carries it there
(Ray, Spark) needs to do no more than call `serve_node`.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Client, Connection
from pathlib import Path

from yolox.cpu.machine import read_machine
from yolox.processes.messages import Channel
from yolox.processes.start import import_path
from yolox.temporary_folders import TemporaryFolder
from yolox.trainer.launchers.base import RankFile
from yolox.trainer.launchers.heartbeat import read_heartbeat
from yolox.trainer.launchers.popen import WORKER, start_worker
from yolox.trainer.launchers.protocol import (
    AllEnded,
    FilePart,
    JoinInfo,
    Output,
    RankState,
    Registration,
    SendSignal,
    StartRequest,
    States,
)
from yolox.trainer.launchers.supervise import LocalWorkerGroup
from yolox.trainer.launchers.worker import RunDirectory

_ROUND_SECONDS = 0.1
_REPORT_SECONDS = 0.5
_STACK_SECONDS = 0.2
_UNREACHABLE_MS = 20_000  # the supervisor's machine fell off the network without a word
_PART_BYTES = 1 << 20
_SIOCGIFADDR = 0x8915


def serve_node(join_info: JoinInfo, number: int, label: str, ranks: int, threads: int | None) -> None:
    """Start and watch the ranks that the supervisor names, until they have ended or it hangs up.

    Args:
        join_info: Where the supervisor is.
        number: Which of the agents this is.
        label: This machine, as the user knows it.
        ranks: Number of processes.
        threads: As in `Registration`.

    Raises:
        OSError: When the supervisor is out of reach, or a worker cannot be started.
    """
    try:
        supervisor = Client(join_info.address, authkey=join_info.key)
    except (ConnectionError, EOFError):
        return  # the run is over: an engine that tries again does so for nobody
    except OSError as error:
        host, port = join_info.address
        raise OSError(f"{label} cannot reach the machine where the run was started, {host}:{port}: {error}") from error
    limit_silence(supervisor)
    with supervisor:
        channel = Channel(supervisor, (StartRequest, SendSignal))
        channel.send(Registration(number, label, machine_identity(), read_machine(), ranks, threads))
        try:
            _Watch(channel, channel.receive(), join_info).run()
        except (EOFError, ConnectionError, TimeoutError):
            return


def machine_identity() -> str:
    """Return what is the same for two processes exactly if they share a machine (and a container)."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{socket.gethostname()} {boot}"
    return socket.gethostname()


class _Stream:
    """A standard stream of rank 0, carried to the supervisor."""

    def __init__(self, supervisor: Channel, name: str) -> None:
        self._supervisor = supervisor
        self._name = name

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._supervisor.send(Output(self._name, text))

    def flush(self) -> None:
        pass


class _Watch:
    """The workers of one agent."""

    def __init__(self, supervisor: Channel, request: StartRequest, join_info: JoinInfo) -> None:
        self.supervisor = supervisor
        self.request = request
        there = [entry for entry in join_info.path if Path(entry).exists()]
        path = tuple(dict.fromkeys([*there, *import_path()]))
        folder = join_info.folder if Path(join_info.folder).is_dir() else None
        self.program = replace(WORKER, path=path, cwd=folder)
        self.folder = TemporaryFolder("run")
        self.directory = RunDirectory(self.folder.path)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.group = LocalWorkerGroup(self.processes, self.directory)
        self._sent: set[tuple[RankFile, int]] = set()

    def run(self) -> None:
        try:
            self._start()
            reported = 0.0
            while True:
                with suppress(TimeoutError):
                    self._signal(self.supervisor.receive(_ROUND_SECONDS))
                codes = [process.poll() for process in self.processes]  # before the files: they come first
                self._send_files(codes)
                now = time.monotonic()
                if now - reported > _REPORT_SECONDS or None not in codes:
                    self._report(codes)
                    reported = now
                if None not in codes:
                    self.supervisor.send(AllEnded())
                    while True:  # until the supervisor hangs up
                        self.supervisor.receive()
        finally:
            self.group.kill()
            self.folder.remove()

    def _start(self) -> None:
        request = self.request
        self.directory.payload.write_bytes(request.payload)
        self.directory.write_setup(request.setup)
        network = self._network()
        streams = (_Stream(self.supervisor, "stdout"), _Stream(self.supervisor, "stderr"))
        for slot in request.setup.slots:
            self.processes.append(start_worker(self.directory, slot, self.program, network, streams))

    def _network(self) -> dict[str, str]:
        """Return variables with which the ranks meet at the supervisor's store and talk over its network."""
        network = {"TORCHELASTIC_USE_AGENT_STORE": "True"}
        if "GLOO_SOCKET_IFNAME" in os.environ:
            return network
        own = _socket_of(self.supervisor.connection)
        with own:
            name = "lo" if self.request.one_machine else interface_of(own.getsockname()[0])
        return {**network, "GLOO_SOCKET_IFNAME": name} if name else network

    def _signal(self, wish: SendSignal) -> None:
        number = next(number for number, slot in enumerate(self.request.setup.slots) if slot.rank == wish.rank)
        self.group.send(number, wish.signum)
        if wish.signum == signal.SIGUSR1:
            time.sleep(_STACK_SECONDS)
            self._send_file("stacks", wish.rank)

    def _report(self, codes: Sequence[int | None]) -> None:
        cpu_activities = self.group.cpu_activities()
        states = {}
        for number, slot in enumerate(self.request.setup.slots):
            beats, phase = read_heartbeat(self.directory.file("heartbeat", slot.rank))
            states[slot.rank] = RankState(beats, phase, cpu_activities[number], codes[number])
        self.supervisor.send(States(states))

    def _send_files(self, codes: Sequence[int | None]) -> None:
        for slot, code in zip(self.request.setup.slots, codes, strict=True):
            ended: tuple[RankFile, ...] = () if code is None else ("stacks", "output")
            for kind in (*ended, "result", "failure"):
                if (kind, slot.rank) not in self._sent and self.directory.file(kind, slot.rank).exists():
                    self._sent.add((kind, slot.rank))
                    self._send_file(kind, slot.rank)

    def _send_file(self, kind: RankFile, rank: int) -> None:
        with suppress(FileNotFoundError), self.directory.file(kind, rank).open("rb") as handle:
            more = True
            while more:  # in parts: a long message would look like silence
                part = handle.read(_PART_BYTES)
                more = len(part) == _PART_BYTES
                self.supervisor.send(FilePart(kind, rank, part, more))


def interface_of(address: str) -> str | None:
    """Return the network interface that has an IPv4 address, None where that cannot be found out."""
    try:
        import fcntl

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            for _, name in socket.if_nameindex():
                with suppress(OSError):  # an interface without an address
                    request = struct.pack("256s", name.encode()[:15])
                    answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
                    if socket.inet_ntoa(answer[20:24]) == address:
                        return name
    except (ImportError, OSError):
        pass
    return None


def _socket_of(connection: Connection) -> socket.socket:
    return socket.socket(fileno=os.dup(connection.fileno()))


def limit_silence(connection: Connection) -> None:
    """Have sending fail when the other side no longer answers."""
    with suppress(OSError, AttributeError), _socket_of(connection) as own:
        own.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREACHABLE_MS)
