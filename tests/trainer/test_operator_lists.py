from __future__ import annotations

from pathlib import Path

import pytest

from yolox.errors import UsageError
from yolox.trainer.operator_precision import read_operator_lists


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_of_operators_in_any_unicode_encoding(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "bf16.txt").write_bytes("add  # sums\r\nno_such_name\r\n".encode(encoding))
    lists = read_operator_lists(tmp_path / "bf16.txt", None)
    assert lists.bf16 == {"add"}
    assert lists.unknown == ("no_such_name",)


def test_another_encoding_and_no_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"add \xe9")
    with pytest.raises(UsageError, match=r"list\.txt' is not UTF-8 text"):
        read_operator_lists(None, tmp_path / "list.txt")
    with pytest.raises(UsageError, match="cannot read"):
        read_operator_lists(tmp_path / "absent.txt", None)
