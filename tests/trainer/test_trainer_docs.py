"""docs/trainer.md names every setting that the code or BigDL-Nano's interface has."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from yolox.errors import UsageError
from yolox.trainer.trainer import Trainer

DOCS = Path(__file__).resolve().parents[2] / "docs" / "trainer.md"


def documented() -> set[str]:
    """Names in the first column of the tables of settings."""
    text = DOCS.read_text(encoding="utf-8").partition("## Settings of BigDL-Nano's Trainer")[2]
    rows = (line.split("|")[1] for line in text.splitlines() if line.startswith("| `"))
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


def test_every_argument_is_documented() -> None:
    parameters = set(inspect.signature(Trainer.__init__).parameters) - {"self", "pl_arguments"}
    assert parameters <= documented()


def test_every_setting_of_nano_is_documented(shared_dir: Path) -> None:
    facts = (shared_dir / "reference" / "nano-interface.md").read_text(encoding="utf-8")
    section = facts.partition("### 1.1")[2].partition("### 1.3")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    arguments = {name.strip(" *") for cell in cells for name in cell.split(",")} - {"argument", "---"}
    treated = section.partition("Specially treated kwargs")[2].partition("Precision logic")[0]
    keys = {name for line in treated.splitlines() if line.startswith("* ") for name in re.findall(r"`(\w+)", line)}
    methods = {
        name
        for line in section.partition("### 1.2")[2].splitlines()
        if line.startswith("* ")
        for name in re.findall(r"`(?:Trainer\.)?(\w+)(?:\(|`)", line)
    }
    assert {"num_processes", "precision", "kwargs"} <= arguments
    assert {"accelerator", "algorithms"} <= keys
    assert {"compile", "search", "load"} <= methods
    assert arguments | keys | methods <= documented()


@pytest.mark.parametrize("name", ["search", "search_summary", "trace", "quantize"])
def test_what_is_not_offered_says_what_to_do(name: str) -> None:
    with pytest.raises(UsageError, match="is not offered"):
        getattr(Trainer, name)(None)
