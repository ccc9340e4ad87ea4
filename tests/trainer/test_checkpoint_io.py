"""Checkpoint files: whole or absent, and copies in place before what tells of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from yolox.errors import ModelFileError
from yolox.trainer.checkpoint_io import AtomicCheckpointIO


class Killed(BaseException):
    """Stands for a kill: nothing that catches errors catches it."""


def epoch_of(path: Path) -> int:
    content = torch.load(path, weights_only=True)
    return int(content["epoch"])


@pytest.mark.parametrize("operation", ["replace", "fsync", "link"])
def test_a_kill_at_any_moment_leaves_latest_never_newer_than_best(
    operation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, latest, best = AtomicCheckpointIO(), tmp_path / "latest.pth", tmp_path / "best.pth"
    options = {"copies": [best]}
    original = getattr(os, operation)
    for allowed in range(10):
        files.save_checkpoint({"epoch": 1}, latest, options)
        calls = 0

        def kill(*arguments: object, allowed: int = allowed) -> object:
            nonlocal calls
            calls += 1
            if calls > allowed:
                raise Killed
            return original(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, operation, kill)
            try:
                files.save_checkpoint({"epoch": 2}, latest, options)
            except Killed:
                assert 1 <= epoch_of(latest) <= epoch_of(best) <= 2
            else:
                break
    assert allowed > 0
    assert epoch_of(latest) == epoch_of(best) == 2
    assert sorted(item.name for item in tmp_path.iterdir()) == ["best.pth", "latest.pth"]


def test_copies_on_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", no_links)
    options = {"copies": [tmp_path / "best.pth"]}
    AtomicCheckpointIO().save_checkpoint({"epoch": 3}, tmp_path / "latest.pth", options)
    assert epoch_of(tmp_path / "best.pth") == epoch_of(tmp_path / "latest.pth") == 3


@pytest.mark.parametrize("options", [{"region": "north"}, "fast", {"copies": [], "other": 1}])
def test_options_of_remote_storage_are_refused(options: object, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="remote storage"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "latest.pth", options)
    assert not list(tmp_path.iterdir())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "none.pth")
