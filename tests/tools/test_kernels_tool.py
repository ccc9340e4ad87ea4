"""The table of the kernels of a network on the command line."""

from __future__ import annotations

import pytest

from yolox.tools.kernels import main


@pytest.mark.usefixtures("bf16_products")
def test_the_table_says_what_computes_each_layer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-n", "yolox_nano", "--precision", "bf16", "-b", "2"]) == 0
    text = capsys.readouterr().out
    (stem,) = [line for line in text.splitlines() if line.startswith("backbone.backbone.stem.conv.conv + bn ")]
    assert "space-to-depth and 3x3 as one 6x6 convolution" in stem
    assert "116 of 116 lines with kernels" in text
    assert "a step is repeated as two programs: " in text
    assert main(["-n", "yolox_nano"]) == 0
    assert "no kernel for the stem in this precision" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "no network named"),
        (["-n", "yolox_nano", "--precision", "64"], "precision is '64'; expected 32 or bf16"),
        (["-n", "yolox_nano", "--tsize", "50"], "multiple of 32"),
    ],
)
def test_bad_input_is_answered(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert part in capsys.readouterr().err
