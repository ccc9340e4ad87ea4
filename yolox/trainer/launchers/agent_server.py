"""The server that agents connect to: one connection to each, on which it reports what its ranks do."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Listener

from yolox.errors import UsageError
from yolox.processes.messages import Channel
from yolox.trainer.launchers.agent import limit_silence
from yolox.trainer.launchers.protocol import (
    AllEnded,
    FilePart,
    JoinInfo,
    Output,
    RankState,
    Registration,
    StartRequest,
    States,
)
from yolox.trainer.launchers.worker import RunDirectory

_START_SECONDS = 120.0
_NEWS_SECONDS = 15.0
_log = logging.getLogger(__name__)


class AgentConnection:
    """The connection to one agent.

    Args:
        channel: Open; the agent has registered.
        registration: What it said.
        directory: Where its files go.
    """

    def __init__(self, channel: Channel, registration: Registration, directory: RunDirectory) -> None:
        self.channel = channel
        self.registration = registration
        self.directory = directory
        self.states: dict[int, RankState] = {}
        self.ranks: tuple[int, ...] = ()
        self.heard_at = time.monotonic()
        self.closed = self.ended = False

    def start(self, request: StartRequest) -> None:
        """Tell the agent what to start, and listen to it from now on."""
        self.ranks = tuple(slot.rank for slot in request.setup.slots)
        with suppress(OSError):  # listening shows it
            self.channel.send(request)
        self.heard_at = time.monotonic()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        try:
            while not self.ended:
                message = self.channel.receive()
                self.heard_at = time.monotonic()
                if isinstance(message, AllEnded):
                    self.ended = True
                elif isinstance(message, States):
                    self.states.update(message.by_rank)
                elif isinstance(message, Output):
                    stream = sys.stdout if message.stream == "stdout" else sys.stderr
                    stream.write(message.text)
                    stream.flush()
                elif isinstance(message, FilePart):
                    self._store(message)
        except (EOFError, OSError, TypeError):  # the last: closed here in the middle of a call
            pass
        self.closed = True

    def _store(self, part: FilePart) -> None:
        path = self.directory.file(part.kind, part.rank)
        unfinished = path.with_suffix(f".{part.kind}")
        with suppress(FileNotFoundError):  # the run is over, and its directory cleared
            with unfinished.open("ab") as handle:
                handle.write(part.content)
            if not part.more:
                os.replace(unfinished, path)

    def hang_up(self) -> None:
        """End the connection: the agent kills what it started and ends."""
        with suppress(OSError):
            raw = socket.socket(fileno=os.dup(self.channel.connection.fileno()))
            with raw:
                raw.shutdown(socket.SHUT_RDWR)  # wakes the listening thread as well
        self.channel.close()


class AgentServer:
    """Where agents dial in.

    Args:
        host: Address to listen at.
        directory: Where what they send is put.
    """

    def __init__(self, host: str, directory: RunDirectory) -> None:
        key = os.urandom(32)
        self._directory = directory
        self._listener = Listener((host, 0), family="AF_INET", backlog=128, authkey=key)
        folder = os.getcwd()
        path = tuple(entry or folder for entry in sys.path)
        self.join_info = JoinInfo((host, self._listener.address[1]), key, path, folder)
        self._agents: dict[int, AgentConnection] = {}
        self._open = True
        self._thread = threading.Thread(target=self._answer, daemon=True)

    def __enter__(self) -> AgentServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._open = False
        with suppress(OSError), socket.create_connection(self.join_info.address, timeout=1):
            pass  # wakes the answering thread
        self._thread.join(2)
        self._listener.close()
        for agent in self._agents.values():
            agent.hang_up()

    def wait_for_agents(self, ranks: int, trouble: Callable[[], str | None]) -> list[AgentConnection]:
        """Return the connections once agents for all ranks have dialled in.

        Raises:
            UsageError: When that does not happen.
        """
        began = told = time.monotonic()
        while sum(agent.registration.ranks for agent in self._agents.values()) < ranks:
            reason, now = trouble(), time.monotonic()
            if reason is not None or now - began > _START_SECONDS:
                have = sum(agent.registration.ranks for agent in self._agents.values())
                host, port = self.join_info.address
                reason = reason or (
                    f"nothing came for {_START_SECONDS:.0f} s; its machines may be busy with other jobs, or cannot "
                    f"reach this one at {host}:{port}."
                )
                raise UsageError(f"the cluster gave {have} of {ranks} processes a place: {reason}")
            if now - told > _NEWS_SECONDS:
                _log.warning("waiting for the cluster to give %d processes a place", ranks)
                told = now
            time.sleep(0.05)
        return [self._agents[number] for number in sorted(self._agents)]

    def _answer(self) -> None:
        while self._open:
            try:
                connection = self._listener.accept()
                limit_silence(connection)
                channel = Channel(connection, (Registration, States, Output, FilePart, AllEnded))
                registration = channel.receive()
            except (OSError, EOFError, ValueError, AuthenticationError):
                continue  # not one of ours
            if registration.number in self._agents or not self._open:
                connection.close()  # an engine has started it a second time
            else:
                self._agents[registration.number] = AgentConnection(channel, registration, self._directory)
