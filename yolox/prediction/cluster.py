"""Images shared among the machines of a Ray or Spark cluster: same results, in the same order, as on one machine."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import chain
from pathlib import Path

from yolox.errors import UsageError, YoloxError
from yolox.prediction.cluster_work import Answer, Found, Work
from yolox.prediction.results import Result
from yolox.prediction.run import named_boxes
from yolox.prediction.sources import SharedImage, Sources

_SPARK_MASTER = re.compile(r"(spark|k8s)://.+|local(\[[\w*,]+\])?|yarn")
_RAY_ADDRESS = re.compile(r"ray://.+|[\w.-]+:\d+|auto")
ADDRESSES = "ray, auto, ray://HOST:10001, HOST:6379, spark, spark://HOST:7077, local[N], yarn or k8s://..."
"""What a cluster is called."""


def engine_of(address: str) -> tuple[str, str | None]:
    """Return ``ray`` or ``spark``, and the address for it: None for the cluster that is there or one of this machine.

    Raises:
        UsageError: When it is the address of neither.
    """
    if address in ("ray", "spark"):
        return address, None
    if _SPARK_MASTER.fullmatch(address):
        return "spark", address
    if _RAY_ADDRESS.fullmatch(address):
        return "ray", address
    raise UsageError(f"'{address}' is no address of a cluster; expected {ADDRESSES}.")


def predict_on_cluster(address: str, work: Work, pictures: Sources, class_names: tuple[str, ...]) -> Iterator[Result]:
    """Yield the result of each image, in their order, while the cluster is still at work on later ones.

    The model and the images must be found under their paths on every machine of the cluster, and this package must be
    installed there. Only boxes come back; `Result.image` is read on this machine when somebody asks for it.

    Args:
        address: One of `ADDRESSES`.
        work: What the processes do.
        pictures: Image files and tables.
        class_names: Of the model.

    Raises:
        UsageError: At once, for an address of no cluster and for sources that only this machine can read.
    """
    engine, there = engine_of(address)
    items = pictures.shared_items()
    answers = _answers(engine, there, _found_everywhere(work), items)
    return _results(answers, pictures, items, class_names)


def _found_everywhere(work: Work) -> Work:
    """Return the work with the path of its model from the root: processes of a cluster have other working folders."""
    model = work.model.model
    return replace(work, model=replace(work.model, model=str(Path(model).resolve()))) if Path(model).exists() else work


def _results(
    answers: Generator[Answer], pictures: Sources, items: Sequence[SharedImage], class_names: tuple[str, ...]
) -> Iterator[Result]:
    index = 0
    with closing(answers):  # an error in them leaves the cluster at once, not when somebody forgets the error
        for item, found in zip(items, chain.from_iterable(map(_checked, answers)), strict=True):
            if found is None:
                pictures.skip(item)
                continue
            yield Result(
                picture=item.read,
                size=found.size,
                boxes=named_boxes(found.detections, class_names),
                class_names=class_names,
                name=item.name,
                path=getattr(item, "path", None),
                index=index,
                elapsed_ms=found.elapsed_ms,
            )
            index += 1


def _answers(engine: str, address: str | None, work: Work, items: Sequence[SharedImage]) -> Generator[Answer]:
    if engine == "ray":
        from yolox.prediction.ray_data import answers_of_ray

        return answers_of_ray(address, work, items)
    from yolox.prediction.spark_jobs import answers_of_spark

    return answers_of_spark(address, work, items)


def _checked(answer: Answer) -> list[Found | None]:
    if isinstance(answer, YoloxError):
        raise answer
    return answer
