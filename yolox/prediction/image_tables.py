"""Tables of images: lists of paths as text or CSV, and Parquet files that hold paths or the images themselves."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from yolox.errors import DataError, needs
from yolox.structures import Image, Size

LIST_SUFFIXES, PARQUET_SUFFIX = (".txt", ".csv"), ".parquet"
_PATHS = ("path", "file_name", "image_path", "image", "image.path")
"""Columns that may hold paths; those of Spark's and Ray's readers, COCO and common CSV files."""
_CONTENTS = ("content", "bytes", "image.bytes", "image")
"""Columns that may hold the bytes of image files: Spark's ``binaryFile``, Ray's ``read_binary_files``, Hugging Face."""


@dataclass(frozen=True, slots=True)
class TableImage:
    """An image whose bytes are in a row of a Parquet file; it can be read on every machine that has the file.

    Args:
        table: The file.
        name: What to call the image.
        column: Column of the bytes.
        group: Row group.
        row: Row within the group.
    """

    table: Path
    name: str
    column: str
    group: int
    row: int

    def read(self) -> Image | None:
        """Return the image ``[H, W, 3]`` BGR uint8, or None when it cannot be read."""
        from yolox.data.image_files import decode

        top, _, inner = self.column.partition(".")
        try:
            value = _column(self.table, self.group, self.column, top)[self.row].as_py()
        except DataError:  # it was there when the names were read
            return None
        data = value[inner] if value and inner else value
        return decode(bytes(data), Size(1, 1)) if data else None


def is_parquet(path: Path) -> bool:
    """Return whether ``path`` is a Parquet file, or a folder of them as Spark and Ray write tables."""
    return (path.suffix.lower() == PARQUET_SUFFIX and path.is_file()) or (path.is_dir() and bool(_parts(path)))


def listed_paths(path: Path) -> Iterator[str]:
    """Yield the paths in a list: lines of a .txt file, the column ``path`` or the only one of a .csv file.

    Raises:
        DataError: When the file is unreadable, or a CSV file has no such column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".txt":
                yield from (line.strip() for line in file if line.strip() and not line.lstrip().startswith("#"))
                return
            rows = (row for row in csv.reader(file) if row)
            first = next(rows, [])
            names = [name.strip().lower() for name in first]
            column = next((names.index(name) for name in _PATHS if name in names), None)
            if column is None and len(first) != 1:
                raise DataError(
                    f"'{path}' has the columns {', '.join(first) or 'none'}; expected one of {_any(_PATHS)}."
                )
            if column is None:  # a bare list
                yield first[0].strip()
            yield from (row[column or 0].strip() for row in rows if len(row) > (column or 0))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"'{path}' cannot be read as a list of images: {error}. Write a path a line, in UTF-8."
        ) from error


def rows_of(path: Path) -> Iterator[str | TableImage]:
    """Yield the images of a Parquet table, in the order of its rows: a path, or an image whose bytes are in it.

    Only names are read here, a row group at a time.

    Raises:
        DataError: When the table is damaged or has no column that is known.
        MissingDependencyError: When pyarrow is not installed.
    """
    for file in [path] if path.is_file() else _parts(path):
        with _reading(file) as parquet:
            opened = parquet.ParquetFile(file)
        content, paths = _columns(opened.schema_arrow, file)
        first = 0
        for group in range(opened.num_row_groups):
            count = opened.metadata.row_group(group).num_rows
            names: list[Any] = [None] * count
            if paths is not None:
                with _reading(file):
                    names = _values(opened.read_row_group(group, columns=[paths]), paths)
            for row, name in enumerate(names):
                if content is None:
                    yield str(name)
                else:
                    called = Path(str(name)).name if name else f"{file.stem}_{first + row:06d}.jpg"
                    yield TableImage(file, called, content, group, row)
            first += count


def _columns(schema: Any, file: Path) -> tuple[str | None, str | None]:
    """Return the columns of the images' bytes and of their paths, None where there is none.

    Raises:
        DataError: When there is neither.
    """
    kinds: dict[str, str] = {}
    for column in schema:
        kinds[column.name] = str(column.type)
        for number in range(column.type.num_fields):
            inner = column.type.field(number)
            kinds[f"{column.name}.{inner.name}"] = str(inner.type)
    content = next((name for name in _CONTENTS if kinds.get(name) in ("binary", "large_binary")), None)
    paths = next((name for name in _PATHS if kinds.get(name) in ("string", "large_string")), None)
    if content is None and paths is None:
        raise DataError(
            f"'{file}' has the columns {', '.join(schema.names)}; expected paths in one of {_any(_PATHS)}, or the "
            f"bytes of image files in one of {_any(_CONTENTS)}."
        )
    return content, paths


def _parts(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() == PARQUET_SUFFIX and file.is_file())


def _any(names: tuple[str, ...]) -> str:
    return ", ".join(f"'{name}'" for name in names)


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """Yield ``pyarrow.parquet``; whatever it raises over a file becomes a `DataError`."""
    with needs("pyarrow", "pip install 'yolox-cpu[tables]'"):
        import pyarrow
        import pyarrow.parquet
    try:
        yield pyarrow.parquet
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(
            f"'{path}' is no readable Parquet file: {str(error).splitlines()[0]}. Write it again."
        ) from error


def _values(table: Any, name: str) -> list[Any]:
    top, _, inner = name.partition(".")
    values = table.column(top).to_pylist()
    return [value and value[inner] for value in values] if inner else list(values)


@lru_cache(maxsize=1)
def _column(path: Path, group: int, name: str, top: str) -> Any:
    """Return a column of a row group as Arrow holds it; images of a table are asked for in the order of its rows."""
    with _reading(path) as parquet:
        return parquet.ParquetFile(path).read_row_group(group, columns=[name]).column(top)
