"""Every block of code of every page runs, on small data; what cannot run here is parsed by what would read it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from doc_pages import Block, blocks, commands, pages, prose
from doc_shell import Shell

RUN_ELSEWHERE = {
    "docs/first-detector.md": "test_first_detector.py, with labels in six formats",
    "docs/tuning.md": "test_search_example.py",
}
SHOWN = {"", "text", "{toctree}", "{eval-rst}"}
"""Blocks of these languages hold output, diagrams and directives of the site."""
COMMAND = re.compile(
    r"^\s*(\$ |yolox |python3? |pip |make |docker |curl |torchrun |srun |import |from \w+ import )", re.MULTILINE
)
PYTHON_SHORTER = {
    "/data/mine": "mine",
    "epochs=100": "epochs=1, batch_size=8, steps=1, num_workers=0, logger='none', input_size=64, test_size=64",
    'optimize("deployed"': 'optimize("deployed", methods=["native_int8"], batch_size=1',
    "num_processes=4": "num_processes=2",
    "metric=accuracy": "metric=accuracy, methods=['native_int8'], latency_sample_num=2",
}
"""What makes the Python of the pages short."""
WRITTEN = {
    ("docs/predict.md", "bash"): ("found/predictions.csv", "film_found/film.mp4"),
    ("docs/predict.md", "python"): ("street_found.jpg",),
    ("README.md", "python"): ("street_found.jpg",),
}
"""Files that the blocks of a page and a language leave behind."""


def runnable(language: str) -> list[Block]:
    return [block for page in pages() if page not in RUN_ELSEWHERE for block in blocks(page, language)]


@pytest.mark.parametrize("page", pages())
def test_no_block_escapes(page: str) -> None:
    """A command or a Python program stands in a block of a language that the tests below run."""
    for block in blocks(page):
        assert block.language in {"bash", "python"} | SHOWN, f"{block}: ```{block.language} is run by no test"
        if block.language in SHOWN and block.language != "{eval-rst}":
            assert not COMMAND.search(block.text), f"{block}: code in a block without its language"
    for indented in re.findall(r"\n\n((?: {4}.*\n)+)", prose(page)):
        assert not COMMAND.search(indented), f"{page}: {indented.strip()}: put it into a fenced block"


def test_blocks_run_elsewhere_exist() -> None:
    for page, test in RUN_ELSEWHERE.items():
        assert blocks(page, "bash")
        assert (Path(__file__).parent / test.split(",")[0]).is_file()


def _pages_with_commands() -> list[str]:
    return sorted({block.page for block in runnable("bash")})


@pytest.mark.backends
@pytest.mark.processes
@pytest.mark.parametrize("page", _pages_with_commands())
def test_commands(page: str, pages_folder: Path) -> None:
    _run_commands(page, whole=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/trainer.md"])
def test_commands_of_several_processes(page: str, pages_folder: Path) -> None:
    _run_commands(page, whole=True)


def _run_commands(page: str, *, whole: bool) -> None:
    for module in ("onnxscript", "uvicorn", "openvino"):
        pytest.importorskip(module)
    count = 0
    with Shell(whole=whole) as shell:
        for block in blocks(page, "bash"):
            for words in commands(block):
                shell.run(words)
                count += 1
    assert count > 0
    assert_files_are_written(page, "bash")


def assert_files_are_written(page: str, language: str) -> None:
    assert [name for name in WRITTEN.get((page, language), ()) if not Path(name).is_file()] == []


@pytest.mark.backends
@pytest.mark.parametrize("page", sorted({block.page for block in runnable("python")}))
@pytest.mark.filterwarnings("ignore")  # what Lightning says of a module this small
def test_python(page: str, pages_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for module in ("onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    for block in blocks(page, "python"):
        code = block.text
        for long, short in PYTHON_SHORTER.items():
            code = code.replace(long, short)
        names = given_names() if "import" in code else {}
        exec(compile(code, str(block), "exec"), names)
    assert_files_are_written(page, "python")
    if page == "README.md":
        assert names["fast"].model == "deployed"
        assert names["fast"].class_names == names["trained"].class_names
        assert 0 <= float(capsys.readouterr().out.splitlines()[-1]) <= 1


def given_names() -> dict[str, Any]:
    """What the blocks about a user's own module take for granted: the module, its data, a metric."""
    import pytorch_lightning as pl
    import torch
    from torch import Tensor, nn
    from torch.utils.data import DataLoader, TensorDataset

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2)
            )

        def forward(self, images: Tensor) -> Tensor:
            return self.net(images)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx), sync_dist=True)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.01)

    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 0, 1])), batch_size=2)
    return {
        "module": Module(),
        "model": Module().net.eval(),
        "loader": loader,
        "train_loader": loader,
        "val_loader": loader,
        "accuracy": lambda pred, target: (pred.argmax(1) == target).float().mean(),
    }
