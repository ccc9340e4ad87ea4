"""Ray Data: actors that hold the model map batches of a data set of images."""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from yolox.errors import MissingDependencyError, YoloxError
from yolox.prediction.cluster_work import Answer, Work, split
from yolox.processes.ray_cluster import ray_cluster

_STORE_BYTES = 200 * 2**20  # of a Ray of this machine: names of images and boxes
_ROWS, _SECONDS = 64, 1.0  # how many answers are fetched at a time, and how long they are waited for


def answers_of_ray(address: str | None, work: Work, items: Sequence[Any]) -> Generator[Answer]:
    """Yield the answers of all parts of ``items``, in their order.

    The data set is driven by an actor of the cluster, since Ray Data cannot be driven through a Ray Client.

    Args:
        address: See `ray_cluster`.
        work: Predicts one part.
        items: The images.

    Raises:
        UsageError: When the cluster cannot be joined.
        YoloxError: When Ray gives up.
    """
    with ray_cluster(address, _STORE_BYTES) as ray:
        _check_ray_data()
        cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
        parts = [pickle.dumps(part) for part in split(items, cores, work.batch_size)]
        driver = ray.remote(_Driver).options(num_cpus=0).remote(work, parts, min(cores, len(parts)))
        del parts
        try:
            coming = driver.following.remote()
            while rows := ray.get(coming):
                coming = driver.following.remote()
                for row in rows:
                    yield pickle.loads(row)
        except ray.exceptions.RayError as error:
            raise YoloxError(f"Ray gave up: {_reason(error)}") from error
        finally:
            if ray.is_initialized():
                ray.kill(driver)


class _Driver:
    """An actor that runs the data set and hands its rows on."""

    def __init__(self, work: Work, parts: list[bytes], actors: int) -> None:
        import ray.data

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        given = ray.data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts))
        answered = given.map_batches(
            _Mapper,
            fn_constructor_args=(work,),
            batch_size=1,
            num_cpus=work.threads,
            compute=ray.data.ActorPoolStrategy(min_size=1, initial_size=actors, max_size=actors),
        )
        self._rows = iter(answered.iter_rows())

    def following(self) -> list[bytes]:
        """Return the next rows, none at the end: what arrives within a second, but one at least."""
        rows: list[bytes] = []
        began = time.monotonic()
        for row in self._rows:
            rows.append(row["answer"])
            if len(rows) == _ROWS or time.monotonic() - began > _SECONDS:
                break
        return rows


class _Mapper:
    """An actor that predicts."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        answers = [pickle.dumps(self._work(pickle.loads(part))) for part in batch["part"]]
        return {"answer": np.array(answers, dtype=object)}


def _check_ray_data() -> None:
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(error.name or "ray[data]", "pip install 'yolox-cpu[ray]'") from error


def _reason(error: Exception) -> str:
    """Return the last line of the innermost cause: Ray repeats the stacks of all processes."""
    lines = [line for line in str(getattr(error, "cause", None) or error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
