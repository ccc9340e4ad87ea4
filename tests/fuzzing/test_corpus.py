"""What fuzzing found, and inputs that reach much of the readers: every one is read or refused, within the limits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from parsers import CORPUS, READERS, run
from samples import samples

pytestmark = pytest.mark.backends
pytest.importorskip("onnx")
pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")


def test_make_fuzzes_every_reader() -> None:
    makefile = (Path(__file__).resolve().parents[2] / "Makefile").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^FUZZED := (.*)$", makefile, re.MULTILINE)[0].split()) == sorted(READERS)


@pytest.mark.parametrize("name", READERS)
def test_samples_and_corpus_are_read_or_refused(name: str, tmp_path: Path) -> None:
    saved = {path.name: path.read_bytes() for path in sorted((CORPUS / name).glob("*"))}
    for what, data in {**{f"sample {i}": one for i, one in enumerate(samples()[name])}, **saved}.items():
        folder = tmp_path / what
        folder.mkdir()
        try:
            run(READERS[name], data, folder)
        except Exception as error:
            raise AssertionError(f"{name}: {what} raised {type(error).__name__}") from error


@pytest.mark.parametrize("name", [name for name in READERS if name not in ("images", "checkpoints", "onnx")])
def test_the_samples_are_sound(name: str, tmp_path: Path) -> None:
    """Fuzzing starts behind the first checks, not before them."""
    for data in samples()[name]:
        READERS[name](data, tmp_path)
