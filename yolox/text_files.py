"""Text that others wrote: encodings, byte order marks, and limits on what a file may cost."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from yolox.errors import DataError, YoloxError

MAX_TEXT_BYTES = 64 << 20
"""A label file or list of images may not be larger."""
MAX_YAML_BYTES = 4 << 20
MAX_YAML_ALIASES = 100
_MARKS = (  # UTF-32's little-endian mark begins like UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LINE_END = re.compile(r"\r\n|\r|\n")  # str.splitlines also splits at characters that names may hold


def read_bytes(path: Path, expected: str, limit: int = MAX_TEXT_BYTES, error: type[YoloxError] = DataError) -> bytes:
    """Return a file's bytes.

    Args:
        path: The file.
        expected: What it should be, for messages: ``a list of images``.
        limit: Most bytes it may have.
        error: What to raise.

    Raises:
        YoloxError: Of the kind ``error``, when it cannot be read or is larger.
    """
    try:
        num_bytes = path.stat().st_size
        if num_bytes > limit:
            raise error(
                f"'{path}' has {num_bytes / 1e6:.0f} MB; expected {expected} of at most {limit / 1e6:.0f} MB. "
                "Is it the right file?"
            )
        return path.read_bytes()
    except (OSError, ValueError) as failure:  # ValueError: a NUL in the path
        reason = getattr(failure, "strerror", None) or failure
        raise error(f"cannot read '{path}': {reason}; expected {expected}. Check the path.") from failure


def read_text(path: Path, expected: str, limit: int = MAX_TEXT_BYTES, error: type[YoloxError] = DataError) -> str:
    """Return a file's text: UTF-8, or UTF-16 and UTF-32 with a byte order mark; see ``read_bytes``.

    Raises:
        YoloxError: Also when it is in another encoding.
    """
    return decode_text(read_bytes(path, expected, limit, error), path, expected, error)


def decode_text(data: bytes, path: Path, expected: str, error: type[YoloxError] = DataError) -> str:
    """Return the text of a file's bytes; see ``read_text``."""
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    if encoding is None:
        # ASCII characters in UTF-16 without a mark have a zero on one side
        encoding = {(False, True): "utf-16-le", (True, False): "utf-16-be"}.get(
            (data[:1] == b"\0", data[1:2] == b"\0"), "utf-8"
        )
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as failure:
        raise error(
            f"'{path}' is not {encoding.upper()} text (byte {failure.start}); expected {expected} in UTF-8. "
            "Save it as UTF-8."
        ) from failure


def read_lines(path: Path, expected: str, error: type[YoloxError] = DataError) -> Iterator[tuple[int, str]]:
    """Yield number (from 1) and text of each line that is not blank, without white space around it."""
    for number, line in enumerate(_LINE_END.split(read_text(path, expected, error=error)), start=1):
        stripped = line.strip().strip("\0")
        if stripped:
            yield number, stripped


def read_yaml(path: Path, expected: str) -> dict[str, Any]:
    """Return the mapping of a YAML file with every scalar as the text it was written as (``no`` is no boolean).

    Raises:
        DataError: When it cannot be read, is no mapping, or is nested or aliased beyond reason.
    """
    import yaml

    text = read_text(path, expected, MAX_YAML_BYTES)
    try:
        refuse_aliases(text, path, MAX_YAML_ALIASES, DataError)
        content = yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise DataError(f"cannot read '{path}': {reason}. Expected {expected}.") from error
    if not isinstance(content, dict):
        raise DataError(f"'{path}' holds {type(content).__name__}; expected {expected}.")
    return content


def refuse_aliases(text: str, path: Path, most: int, error: type[YoloxError]) -> None:
    """Refuse YAML with many aliases, which stand for trees of any size.

    Raises:
        YoloxError: Of the kind ``error``.
        yaml.YAMLError: When it is no YAML.
    """
    import yaml

    aliases = sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.BaseLoader))
    if aliases > most:
        raise error(f"'{path}' has {aliases} aliases; expected at most {most}. Write them out.")
