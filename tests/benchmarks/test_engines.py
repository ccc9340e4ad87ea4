"""The table of engines: its pieces can be stopped and resumed, and no row is dropped without a reason."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.engines import __main__ as engines
from benchmarks.engines.picture import fastest
from benchmarks.engines.pieces import PieceRunner, Run
from benchmarks.engines.pieces_file import Piece, Pieces
from benchmarks.engines.table import ENGINES, Engine
from yolox.inference.backends.base import Settings


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("size", [1, 4])
def test_pieces_come_back_in_order(streams: int, size: int) -> None:
    def load(piece: int, threads: int) -> Run:
        assert (piece, threads) == (size, 2 // streams)

        def run(images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
            assert len(images) == size
            mean = images.mean(axis=(1, 2, 3))[:, None, None]
            return [np.broadcast_to(mean, (size, 5, 80)), np.broadcast_to(mean, (size, 5, 4))]

        return run

    runner = PieceRunner(load, (1, 4), Settings(2, streams, size), has_streams=True)
    images = np.broadcast_to(np.arange(9, dtype=np.float32)[:, None, None, None], (9, 3, 2, 2))
    boxes, scores = runner(images)
    assert boxes.shape == (9, 5, 4)
    assert scores.shape == (9, 5, 80)
    assert boxes[:, 0, 0].tolist() == list(range(9))
    assert {(one.micro_batch, one.streams) for one in runner.candidates(8, 2)} == {(1, 1), (1, 2), (4, 1), (4, 2)}
    assert {(one.micro_batch, one.streams) for one in runner.candidates(1, 2)} == {(1, 1)}


def test_finished_pieces_are_kept_and_failures_told(tmp_path: Path) -> None:
    calls: list[str] = []

    def work(name: str, *found: Mapping[str, Any]) -> dict[str, Any]:
        calls.append(name)
        if name == "bad":
            raise RuntimeError("the side ended: ValueError: no such operator\nwhat it printed")
        return {"value": sum(one["value"] for one in found) + 1}

    pieces = [
        Piece("good", lambda: work("good")),
        Piece("next", lambda *found: work("next", *found), ("good",)),
        Piece("bad", lambda: work("bad")),
        Piece("after", lambda *found: work("after", *found), ("bad",)),
    ]
    for _ in range(2):  # the second time in another run
        done = Pieces(tmp_path / "pieces.json")
        for piece in pieces:
            done.run(piece)
    assert calls == ["good", "next", "bad"]
    assert done.get("next")["value"] == 2
    assert done.failure("bad") == "the side ended: ValueError: no such operator"
    assert done.get("after") == {}


def test_an_engine_that_is_not_here_says_why() -> None:
    assert "make engines" in Engine("other_fp32", "other", environment="nowhere").obstacle
    (ncnn,) = [engine for engine in ENGINES if engine.name == "ncnn_int8"]
    assert "ncnn2table" in ncnn.obstacle


def test_the_picture_shows_the_fastest_row_that_keeps_the_accuracy() -> None:
    rows: list[dict[str, Any]] = [
        {"engine": "original", "rate": 1.0, "AP": 0.34},
        {"engine": "litert_fp32", "rate": 3.0, "AP": 0.34},
        {"engine": "litert_int8", "rate": 9.0, "AP": 0.21},
        {"engine": "litert_int8, mixed", "rate": 7.0, "AP": 0.333},
        {"engine": "ncnn_int8", "reason": "not here"},
    ]
    found = fastest(rows)
    assert {name: row["rate"] for name, row in found.items()} == {"LiteRT": 7.0, "PyTorch, eager": 1.0}


@pytest.mark.processes
def test_a_stopped_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--quick", "--batch", "1", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    assert engines.main([*words, "--seconds", "0.001"]) == 0
    assert "goes on from here" in capsys.readouterr().out
    assert not (tmp_path / "out" / "engines.json").exists()
    assert engines.main(words) == 0
    state = (tmp_path / "work" / "quick" / "pieces.json").read_bytes()
    assert engines.main(words) == 0
    assert (tmp_path / "work" / "quick" / "pieces.json").read_bytes() == state, "nothing is measured twice"
    rows = json.loads((tmp_path / "out" / "engines.json").read_text(encoding="utf-8"))["parts"]["quick-b1"]["rows"]
    by_name = {row["engine"]: row for row in rows}
    assert set(by_name) == {"original", "native_int8", "ncnn_int8"}
    for name in ("original", "native_int8"):
        assert by_name[name]["p99"] >= by_name[name]["p50"] > 0
        assert by_name[name]["peak_memory_mb"] > 0
        assert by_name[name]["size_mb"] > 0
    assert by_name["original"]["decibels"] > 100
    assert by_name["native_int8"]["int8_share"] > 0.9
    assert by_name["ncnn_int8"]["reason"]
