"""Settings of the documentation site: ``make docs`` builds it with Sphinx, warnings being errors."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import yolox.tools  # noqa: E402  the path has to be set first

project = "yolox-cpu"
copyright = "the yolox-cpu authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = "YOLOX on ordinary CPUs"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_member_order = "bysource"


def _write_options(app: Any) -> None:
    """Write ``reference/options.md``: what every tool prints for ``--help``."""
    pages = ["# Options of every command\n", "Generated from the parsers of `yolox.tools`.\n"]
    for module in sorted(pkgutil.iter_modules(yolox.tools.__path__), key=lambda module: module.name):
        tool = importlib.import_module(f"yolox.tools.{module.name}")
        if hasattr(tool, "build_parser") and hasattr(tool, "main"):
            pages.append(f"## python -m yolox.tools.{module.name}\n\n```text\n{tool.build_parser().format_help()}```\n")
    target = HERE / "reference" / "options.md"
    text = "\n".join(pages)
    if not target.exists() or target.read_text(encoding="utf-8") != text:
        target.write_text(text, encoding="utf-8")


def setup(app: Any) -> None:
    """Register the page of options."""
    app.connect("builder-inited", _write_options)
