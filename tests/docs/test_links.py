"""Links of the pages lead to files and headings that exist; addresses are well formed."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import pytest
from doc_pages import ROOT, anchors, pages, prose

LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", pages())
def test_links_lead_somewhere(page: str) -> None:
    for target in LINK.findall(prose(page)):
        if "://" in target:
            parts = urlsplit(target)
            assert parts.scheme == "https", f"{page}: {target}"
            assert re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc), f"{page}: {target}"
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(file.resolve().relative_to(ROOT).as_posix()), f"{page}: {target}"


def test_every_page_and_picture_is_linked() -> None:
    """A page of docs/ is reached from the README, a picture from some page."""
    targets = {target.partition("#")[0] for target in LINK.findall(prose("README.md"))}
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"} <= {
        target.removeprefix("docs/") for target in targets
    }
    text = "".join(prose(page) for page in pages())
    assert [path.name for path in (ROOT / "docs" / "images").iterdir() if f"images/{path.name}" not in text] == []
