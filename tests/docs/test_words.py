"""Commands, options, files and tests that the pages name in their text exist."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml
from doc_pages import ROOT, pages, prose
from doc_shell import as_tool, check_make, tool_parsers

from yolox import __version__
from yolox.config import field_names
from yolox.tools import command
from yolox.tools.parser import ELSEWHERE, ToolParser

FOREIGN_PAGES = {"docs/coming-from.md", "CHANGELOG.md"}
"""They name options of other programs, and of earlier states."""
FOREIGN_OPTIONS = {"--require-hashes", "--no-deps", "--shm-size"}
"""Of pip and docker."""
OF_BENCHMARKS = {
    "--part",
    "--quick",
    "--out",
    "--against",
    "--list",
    "--help",
    "--clients",
    "--load",
    "--overload",
    "--seconds",
}
OF_ENGINES = {"--stage"}


def spans(page: str) -> list[str]:
    """Return what stands in backticks on a page."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def known(parsers: dict[str, ToolParser], option: str) -> bool:
    return any(parser.option(option) is not None for parser in parsers.values())


@pytest.mark.parametrize("page", [page for page in pages() if page not in FOREIGN_PAGES])
def test_commands_and_options_in_the_text_exist(page: str) -> None:
    parsers = tool_parsers()
    for span in spans(page):
        words = span.split()
        tool = as_tool(words)
        if words[:1] == ["yolox"] and len(words) > 1 and not words[1].startswith("-"):
            assert words[1] in {*parsers, "completion"}, f"{page}: {span}"
        if tool and tool[0] in parsers:
            unknown = [word for word in tool[1] if word.startswith("-") and parsers[tool[0]].option(word) is None]
            assert unknown == [], f"{page}: {span}"
        if words[:2] == ["python", "-m"]:
            module = words[2].replace(".", "/")
            assert words[2] == "pytest" or any((ROOT / f"{module}{end}").exists() for end in (".py", "/__init__.py")), (
                span
            )
        if words[0] == "make" and len(words) > 1:
            check_make(words)
        if re.fullmatch(r"--[a-z][\w-]*", words[0]):
            allowed = FOREIGN_OPTIONS | OF_BENCHMARKS | OF_ENGINES
            assert known(parsers, words[0]) or words[0] in allowed | {"--help", "--version"}, f"{page}: {span}"


@pytest.mark.parametrize("page", pages())
def test_tests_in_the_text_exist(page: str) -> None:
    for span in spans(page):
        for name in re.findall(r"tests/[\w/]+\.py(?:::\w+)?", span):
            file, _, function = name.partition("::")
            assert (ROOT / file).is_file(), f"{page}: {name}"
            assert not function or f"def {function}(" in (ROOT / file).read_text(encoding="utf-8"), f"{page}: {name}"
        if "pytest " in span and " -k " in span:
            words = shlex.split(span)
            asked_for = [ROOT / word for word in words if word.startswith("tests")]
            files = [file for place in asked_for for file in (place.rglob("*.py") if place.is_dir() else [place])]
            text = "".join(file.read_text(encoding="utf-8") for file in files)
            names = text.lower()  # of tests and of their parameters
            asked = re.findall(r"\w+", words[words.index("-k") + 1])
            assert [word for word in asked if word not in {"or", "and", "not"} and word not in names] == [], span


def test_names_elsewhere_are_known_or_answered() -> None:
    """Options of the left columns are options here or answered; options and fields of the right columns exist."""
    parsers = tool_parsers()
    text = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    assert len(rows) > 50
    for there, here in rows:
        for option in re.findall(r"`(--?[\w-]+)[^`]*`", there):
            plain = "-" * (len(option) - len(option.lstrip("-"))) + option.lstrip("-").replace("-", "_")
            assert plain in ELSEWHERE or known(parsers, option), option
        for option in re.findall(r"(?<![\w-])(--[\w-]+)", here):
            assert known(parsers, option), option
        for field in re.findall(r"`(\w+_\w+)(?: \w+)?`", here):
            there_too = field in field_names() or field in command.COMMANDS or "yolox" in field
            assert there_too or field in there or field == "inference_demo", field


def test_folders_of_the_architecture_exist() -> None:
    """Folders that the table of docs/architecture.md names exist."""
    for path in re.findall(r"`([\w/]+/)`", prose("docs/architecture.md").partition("## Reading order")[0]):
        assert any(
            (ROOT / base / path).is_dir() for base in ("yolox", ".", "yolox/inference", "yolox/kernels", "yolox/data")
        ), path


def test_each_feature_is_shown_by_a_test() -> None:
    """The tests that docs/features.md names exist, and every feature that is said to be here has one."""
    rows = [
        [cell.strip() for cell in line[1:-1].split("|")]
        for line in prose("docs/features.md").splitlines()
        if line[:2] == "| "
    ]
    assert [*rows[0][:2], rows[0][-1]] == ["feature", "here", "shown by"]
    for feature, here, *_, shown in rows[1:]:
        tests = re.findall(r"`([\w/]+\.py)::(\w+)`", shown)
        assert tests or here.startswith("no"), f"{feature}: nothing shows it"
        for file, function in tests:
            text = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert f"def {function}(" in text, f"{feature}: {file}::{function}"


def test_the_licence_is_what_the_pages_say() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")[:300]
    assert '"Apache-2.0"' in (ROOT / "setup.py").read_text(encoding="utf-8")


def test_explained_messages_are_those_of_the_code() -> None:
    """Every part of a message in docs/troubleshooting.md stands in the code."""
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "yolox").rglob("*.py"))
    code = re.sub(r"\"\s*\n\s*f?\"", "", code)  # strings that go on in the next line
    messages = re.findall(r"^\| `([^`]+)` \|", prose("docs/troubleshooting.md"), re.MULTILINE)
    assert len(messages) > 15
    for part in (part for message in messages for part in message.split("…")):
        assert part in code, part


def test_the_citation_has_the_version_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
