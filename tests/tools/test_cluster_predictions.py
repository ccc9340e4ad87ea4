"""`predict --cluster`: what Ray and Spark find is what one machine finds."""

from __future__ import annotations

import json
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from loopback import free_port, listening
from self_labelled import write_checkpoint

from yolox import YOLOX
from yolox.errors import ModelFileError, UsageError
from yolox.prediction.cluster import engine_of, predict_on_cluster
from yolox.prediction.cluster_work import ClusterModel, Work, split
from yolox.prediction.run import Thresholds
from yolox.prediction.sources import Sources
from yolox.processes.ray_cluster import ray_cluster as join_ray
from yolox.processes.spark_master import check_spark_master
from yolox.tools.command import main
from yolox.tools.run_tool import run_tool

processes = pytest.mark.processes
UNREADABLE = "4 broken.png"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "mine.pth")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("in")
    rng = np.random.default_rng(0)
    for number in range(9):
        image = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(place / f"{number} ü.png"), cv2.resize(image, (64 + number, 48)))
    (place / UNREADABLE).write_bytes(b"no image")
    return place


@pytest.fixture(params=["ray", "spark"])
def cluster(request: pytest.FixtureRequest) -> str:
    if request.param.startswith("ray"):
        nodes = request.getfixturevalue("ray_cluster")
        port = request.getfixturevalue("ray_client_port")
        return str(nodes.address) if request.param == "ray" else f"ray://127.0.0.1:{port}"
    request.getfixturevalue("spark_context")
    return "spark"


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@processes
@pytest.mark.parametrize("cluster", ["ray", "ray://", "spark"], indirect=True)
def test_the_files_are_those_of_one_machine(
    cluster: str, checkpoint: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(folder), "-c", str(checkpoint), "--conf", "0.5", "-b", "2", "--json"]
    words += ["--formats", "coco", "yolo", "csv", "pictures", "crops", "--output_dir"]
    told = []
    for name, extra in (("one", []), ("all", ["--cluster", cluster])):
        assert main([*words, str(tmp_path / name), *extra]) == 0
        out, err = capsys.readouterr()
        told.append([json.loads(line) for line in out.splitlines()])  # nothing else is on stdout
        assert f"skipped: '{folder / UNREADABLE}'" in err
        assert "1 of 10 images were skipped" in err
    assert [line["index"] for line in told[1]] == list(range(9))
    for here, there in zip(*told, strict=True):
        assert [thing["name"] for thing in here["objects"]] == [thing["name"] for thing in there["objects"]]
        assert [here[key] for key in ("image", "height", "width")] == [
            there[key] for key in ("image", "height", "width")
        ]
    assert sum(len(line["objects"]) for line in told[0]) > 9
    assert files(tmp_path / "one") == files(tmp_path / "all")
    contents = [json.loads((tmp_path / name / "predictions.json").read_text()) for name in ("one", "all")]
    assert contents[0]["images"] == contents[1]["images"]
    assert contents[0]["categories"] == contents[1]["categories"]
    for here, there in zip(*(content["annotations"] for content in contents), strict=True):
        assert here.pop("bbox") == pytest.approx(there.pop("bbox"), abs=1e-2)
        assert here == pytest.approx(there, rel=1e-3)


@processes
def test_a_model_that_the_workers_cannot_read(cluster: str, folder: Path, tmp_path: Path) -> None:
    work = Work(ClusterModel(str(tmp_path / "only here.pth")), Thresholds(), 1)
    began = time.monotonic()
    with pytest.raises(ModelFileError, match=r"only here\.pth"):
        list(predict_on_cluster(cluster, work, Sources(folder), ("apple",)))
    assert time.monotonic() - began < 120, "it is not tried again and again"


@pytest.mark.parametrize(("library", "address"), [("ray", "ray"), ("pyspark", "local[2]")])
def test_a_missing_extra(
    library: str,
    address: str,
    checkpoint: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    assert main(["predict", str(folder), "-c", str(checkpoint), "--cluster", address]) == 5
    extra = library.removeprefix("py")
    assert f"{library} is not installed. Install it with: pip install 'yolox-cpu[{extra}]'" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "ray://nobody.invalid:{}"])
def test_a_ray_cluster_that_is_not_there(
    address: str, checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray")
    address = address.format(free_port())
    assert main(["predict", str(folder), "-c", str(checkpoint), "--cluster", address]) == 2
    error = capsys.readouterr().err
    assert f"the Ray cluster at '{address}' cannot be joined" in error
    assert "Is it running there?" in error  # said by us: Ray waits for half a minute, or for many


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["silent", "another protocol"])
@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "auto"])
def test_something_else_is_where_ray_is_expected(
    address: str, answer: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr("yolox.processes.addresses.CONNECT_SECONDS", 1.0)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with listening(answer) as port:
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{port}\n")
        with pytest.raises(UsageError, match="does not answer as Ray does"), join_ray(address.format(port)):
            pass


@processes
def test_the_ports_of_ray_client_and_of_the_cluster_are_told_apart(ray_cluster: Any, ray_client_port: int) -> None:
    assert ray_cluster.address
    with pytest.raises(UsageError, match="write ray://"), join_ray(f"127.0.0.1:{ray_client_port}"):
        pass
    with pytest.raises(UsageError, match="no Ray Client server answers"), join_ray(f"ray://{ray_cluster.address}"):
        pass


@pytest.mark.parametrize("address", ["ray://head", "127.0.0.1:none", "head:70000", f"{'x' * 70}.cluster:6379"])
def test_what_can_be_no_address_of_a_ray_cluster(address: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(UsageError, match=f"'{address}'.*(HOST:PORT|running there)"), join_ray(address):
        pass


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        (None, "Connection refused"),
        (b"", "does not answer as Spark does"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not answer as Spark does"),
    ],
    ids=["nobody", "silent", "another protocol"],
)
def test_no_spark_master_is_there(answer: bytes | None, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked before a context is made; the command would take the active context of the tests."""
    monkeypatch.setattr("yolox.processes.addresses.CONNECT_SECONDS", 1.0)
    with nullcontext(free_port()) if answer is None else listening(answer) as port:
        address = f"spark://127.0.0.1:{port}"
        with pytest.raises(UsageError, match=f"the Spark cluster at '{address}' cannot be joined: .*{part}"):
            check_spark_master(address)


def test_sigterm_is_ours_again_when_it_arrives_while_ray_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")

    def init(**_: object) -> None:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))  # as Ray does
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def join() -> None:
        with join_ray():
            pass

    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # it may be that of a cluster, which would end
    try:
        assert run_tool(join) == 143
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("ray", ("ray", None)),
        ("auto", ("ray", "auto")),
        ("ray://10.0.0.1:10001", ("ray", "ray://10.0.0.1:10001")),
        ("head.cluster:6379", ("ray", "head.cluster:6379")),
        ("spark", ("spark", None)),
        ("spark://10.0.0.1:7077", ("spark", "spark://10.0.0.1:7077")),
        ("local[2]", ("spark", "local[2]")),
        ("yarn", ("spark", "yarn")),
    ],
)
def test_addresses(address: str, expected: tuple[str, str | None]) -> None:
    assert engine_of(address) == expected


@pytest.mark.parametrize("address", ["dask://10.0.0.1", "", "spark:", "10.0.0.1"])
def test_addresses_of_no_cluster(
    address: str, checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(folder), "-c", str(checkpoint), f"--cluster={address}"]) == 2
    assert f"'{address}' is no address of a cluster; expected ray, auto, ray://HOST:10001," in capsys.readouterr().err


def test_what_a_cluster_cannot_share(checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"'picture0\.jpg' is no image file"):
        YOLOX(checkpoint).predict(np.zeros((8, 8, 3), np.uint8), cluster="ray")
    with pytest.raises(UsageError, match="leave cluster out"):
        YOLOX(checkpoint).predict(folder, cluster="ray", tracks=True)
    assert main(["predict", str(folder), "-c", str(checkpoint), "--cluster", "ray", "--track"]) == 2
    assert "leave --cluster out" in capsys.readouterr().err


def test_parts_are_whole_batches_for_all_places() -> None:
    assert [list(part) for part in split(range(5), 1, 2)] == [[0, 1], [2, 3], [4]]
    assert [len(part) for part in split(range(100), 2, 4)] == [12] * 8 + [4]
    lengths = [len(part) for part in split(range(1_000_000), 4, 8)]
    assert sum(lengths) == 1_000_000
    assert max(lengths) == 128
    assert [len(part) for part in split(range(3), 8, 64)] == [3]
