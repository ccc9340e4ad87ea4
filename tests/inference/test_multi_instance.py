"""Several processes that run one model: order, cores, failures, and what comes after them."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from yolox.errors import ModelFileError, UsageError, YoloxError
from yolox.inference import InferenceOptimizer
from yolox.inference.artifacts.manifest import read_manifest
from yolox.inference.artifacts.model import AcceleratedModel
from yolox.inference.backends.ipex import RemoteRunner
from yolox.inference.multi_instance import MultiInstance

pytestmark = pytest.mark.processes
CPU = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
SAMPLE = np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)


def batches(count: int) -> list[torch.Tensor]:
    return [torch.from_numpy(SAMPLE) + number for number in range(count)]


@pytest.fixture(scope="module")
def model() -> AcceleratedModel:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    return InferenceOptimizer.trace(network, torch.from_numpy(SAMPLE), accelerator="jit", thread_num=1)


@pytest.fixture(scope="module")
def shared(model: AcceleratedModel) -> Iterator[MultiInstance]:
    with MultiInstance(model, 2) as instances:
        yield instances


def children() -> list[int]:
    """Process ids of the children of this process that run a model."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid() and "runner_process" in (entry / "cmdline").read_text():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def check(instances: MultiInstance, model: AcceleratedModel, count: int = 5) -> None:
    outputs = instances(batches(count))
    assert len(outputs) == count
    for batch, output in zip(batches(count), outputs, strict=True):
        torch.testing.assert_close(output, model(batch), rtol=1e-4, atol=1e-4)


def test_outputs_come_in_order(shared: MultiInstance, model: AcceleratedModel) -> None:
    check(shared, model)
    assert shared([]) == []


@pytest.mark.parametrize("position", [0, 2])
def test_after_an_error_the_next_call_returns_its_own_outputs(
    shared: MultiInstance, model: AcceleratedModel, position: int
) -> None:
    wrong = [batch * 100 for batch in batches(6)]
    wrong[position] = torch.ones(1, 2)
    with pytest.raises(YoloxError, match=f"failed on batch {position}"):
        shared(wrong)
    check(shared, model)


def test_an_iterable_that_raises_leaves_nothing_behind(shared: MultiInstance, model: AcceleratedModel) -> None:
    def broken() -> Iterator[torch.Tensor]:
        yield torch.from_numpy(SAMPLE) * 100
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        shared(broken())
    check(shared, model)


def test_calls_of_several_threads_do_not_mix(shared: MultiInstance, model: AcceleratedModel) -> None:
    errors: list[BaseException] = []

    def call(count: int) -> None:
        try:
            check(shared, model, count)
        except BaseException as error:  # noqa: BLE001 - shown below
            errors.append(error)

    threads = [threading.Thread(target=call, args=(count,)) for count in (3, 4, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_a_closed_one_says_so(model: AcceleratedModel) -> None:
    before = set(children())
    instances = MultiInstance(model, 1, cpu_for_each_process=[[CPU]])
    (process,) = set(children()) - before
    assert os.sched_getaffinity(process) == {CPU}
    check(instances, model, 1)
    instances.close()
    instances.close()
    assert set(children()) == before
    with pytest.raises(UsageError, match="closed"):
        instances(batches(1))


def test_a_process_that_dies_is_named_and_all_are_ended(model: AcceleratedModel) -> None:
    before = set(children())
    instances = MultiInstance(model, 2)
    os.kill(min(set(children()) - before), signal.SIGKILL)
    with pytest.raises(YoloxError, match=r"killed by signal 9 .SIGKILL. while running the model"):
        instances(batches(4))
    assert set(children()) == before
    with pytest.raises(UsageError, match="closed"):
        instances(batches(1))


def test_a_model_that_cannot_be_loaded_is_refused_at_once(model: AcceleratedModel, tmp_path: Path) -> None:
    InferenceOptimizer.save(model, tmp_path / "saved")
    loaded = InferenceOptimizer.load(tmp_path / "saved", trust=True)
    for file in (tmp_path / "saved").iterdir():
        if file.name != "manifest.json":
            file.write_bytes(b"damaged")
    with pytest.raises(ModelFileError, match="checksum"):
        MultiInstance(loaded, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_processes": 0}, "num_processes is 0"),
        ({"num_processes": 2, "cores_per_process": 500}, "2 processes of 500 cores"),
        ({"num_processes": 1, "cores_per_process": 0}, "1 processes of 0 cores"),
        ({"num_processes": 2, "cpu_for_each_process": [[0]]}, "cores for 1 processes"),
        ({"num_processes": 1, "cpu_for_each_process": [[99999]]}, "gives rank 0 the hardware threads .99999."),
    ],
)
def test_wrong_numbers_are_refused(model: AcceleratedModel, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        InferenceOptimizer.to_multi_instance(model, **arguments)


def test_a_runner_of_another_interpreter_answers_like_the_model(model: AcceleratedModel, tmp_path: Path) -> None:
    InferenceOptimizer.save(model, tmp_path / "saved")
    remote = RemoteRunner(sys.executable, tmp_path / "saved", read_manifest(tmp_path / "saved"))
    (output,) = remote(torch.from_numpy(SAMPLE))
    torch.testing.assert_close(output, model(torch.from_numpy(SAMPLE)), rtol=1e-4, atol=1e-4)
    (array,) = remote(SAMPLE)
    assert isinstance(array, np.ndarray)
    with pytest.raises(YoloxError, match="the model failed in"):
        remote(np.ones((1, 2), np.float32))
    assert remote.configured(remote.settings)(SAMPLE)[0].shape == (2, 5)
    remote.save(tmp_path)
    written = {file.name for file in tmp_path.iterdir()}
    assert {file.name for file in (tmp_path / "saved").iterdir()} - {"manifest.json"} <= written
