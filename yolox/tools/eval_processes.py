"""The images of an evaluation shared among several processes; the AP is that of one process."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from yolox.errors import YoloxError
from yolox.processes.messages import Channel
from yolox.processes.start import Process, ProcessFailure, Program, wait_for_any

if TYPE_CHECKING:
    from yolox.evaluation.loop import Share


@dataclass(frozen=True)
class Progress:
    """So many images of this process's share are done."""

    done: int


def predict_in_processes(words: Sequence[str], world: int, on_progress: Callable[[int], None]) -> list[Share]:
    """Return what ``world`` processes found, each with its share of the cores and of the images.

    Args:
        words: The command line of the evaluation.
        world: Number of processes.
        on_progress: Called with the number of images done by all of them.

    Raises:
        YoloxError: When a process fails.
    """
    from yolox.cpu.machine import read_machine
    from yolox.cpu.threads import thread_environment
    from yolox.evaluation.loop import Share

    cores = read_machine().cores
    processes = []
    for rank in range(world):
        own = cores[rank * len(cores) // world : (rank + 1) * len(cores) // world] or (cores[rank % len(cores)],)
        cpus = [cpu.number for core in own for cpu in core]
        environment = thread_environment(os.environ, len(own), bound=True)
        arguments = [list(words), rank, world, cpus]
        program = Program("yolox.tools.eval_processes:work", arguments, environment=environment)
        processes.append(Process(program, [Progress, Share]))
    try:
        return _collect(processes, on_progress)
    finally:
        for process in processes:
            process.stop()


def _collect(processes: list[Process], on_progress: Callable[[int], None]) -> list[Share]:
    done = dict.fromkeys(range(len(processes)), 0)
    shares: dict[int, Share] = {}
    while len(shares) < len(processes):
        for process in wait_for_any([process for rank, process in enumerate(processes) if rank not in shares]):
            rank = processes.index(process)
            try:
                message = process.receive()
            except ProcessFailure as failure:
                raise YoloxError(f"evaluation process {rank} failed: {failure.reason}\n{failure.output}") from failure
            if isinstance(message, Progress):
                done[rank] = message.done
                on_progress(sum(done.values()))
            else:
                shares[rank] = message
    return [shares[rank] for rank in range(len(processes))]


def work(connection: Connection, words: list[str], rank: int, world: int, cpus: list[int]) -> int:
    """Evaluate one share and send it; this is the main function of a process."""
    from yolox.cpu.threads import bind_process

    bind_process(cpus)
    import torch

    from yolox.evaluation.loop import predict_share
    from yolox.tools.eval import build_parser, load_subject, open_loader

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    channel = Channel(connection, [])
    args = build_parser().parse(words)
    subject = load_subject(args)
    loader = open_loader(subject, args.batch_size, (rank, world))
    settings = subject.experiment.eval
    share = predict_share(
        subject.predict,
        loader,
        confidence=settings.test_conf,
        nms_iou=settings.nmsthre,
        multi_label=args.multi_label,
        on_batch=lambda done: channel.send(Progress(done)),
    )
    loader.close()
    channel.send(share)
    return 0
