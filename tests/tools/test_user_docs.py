"""The examples of docs/predict.md and README.md run, and docs/coming-from.md names what exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from yolox.config import field_names
from yolox.experiments import get_experiment
from yolox.models.detector import build_detector
from yolox.tools import command
from yolox.tools.parser import ELSEWHERE, ToolParser

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")), *sorted(DOCS.rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the examples name, and published weights that were placed by hand."""
    folder = tmp_path / "cache" / "weights"
    folder.mkdir(parents=True)
    torch.save({"model": build_detector(get_experiment("yolox_nano").model).state_dict()}, folder / "yolox_nano.pth")
    monkeypatch.setenv("YOLOX_CACHE", str(tmp_path / "cache"))
    work = tmp_path / "work"
    (work / "images").mkdir(parents=True)
    picture = np.full((60, 80, 3), 90, np.uint8)
    for name in ("street.jpg", "images/a.jpg", "images/b.jpg"):
        cv2.imwrite(str(work / name), picture)
    film = cv2.VideoWriter(str(work / "film.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (80, 60))
    for _ in range(2):
        film.write(picture)
    film.release()
    monkeypatch.chdir(work)
    return work


@pytest.mark.backends
def test_python_examples(place: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    examples = blocks(DOCS / "predict.md", "python")
    assert len(examples) == 3
    for example in examples:
        exec(compile(example, "docs/predict.md", "exec"), {})
    assert (place / "street_found.jpg").is_file()


def test_shell_examples(place: Path) -> None:
    lines = blocks(DOCS / "predict.md", "bash")[0].splitlines()
    assert len(lines) == 4
    for line in lines:
        assert command.main(shlex.split(line)[1:]) == 0, line
    assert (place / "found" / "predictions.csv").is_file()
    assert (place / "film_found" / "film.mp4").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_the_pages_parse(page: Path) -> None:
    parsers = _parsers()
    by_module = {f"yolox.tools.{module}": name for name, (module, _) in command.COMMANDS.items()}
    for line in "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:2] == ["python", "-m"] and words[2] in by_module:
            words = ["yolox", by_module[words[2]], *words[3:]]
        if words[:1] == ["yolox"] and words[1] in parsers:
            parsers[words[1]].parse(words[2:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert "://" in target or (page.parent / target).exists(), target


def test_names_elsewhere_are_known_or_answered() -> None:
    """Options of the left columns are options here or answered; options and fields of the right columns exist."""
    parsers = _parsers()
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", (DOCS / "coming-from.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) > 50
    for there, here in rows:
        for option in re.findall(r"`(--?[\w-]+)[^`]*`", there):
            plain = "-" * (len(option) - len(option.lstrip("-"))) + option.lstrip("-").replace("-", "_")
            assert plain in ELSEWHERE or _known(parsers, option), option
        for option in re.findall(r"(?<![\w-])(--[\w-]+)", here):
            assert _known(parsers, option), option
        for field in re.findall(r"`(\w+_\w+)(?: \w+)?`", here):
            known = field in field_names() or field in command.COMMANDS or "yolox" in field
            assert known or field in there or field == "inference_demo", field


def _parsers() -> dict[str, ToolParser]:
    import importlib

    modules = {"demo": "demo"} | {name: module for name, (module, _) in command.COMMANDS.items()}
    return {name: importlib.import_module(f"yolox.tools.{module}").build_parser() for name, module in modules.items()}


def _known(parsers: dict[str, ToolParser], option: str) -> bool:
    return any(parser.option(option) is not None for parser in parsers.values())
