"""Weights by name, against a server that stalls, cuts and lies."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import torch
from loopback import serving

from yolox import downloads
from yolox.checkpoint import load_model
from yolox.downloads import DownloadError, download
from yolox.errors import DataError, ModelFileError, UsageError, YoloxError
from yolox.experiments import get_experiment
from yolox.files import sha256_of
from yolox.models.detector import build_detector
from yolox.published_weights import PUBLISHED, find_checkpoint, weights_folder


class _Mirror(BaseHTTPRequestHandler):
    content: bytes
    behaviour: str
    requests: list[str | None]

    def do_GET(self) -> None:
        ranged = self.headers.get("Range")
        self.requests.append(ranged)
        start = int(ranged[6:-1]) if ranged and self.behaviour != "no ranges" else 0
        if self.behaviour == "missing" or self.path.endswith("SHA256SUMS"):
            self.send_error(404)
            return
        body = self.content[start:]
        if self.behaviour == "lies":
            body = b"PK" + body[2:][::-1]
        if self.behaviour == "page":
            body = b"<html>log in first</html>"
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        first = len(self.requests) == 1
        if first and self.behaviour in ("cuts", "stalls", "no ranges"):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if self.behaviour == "stalls":
                time.sleep(2.0)
            return
        self.wfile.write(body)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    checkpoint = tmp_path / "made.pth"
    torch.save({"model": build_detector(get_experiment("yolox_nano").model).state_dict()}, checkpoint)
    _Mirror.content, _Mirror.behaviour, _Mirror.requests = checkpoint.read_bytes(), "well", []
    sums = tmp_path / "SHA256SUMS"
    sums.write_text(f"{hashlib.sha256(_Mirror.content).hexdigest()}  yolox_nano.pth\n")
    monkeypatch.setenv("YOLOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("YOLOX_WEIGHTS_SHA256", str(sums))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(_Mirror) as address:
        monkeypatch.setenv("YOLOX_WEIGHTS_URL", address + "/")
        yield address


def test_a_name_is_downloaded_once_and_loads(mirror: str) -> None:
    loaded = load_model("yolox-nano")
    assert loaded.experiment.exp_name == "yolox_nano"
    assert len(loaded.class_names) == 80
    assert find_checkpoint("yolox_nano") == weights_folder() / "yolox_nano.pth"
    assert find_checkpoint("YOLOX_NANO") == weights_folder() / "yolox_nano.pth"
    assert _Mirror.requests == [None]


@pytest.mark.parametrize("behaviour", ["cuts", "stalls", "no ranges"])
def test_a_cut_is_taken_up_again(mirror: str, tmp_path: Path, behaviour: str) -> None:
    _Mirror.behaviour = behaviour
    seen: list[int] = []
    download(
        f"{mirror}/file.pth",
        tmp_path / "file.pth",
        check=lambda part: None,
        progress=lambda done, total: seen.append(done),
        timeout=0.3,
    )
    assert (tmp_path / "file.pth").read_bytes() == _Mirror.content
    assert _Mirror.requests == [None, f"bytes={len(_Mirror.content) // 2}-"]
    assert seen[-1] == len(_Mirror.content)
    assert not (tmp_path / "file.pth.part").exists()


@pytest.mark.parametrize(("behaviour", "part"), [("lies", "SHA-256"), ("page", "SHA-256")])
def test_what_is_not_the_published_file_is_not_used(mirror: str, behaviour: str, part: str) -> None:
    _Mirror.behaviour = behaviour
    with pytest.raises(ModelFileError, match=part):
        find_checkpoint("yolox_nano")
    assert [path.name for path in weights_folder().iterdir() if path.suffix != ".lock"] == []


def test_the_known_digest_is_asked_for_without_a_list(mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("YOLOX_WEIGHTS_SHA256")
    with pytest.raises(ModelFileError, match=str(PUBLISHED["yolox_nano"][1])):
        find_checkpoint("yolox_nano")
    assert find_checkpoint("yolov3").name == "yolox_darknet.pth"  # no digest is known: its structure is checked
    _Mirror.behaviour = "page"
    (weights_folder() / "yolox_darknet.pth").unlink()
    with pytest.raises(ModelFileError, match="no file of PyTorch"):
        find_checkpoint("yolov3")


def test_without_a_connection_it_says_how_to_place_the_file(
    mirror: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _Mirror.behaviour = "missing"
    with pytest.raises(DownloadError, match=r"404.*place it at .*yolox_nano\.pth"):
        find_checkpoint("yolox_nano")
    weights_folder().mkdir(parents=True, exist_ok=True)
    (weights_folder() / "yolox_nano.pth").write_bytes(_Mirror.content)
    assert load_model("yolox_nano").experiment.exp_name == "yolox_nano"
    monkeypatch.setenv("YOLOX_WEIGHTS_URL", "ftp://mirror")
    with pytest.raises(UsageError, match="starts with http"):
        find_checkpoint("yolox_s")
    with pytest.raises(DataError, match="404"):
        downloads.read_address(f"{mirror}/x")


def test_paths_are_never_names(mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("yolox_nano.pth", "runs/yolox_nano", "unknown"):
        assert find_checkpoint(text) == Path(text)
    (tmp_path / "yolox_nano").write_bytes(b"a file of that name")
    assert find_checkpoint("yolox_nano") == Path("yolox_nano")
    assert _Mirror.requests == []
    with pytest.raises(YoloxError, match="or the name of published weights"):
        load_model("unknown")


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_of(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
