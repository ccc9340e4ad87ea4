"""Lists and tables of images as a source."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolox.errors import DataError, MissingDependencyError
from yolox.prediction.sources import Sources


def image(level: int) -> np.ndarray:
    return np.full((4, 6, 3), level, np.uint8)


def encoded(level: int) -> bytes:
    return cv2.imencode(".png", image(level))[1].tobytes()


def levels(source: object) -> list[int]:
    return [int(picture.image[0, 0, 0]) for picture in Sources(source)]


def names(source: object) -> list[str]:
    return [picture.name for picture in Sources(source)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep er").mkdir()
    for number, name in enumerate(("a.png", "deep er/bü.png")):
        (tmp_path / name).write_bytes(encoded(10 * number))
    return tmp_path


def write_parquet(path: Path, columns: dict[str, object], rows: int = 2) -> Path:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed (pip install '.[tables]')")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table(columns), path, row_group_size=rows)
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", "# pictures\ndeep er/bü.png\n\na.png\n"),
        ("list.csv", "deep er/bü.png\r\na.png\r\n"),
        ("table.csv", 'size,path\n1,"deep er/bü.png"\n2,a.png\n'),
    ],
)
def test_lists(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text, encoding="utf-8-sig")
    assert levels(folder / name) == [10, 0]
    assert names(folder / name) == ["deep er/bü.png", "a.png"]
    assert len(Sources(folder / name).shared_items()) == 2


def test_lists_that_name_no_pictures(folder: Path) -> None:
    for name, content, part in (
        ("two.csv", b"size,weight\n1,2\n", "has the columns size, weight; expected one of 'path'"),
        ("empty.csv", b"", "has the columns none"),
        ("empty.txt", b"\n", "holds no picture"),
        ("bytes.txt", b"\xff\xfe\x00\x01", "cannot be read"),
    ):
        (folder / name).write_bytes(content)
        with pytest.raises(DataError, match=part):
            Sources(folder / name)
    (folder / "gone.txt").write_text("gone.png\na.png\n")
    sources = Sources(folder / "gone.txt")
    assert [picture.name for picture in sources] == ["a.png"]
    assert sources.skipped == [folder / "gone.png"]


def test_tables_of_paths(folder: Path) -> None:
    table = write_parquet(folder / "t.parquet", {"path": ["deep er/bü.png", "a.png", "a.png"], "size": [1, 2, 3]})
    assert levels(table) == [10, 0, 0]


def test_tables_of_pictures(folder: Path) -> None:
    contents = [encoded(level) for level in range(1, 5)] + [b"broken", None]
    spark = write_parquet(folder / "s.parquet", {"path": [f"file:/x/{n}.png" for n in "abcdef"], "content": contents})
    assert levels(spark) == [1, 2, 3, 4]
    assert names(spark) == ["a.png", "b.png", "c.png", "d.png"]
    rows = [{"bytes": encoded(7), "path": None}, {"bytes": encoded(8), "path": "h.png"}]
    hugging_face = write_parquet(folder / "h.parquet", {"image": rows, "label": [0, 1]})
    assert levels(hugging_face) == [7, 8]
    assert names(hugging_face) == ["h_000000.jpg", "h.png"]
    parts = folder / "parts"
    parts.mkdir()
    for number in (1, 0):
        write_parquet(parts / f"part-{number}.parquet", {"bytes": [encoded(number), encoded(number + 10)]}, rows=1)
    assert levels(parts) == [0, 10, 1, 11]
    assert names(parts)[1] == "part-0_000001.jpg"
    sources = Sources(spark)
    list(sources)
    assert [path.name for path in sources.skipped] == ["e.png", "f.png"]


def test_tables_that_cannot_be_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"has the columns size, label; expected paths in one of 'path'"):
        Sources(write_parquet(folder / "none.parquet", {"size": [1], "label": ["x"]}))
    (folder / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="no readable Parquet file"):
        Sources(folder / "broken.parquet")
    damaged = bytearray(write_parquet(folder / "damaged.parquet", {"path": ["a.png"] * 50}).read_bytes())
    damaged[4:40] = b"\xff" * 36  # the pages of the first column
    (folder / "damaged.parquet").write_bytes(damaged)
    with pytest.raises(DataError, match=r"damaged\.parquet' is no readable Parquet file"):
        list(Sources(folder / "damaged.parquet"))
    vanishing = Sources(write_parquet(folder / "gone.parquet", {"bytes": [encoded(1), encoded(2)]}))
    (folder / "gone.parquet").unlink()
    assert list(vanishing) == []
    assert len(vanishing.skipped) == 2
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"yolox-cpu\[tables\]"):
        Sources(folder / "broken.parquet")
