"""Damaged and crafted checkpoints: whatever is in a file, it loads as what it is or is refused in one line."""

from __future__ import annotations

import io
import pickle
import random
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import described

from yolox.checkpoint import load_model
from yolox.config import Experiment, ModelConfig
from yolox.errors import ModelFileError, YoloxError
from yolox.tools.start import read_run_state
from yolox.torch_files import read_torch_file

TINY = ModelConfig(depth=0.33, width=0.0625, depthwise=True, num_classes=2)
AMOUNT = pytest.mark.parametrize("amount", [30, pytest.param(1000, marks=pytest.mark.slow)])


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    experiment = replace(Experiment("tiny"), model=TINY)
    content = described(experiment, ["a", "b"])
    weights = content["model"]
    return {
        **content,
        "model": dict(weights),
        "state_dict": {f"detector.{key}": value for key, value in weights.items()},
        "optimizer_states": [{"state": {}, "param_groups": []}],
        "lr_schedulers": [{}],
        "loops": {"fit_loop": {}},
        "callbacks": {},
        "epoch": 1,
        "global_step": 2,
        "batch_size": 4,
        "steps_per_epoch": 2,
    }


def as_bytes(content: Any, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def refused_or_sound(path: Path) -> bool:
    """Return whether the file is refused by anybody; where it is not, its weights are finite."""
    messages = []
    try:
        loaded = load_model(path)
        assert all(bool(torch.isfinite(value).all()) for value in loaded.detector.parameters())
    except YoloxError as error:
        messages.append(str(error))
    try:
        read_run_state(path)
    except YoloxError as error:
        messages.append(str(error))
    assert all(len(message) < 5000 for message in messages)
    return bool(messages)


def test_the_file_itself_is_sound(content: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(as_bytes(content))
    assert load_model(tmp_path / "a.pth").experiment.model == TINY
    assert read_run_state(tmp_path / "a.pth").global_step == 2


@AMOUNT
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_flipped_and_missing_bytes(content: dict[str, Any], legacy: bool, amount: int, tmp_path: Path) -> None:
    whole = as_bytes(content, legacy)
    chance = random.Random(17)
    path = tmp_path / "a.pth"
    refusals = 0
    for number in range(amount):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 1, 4, 64))):
            where = chance.randrange(len(data)) if number % 3 else chance.randrange(2000)
            data[where] = chance.randrange(256)
        if number % 5 == 0:
            del data[chance.randrange(len(data)) :]
        if number % 7 == 0:
            data[10:10] = bytes(chance.randrange(1, 200))
        path.write_bytes(data)
        refusals += refused_or_sound(path)
    assert refusals > amount // 3
    if not legacy:  # every byte of a member is under its checksum
        assert refusals > amount * 0.9


@AMOUNT
def test_mutated_structures_inside_a_sound_archive(content: dict[str, Any], amount: int, tmp_path: Path) -> None:
    """Pickles with flipped bytes, in archives whose checksums agree."""
    chance = random.Random(18)
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(io.BytesIO(as_bytes(content))) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (structure,) = (name for name in members if name.endswith("data.pkl"))
    for number in range(amount):
        data = bytearray(members[structure])
        for _ in range(chance.choice((1, 2, 8))):
            data[chance.randrange(len(data) if number % 2 else 600)] = chance.randrange(256)
        with zipfile.ZipFile(path, "w") as archive:
            for name, value in members.items():
                archive.writestr(name, bytes(data) if name == structure else value)
        refused_or_sound(path)


VALUES: tuple[Any, ...] = (
    None,
    -1,
    2**70,
    float("nan"),
    float("inf"),
    "",
    "\x1b[31m",
    "x" * 10_000,
    [],
    {},
    {"a": {}},
    [None],
    torch.zeros(0),
    torch.zeros(1, 1),
    torch.zeros(1).expand(10**6, 10**6),
    torch.zeros(3, 3).to_sparse(),
    torch.zeros(2, dtype=torch.complex64),
    torch.full((3,), float("nan")),
    torch.zeros(2, device="meta"),
    True,
)


def places(content: dict[str, Any]) -> list[tuple[str, ...]]:
    keys: list[tuple[str, ...]] = [(key,) for key in content]
    experiment = content["experiment"]
    keys += [("experiment", key) for key in experiment]
    keys += [
        ("experiment", section, key) for section in ("model", "data", "recipe", "eval") for key in experiment[section]
    ]
    return [*keys, ("model", "head.cls_preds.0.weight"), ("model", "backbone.backbone.stem.conv.bn.running_var")]


@AMOUNT
def test_foreign_values_in_every_place(content: dict[str, Any], amount: int, tmp_path: Path) -> None:
    chance = random.Random(19)
    path = tmp_path / "a.pth"
    for place in places(content) if amount > 100 else chance.sample(places(content), 20):
        for value in chance.sample(VALUES, 10 if amount > 100 else 2):
            changed: dict[str, Any] = pickle.loads(pickle.dumps(content))
            target = changed
            for key in place[:-1]:
                target = target[key]
            target[place[-1]] = value
            torch.save(changed, path)
            refused_or_sound(path)


@pytest.mark.parametrize(
    ("change", "compression", "message"),
    [
        (lambda members: members, zipfile.ZIP_DEFLATED, "compressed or encrypted"),
        (lambda members: {k: v for k, v in members.items() if "/data/" not in k}, zipfile.ZIP_STORED, "cannot be read"),
        (lambda members: {k: v[:8] if "/data/" in k else v for k, v in members.items()}, zipfile.ZIP_STORED, "cannot"),
        (lambda members: {k: v for k, v in members.items() if "data.pkl" not in k}, zipfile.ZIP_STORED, "cannot"),
        (lambda members: {**members, "archive/code/x.py": b"x"}, zipfile.ZIP_STORED, None),
    ],
    ids=["compressed", "no storages", "short storages", "no structure", "more members"],
)
def test_crafted_archives(
    content: dict[str, Any], change: Any, compression: int, message: str | None, tmp_path: Path
) -> None:
    with zipfile.ZipFile(io.BytesIO(as_bytes(content))) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, value in change(members).items():
            archive.writestr(name, value)
    if message is None:
        refused_or_sound(path)
    else:
        with pytest.raises(ModelFileError, match=message):
            read_torch_file(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", {"width": 9.0, "depth": 9.0}, "does not fit"),
        ("recipe", {"basic_lr_per_img": -1.0}, "cannot read.*above 0"),
        ("data", {"input_size": [10**6, 32]}, "cannot read.*multiples of 32"),
        ("exp_name", "../../etc", "cannot read.*plain name"),
    ],
)
def test_what_an_experiment_claims_is_checked_before_memory_is_taken(
    content: dict[str, Any], key: str, value: Any, message: str, tmp_path: Path
) -> None:
    changed = pickle.loads(pickle.dumps(content))
    if isinstance(value, dict):
        changed["experiment"][key].update(value)
    else:
        changed["experiment"][key] = value
    torch.save(changed, tmp_path / "a.pth")
    with pytest.raises(ModelFileError, match=message):
        load_model(tmp_path / "a.pth")


def test_where_a_run_wrote_its_files_is_not_taken_over(content: dict[str, Any], tmp_path: Path) -> None:
    changed = pickle.loads(pickle.dumps(content))
    changed["experiment"].update(output_dir="/etc", exp_name="cron.d")
    torch.save(changed, tmp_path / "model.pth")
    assert load_model(tmp_path / "model.pth").experiment.output_dir == "./YOLOX_outputs"
    placed = read_run_state(tmp_path / "model.pth").in_its_place()
    assert (placed.exp_name, placed.output_dir) == ("yolox", "./YOLOX_outputs")
