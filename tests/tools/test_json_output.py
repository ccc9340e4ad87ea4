"""With ``--json`` every command prints what a program reads on stdout, and everything else on stderr."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from self_labelled import write_checkpoint, write_data

from yolox.tools.command import COMMANDS, main
from yolox.tools.inference_demo import NOTHING_BETTER

TINY = ("--num_workers", "0")
WORDS: Mapping[str, tuple[str, ...]] = {
    "train": ("-n", "yolox_nano", "--data_dir", "{data}", "-b", "2", *TINY, "--logger", "none", "--dry-run"),
    "val": ("-c", "{model}", "--data_dir", "{data}", *TINY),
    "predict": ("{data}/val2017", "-c", "{model}"),
    "optimize": ("-c", "{model}", "--data_dir", "{data}", *TINY, "--methods", "original"),
    "export": ("-c", "{model}", "--format", "torchscript", "--output-name", "{out}/model.pt"),
    "doctor": ("{data}", "--output_dir", "{out}/doctor"),
    "serve": ("{model}", "--port", "0"),
    "preprocess": ("-c", "{model}", "--data_dir", "{data}", *TINY, "--output_dir", "{out}/binaries"),
    "postprocess": ("{data}/annotations/instances_val2017.json", "--results", "{data}/found.json"),
    "info": ("{model}",),
    "kernels": ("-c", "{model}"),
    "settings": ("-c", "{model}", "data.data_dir={data}"),
}
EXPECTED: Mapping[str, tuple[str, ...]] = {
    "train": ("dry_run",),
    "val": ("AP", "AP50"),
    "predict": ("image", "objects"),
    "optimize": ("rows",),
    "export": ("written", "format"),
    "doctor": ("findings", "splits"),
    "serve": ("address", "model"),
    "preprocess": ("written", "images"),
    "postprocess": ("AP",),
    "info": ("model", "classes"),
    "kernels": ("layers", "with_kernels"),
    "settings": ("experiment", "environment"),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint, a data set that it finds objects in, results of a detector, and a folder for what is written."""
    root = tmp_path_factory.mktemp("all")
    model = write_checkpoint(root / "mine.pth")
    data = write_data(root / "data", model)
    labels = data / "annotations" / "instances_val2017.json"
    shutil.copy(labels, labels.with_name("instances_train2017.json"))
    (data / "train2017").symlink_to(data / "val2017")
    rows = [{**row, "score": 0.9} for row in json.loads(labels.read_text())["annotations"]]
    (data / "found.json").write_text(json.dumps(rows))
    return {"model": model, "data": data, "out": root / "out"}


def words_of(name: str, places: Mapping[str, Path]) -> list[str]:
    return [name, *(word.format(**places) for word in WORDS[name]), "--json"]


@pytest.mark.parametrize("module", sorted({module for module, _ in COMMANDS.values()} | {"demo"}))
def test_every_tool_has_the_option(module: str) -> None:
    assert "--json" in import_module(f"yolox.tools.{module}").build_parser().spellings


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "serve"])
def test_stdout_is_json(
    name: str, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    places["out"].mkdir(exist_ok=True)
    monkeypatch.chdir(places["out"])
    code = main(words_of(name, places))
    out, err = capsys.readouterr()
    assert code == (NOTHING_BETTER if name == "optimize" else 0), err
    documents: list[dict[str, Any]]
    documents = [json.loads(line) for line in out.splitlines()] if name == "predict" else [json.loads(out)]
    assert len(documents) == (5 if name == "predict" else 1)
    for document in documents:
        assert set(EXPECTED[name]) <= set(document)


def test_a_service_says_where_it_listens(places: dict[str, Path]) -> None:
    pytest.importorskip("fastapi")
    command = [sys.executable, "-m", "yolox", *words_of("serve", places)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout is not None
            told = json.loads(service.stdout.readline())
        finally:
            service.send_signal(signal.SIGTERM)
            out, err = service.communicate(timeout=60)
    assert told["address"].startswith("http://127.0.0.1:")
    assert out == ""
    assert f"listening: {told['address']}/predict" in err


@pytest.mark.parametrize("name", COMMANDS)
def test_a_mistake_leaves_stdout_empty(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code = main(
        [
            name,
            *(word.format(model=tmp_path / "none.pth", data=tmp_path / "none", out=tmp_path) for word in WORDS[name]),
            "--json",
            "--no_such_option",
        ]
    )
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert "no_such_option" in err
