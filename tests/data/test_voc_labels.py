"""Labels of Pascal VOC as people keep them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from label_files import codes, train, voc

from yolox.data.dataset_paths import load_split, resolve_dataset
from yolox.errors import DataError


def test_voc_names_with_spaces_flags_and_folders(tmp_path: Path) -> None:
    for stem in ("my photo (1)", "b", "c"):
        voc(tmp_path, stem, "a")
    listed = tmp_path / "ImageSets" / "Main" / "trainval.txt"
    listed.write_bytes("\ufeffmy photo (1)\r\nb  1\r\nJPEGImages/c.png\r\n".encode())
    data = train(tmp_path)
    assert [data.file_name(i) for i in range(3)] == ["my photo (1).png", "b.png", "c.png"]
    np.testing.assert_array_equal(data.objects(0)[0], [[10, 5, 30, 25]])
    assert (data.boxes_xywh[0] == [10, 5, 20, 20]).all()


def test_voc_lists_that_overlap_or_are_empty(tmp_path: Path) -> None:
    for stem in ("a", "b", "c"):
        voc(tmp_path, stem, "a")
    voc(tmp_path, "c", "a", list_name="val")
    (tmp_path / "ImageSets" / "Main" / "test.txt").touch()
    data = train(tmp_path)
    assert [data.file_name(i) for i in range(len(data))] == ["a.png", "b.png"]
    assert codes(data) == ["sizes-read", "lists-overlap"] or set(codes(data)) == {"sizes-read", "lists-overlap"}
    assert load_split(resolve_dataset(tmp_path).require("val")).file_name(0) == "c.png"


def test_voc_train_alone_trains_where_val_is_evaluated_on(tmp_path: Path) -> None:
    voc(tmp_path, "a", "a")
    voc(tmp_path, "b", "a")
    voc(tmp_path, "a", "a", list_name="train")
    voc(tmp_path, "b", "a", list_name="val")
    data = train(tmp_path)
    assert [data.file_name(i) for i in range(len(data))] == ["a.png"]
    assert "lists-overlap" not in codes(data)


def test_several_voc_folders_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    voc(tmp_path / "VOC2007", "a", "a")
    voc(tmp_path / "VOC2012", "b", "a")
    assert train(tmp_path).file_name(0) == "b.png"
    assert "VOC2012 is read; VOC2007 is left out" in caplog.text


def test_voc_in_an_encoding_that_the_parser_does_not_know(tmp_path: Path) -> None:
    voc(tmp_path, "a", "a")
    path = tmp_path / "Annotations" / "a.xml"
    text = path.read_text().replace("<name>a<", "<name>猫<")
    path.write_bytes(b'<?xml version="1.0" encoding="GBK"?>' + text.encode("gbk"))
    assert train(tmp_path).class_names == ("猫",)
    path.write_bytes(b'<?xml version="1.0" encoding="none-such"?>' + b"<annotation/>")
    with pytest.raises(DataError, match=r"a\.xml"):
        train(tmp_path)
