"""Weights as safetensors: written on request, read by everything that takes a checkpoint."""

from __future__ import annotations

import json
import random
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import described
from hypothesis import given
from hypothesis import strategies as st

from yolox.checkpoint import load_model
from yolox.config import Experiment, ModelConfig, experiment_from_dict
from yolox.cpu import ipex_location
from yolox.cpu.ipex_location import IpexLocation
from yolox.errors import ModelFileError, YoloxError
from yolox.models.detector import build_detector
from yolox.safe_weights import read_safetensors, write_safetensors
from yolox.tools import export as export_tool
from yolox.tools import train as train_tool
from yolox.trainer import ipex
from yolox.trainer.ipex import IpexPlan

TINY = replace(Experiment("tiny"), model=ModelConfig(depth=0.33, width=0.0625, depthwise=True, num_classes=2))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "best_ckpt.pth"
    torch.save(described(TINY, ["a", "b"]), path)
    return path


def test_export_writes_what_every_checkpoint_option_reads(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "weights.safetensors"
    assert export_tool.main(["-c", str(checkpoint), "--output-name", str(target)]) == 0
    first, second = load_model(checkpoint), load_model(target)
    assert (second.experiment, second.class_names) == (first.experiment, ("a", "b"))
    torch.testing.assert_close(second.detector.state_dict(), first.detector.state_dict(), rtol=0, atol=0)


def test_plain_safetensors_are_recognised_by_their_shapes(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    config = replace(ModelConfig(depth=0.33, width=0.25, depthwise=True), num_classes=3)
    save_file(build_detector(config).state_dict(), tmp_path / "a.safetensors")
    assert load_model(tmp_path / "a.safetensors").experiment.exp_name == "yolox_nano"


SHAPE = st.lists(st.integers(0, 4), max_size=4).map(tuple)
KIND = st.sampled_from(
    [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool]
)
WEIGHTS = st.dictionaries(
    st.text(min_size=1, max_size=9).filter("__metadata__".__ne__), st.tuples(SHAPE, KIND), max_size=5
)


@given(
    WEIGHTS,
    st.none() | st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=9), max_size=4),
    st.integers(),
)
def test_what_is_written_is_read(
    kinds: dict[str, tuple[tuple[int, ...], torch.dtype]], names: list[str] | None, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed % 2**63)
    weights = {key: (100 * torch.rand(shape, generator=generator)).to(kind) for key, (shape, kind) in kinds.items()}
    with tempfile.TemporaryDirectory() as folder:
        write_safetensors(Path(folder) / "a.safetensors", weights, TINY, names)
        found = read_safetensors(Path(folder) / "a.safetensors")
    assert found["model"].keys() == weights.keys()
    for key, value in weights.items():
        assert found["model"][key].dtype == value.dtype
        assert torch.equal(found["model"][key], value)
    assert found.get("class_names") == names
    assert experiment_from_dict(found["experiment"]) == TINY


def test_damaged_files_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    loaded = load_model(checkpoint)
    path = tmp_path / "a.safetensors"
    write_safetensors(path, loaded.detector.state_dict(), TINY, ("a", "b"))
    whole = path.read_bytes()
    chance = random.Random(3)
    for number in range(40):
        data = bytearray(whole)
        data[chance.randrange(3000)] = chance.randrange(256)
        if number % 4 == 0:
            del data[chance.randrange(len(data)) :]
        path.write_bytes(data)
        try:
            load_model(path)
        except YoloxError as error:
            refusal = error
    assert isinstance(refusal, ModelFileError)
    path.write_text("no safetensors")
    with pytest.raises(ModelFileError, match="cannot be read as safetensors"):
        read_safetensors(path)


def test_an_older_pytorch_gets_weights_only_as_safetensors(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment of IPEX never opens the file that the user names."""
    seen = []

    def run_again(plan: IpexPlan, *, replace: bool) -> int:
        assert plan.command is not None
        path = Path(plan.command[-1])
        seen.append((plan.command[-2], path.suffix, load_model(path).class_names))
        return 7

    monkeypatch.setattr(ipex_location, "locate_ipex", lambda: IpexLocation(False, Path("/other/python"), "elsewhere."))
    monkeypatch.setattr(ipex, "run_again", run_again)
    assert train_tool.main(["-n", "yolox_nano", "-c", str(checkpoint), "--use_ipex"]) == 7
    assert seen == [("-c", ".safetensors", ("a", "b"))]
    other = replace(TINY.model, width=0.03125, num_classes=5)  # of no published network, and without description
    torch.save({"model": build_detector(other).state_dict()}, tmp_path / "other.pth")
    monkeypatch.setattr(
        ipex, "run_again", lambda plan, *, replace: len(read_safetensors(Path(plan.command[-1]))["model"])
    )
    assert train_tool.main(["-n", "yolox_nano", "-c", str(tmp_path / "other.pth"), "--use_ipex"]) > 100
    (tmp_path / "broken.pth").write_bytes(b"PK\x03\x04 broken")
    assert train_tool.main(["-n", "yolox_nano", "-c", str(tmp_path / "broken.pth"), "--use_ipex"]) == 4
    assert len(seen) == 1


def test_the_description_is_plain_json(checkpoint: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    target = tmp_path / "weights.safetensors"
    assert export_tool.main(["-c", str(checkpoint), "--output-name", str(target)]) == 0
    with safe_open(target, framework="pt") as file:
        described = json.loads(file.metadata()["yolox"])
    assert described["class_names"] == ["a", "b"]
    assert described["experiment"]["model"]["width"] == TINY.model.width


def test_an_older_pytorch_opens_safetensors_and_no_foreign_checkpoint(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "weights.safetensors"
    assert export_tool.main(["-c", str(checkpoint), "--output-name", str(target)]) == 0
    monkeypatch.setattr(torch, "__version__", "2.8.0+cpu")
    assert load_model(target).class_names == ("a", "b")
    with pytest.raises(ModelFileError, match=r"PyTorch 2\.8\.0.*safetensors"):
        load_model(checkpoint)
