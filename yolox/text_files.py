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
_MAX_YAML_VALUES = 100_000  # they take two seconds
_MAX_YAML_DEPTH = 50
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
                f"'{path}' has {num_bytes / 1e6:.3g} MB; expected {expected} of at most {limit / 1e6:.3g} MB. "
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
        content = load_yaml(text, "BaseLoader", MAX_YAML_ALIASES)
    except (yaml.YAMLError, ValueError) as error:
        raise DataError(f"cannot read '{path}': {' '.join(str(error).split())}. Expected {expected}.") from error
    if not isinstance(content, dict):
        raise DataError(f"'{path}' holds {type(content).__name__}; expected {expected}.")
    return content


def load_yaml(text: str, loader: str, most_aliases: int) -> Any:
    """Return what YAML says; it is refused as soon as more is read than a file written by hand has.

    Args:
        text: The YAML.
        loader: Name of the class of ``yaml`` that reads it.
        most_aliases: They stand for trees of any size.

    Raises:
        yaml.YAMLError: Also for more aliases, more than 100,000 values, or more than 50 collections inside one
            another, whose time grows with the square of their number.
    """
    import yaml

    class Bounded(getattr(yaml, loader)):  # type: ignore[misc]
        depth = aliases = values = 0

        def get_event(self) -> Any:
            event = super().get_event()
            self.aliases += isinstance(event, yaml.AliasEvent)
            self.values += isinstance(event, yaml.NodeEvent)
            self.depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if self.aliases > most_aliases:
                raise yaml.YAMLError(f"it has more than {most_aliases} aliases; write them out")
            if self.values > _MAX_YAML_VALUES:
                raise yaml.YAMLError(f"it has more than {_MAX_YAML_VALUES} values")
            if self.depth > _MAX_YAML_DEPTH:
                raise yaml.YAMLError(f"it is nested more than {_MAX_YAML_DEPTH} deep")
            return event

    return yaml.load(text, Loader=Bounded)
