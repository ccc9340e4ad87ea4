from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from checkpoints import described
from numpy.typing import NDArray

from yolox.config import apply_fields
from yolox.experiments import get_experiment
from yolox.models.detector import build_detector
from yolox.tools.demo import main

NAMES = ("apple", "bolt", "crab")


def eager(num_classes: int = 3) -> dict[str, Any]:
    """A checkpoint whose network sees objects everywhere."""
    torch.manual_seed(0)
    experiment = apply_fields(get_experiment("yolox_nano"), {"num_classes": num_classes, "eval.test_size": "64"})
    detector = build_detector(experiment.model)
    for branch in (detector.head.cls_preds, detector.head.obj_preds):
        for conv in branch:
            assert isinstance(conv, torch.nn.Conv2d)
            assert conv.bias is not None
            torch.nn.init.constant_(conv.bias, 3.0)
    return described(experiment, NAMES[:num_classes], detector)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("demo") / "model.pth"
    torch.save(eager(), path)
    return str(path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "in"
    (folder / "deep er").mkdir(parents=True)
    for name in ("one.jpg", "TWO.PNG", "deep er/one.jpg", "deep er/three.webp"):
        assert cv2.imwrite(str(folder / name), rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    (folder / "notes.txt").write_text("no image")
    return folder


def read_image(path: Path) -> NDArray[Any]:
    image = cv2.imread(str(path))
    assert image is not None
    return image


def test_folder_of_images(checkpoint: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["image", "--path", str(pictures), "-c", checkpoint, "--output_dir", str(out)]) == 0
    written = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert written == ["TWO.PNG", "deep er/one.jpg", "deep er/three.webp", "one.jpg"]
    for name in written:
        assert read_image(out / name).shape == (40, 60, 3)
    assert not np.array_equal(read_image(out / "TWO.PNG"), read_image(pictures / "TWO.PNG"))
    shown = capsys.readouterr().out
    assert shown.count(" objects (") == 4
    assert shown.count(" ms") == 4
    assert any(name in shown for name in NAMES)


def test_bad_images_are_skipped_by_name(
    checkpoint: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (pictures / "one.jpg").read_bytes()
    (pictures / "bad.jpg").write_bytes(whole[: len(whole) // 2])
    (pictures / "empty.png").write_bytes(b"")
    assert main(["image", "--path", str(pictures), "-c", checkpoint]) == 0
    shown = capsys.readouterr()
    assert "bad.jpg' is unreadable or truncated" in shown.err
    assert "empty.png' is unreadable" in shown.err
    assert "2 of 6 images were skipped" in shown.out
    assert "--save_result writes them" in shown.out
    assert main(["image", "--path", str(pictures / "bad.jpg"), "-c", checkpoint]) == 3


def test_official_place_of_the_results(
    checkpoint: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["image", "--path", str(pictures / "one.jpg"), "-c", checkpoint, "--save_result", "-expn", "run"]
    assert main([*words, "--conf", "0.3", "--nms", "0.3", "--tsize", "96", "--precision", "bf16"]) == 0
    assert len(list((tmp_path / "YOLOX_outputs" / "run" / "vis_res").glob("*/one.jpg"))) == 1


def test_video(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (64, 48))
    if not writer.isOpened():
        pytest.skip("this OpenCV cannot write the test video")
    for shade in (0, 100, 200):
        writer.write(np.full((48, 64, 3), shade, np.uint8))
    writer.release()
    out = tmp_path / "out"
    assert main(["video", "--path", str(file), "-c", checkpoint, "--output_dir", str(out)]) == 0
    assert "frame 3:" in capsys.readouterr().out
    capture = cv2.VideoCapture(str(out / "film.mp4"))
    assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == 3
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(10.0)
    capture.release()


def refused(capsys: pytest.CaptureFixture[str], words: list[str], code: int, *parts: str) -> None:
    assert main(words) == code
    error = capsys.readouterr().err
    assert "Traceback" not in error
    for part in parts:
        assert part in error


def test_bad_input(checkpoint: str, pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    some = ["--path", str(pictures)]
    refused(capfd, ["picture", *some, "-c", checkpoint], 2, "invalid choice: 'picture'")
    refused(capfd, ["image", "-c", checkpoint], 2, "no --path given")
    refused(capfd, ["image", *some], 2, "expected -c FILE")
    refused(capfd, ["image", *some, "-c", checkpoint, "--model", "x"], 2, "expected one of them")
    refused(capfd, ["image", *some, "-c", checkpoint, "--save_results"], 2, "Did you mean '--save_result'")
    refused(capfd, ["image", "--path", "nowhere", "-c", checkpoint], 3, "'nowhere' does not exist")
    (tmp_path / "empty").mkdir()
    refused(capfd, ["image", "--path", str(tmp_path / "empty"), "-c", checkpoint], 3, "holds no image")
    refused(capfd, ["video", "--path", str(pictures / "notes.txt"), "-c", checkpoint], 3, "cannot open video")
    refused(capfd, ["image", *some, "-c", str(tmp_path / "none.pth")], 4, "does not exist")
    refused(capfd, ["image", *some, "--model", str(tmp_path / "none")], 4, "does not exist")


@pytest.mark.parametrize("tool", ["demo", "eval", "export"])
def test_help_is_quick_and_imports_nothing_heavy(tool: str) -> None:
    code = (
        f"import sys; from yolox.tools.{tool} import main; code = main(['--help']); "
        "heavy = {'torch', 'cv2', 'pytorch_lightning'} & set(sys.modules); print(heavy, file=sys.stderr); "
        "sys.exit(code + 10 * len(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: python -m yolox.tools." in done.stdout


@pytest.mark.backends
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("accelerator", "needs_torch"), [("openvino", False), ("jit", True)])
def test_a_deployed_model_finds_the_same_and_imports_only_what_it_needs(
    checkpoint: str, pictures: Path, tmp_path: Path, accelerator: str, needs_torch: bool
) -> None:
    pytest.importorskip("openvino")
    from yolox.checkpoint import load_model
    from yolox.inference.artifacts.model import save_model
    from yolox.inference.convert.trace import trace
    from yolox.models.decoding import DecodedDetector

    detector = DecodedDetector(load_model(checkpoint).detector).eval()
    fast = trace(detector, torch.zeros(1, 3, 64, 64), accelerator=accelerator, thread_num=2)
    save_model(fast, tmp_path / "fast", {"class_names": list(NAMES)})
    code = (
        "import sys; from yolox.tools.demo import main; code = main(sys.argv[1:]); "
        "print('torch' in sys.modules, file=sys.stderr); sys.exit(code)"
    )
    shown = []
    trust = ["--trust"] if accelerator == "jit" else []
    for model in (["--model", str(tmp_path / "fast"), *trust], ["-c", checkpoint]):
        words = ["image", "--path", str(pictures), *model]
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        shown.append([line.rpartition(",")[0] for line in done.stdout.splitlines() if " objects (" in line])
        assert done.stderr.strip().endswith(str(needs_torch or "-c" in model))
    assert len(shown[0]) == 4
    assert shown[0] == shown[1]


def test_names_of_files_and_classes_cannot_steer_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = eager()
    content["class_names"] = ["\x1b[31mred", "two", "three"]
    torch.save(content, tmp_path / "model.pth")
    (tmp_path / "in").mkdir()
    assert cv2.imwrite(str(tmp_path / "in" / "a\x1b[2J.png"), np.zeros((40, 60, 3), np.uint8))
    assert main(["image", "--path", str(tmp_path / "in"), "-c", str(tmp_path / "model.pth")]) == 0
    said = capsys.readouterr()
    assert "a\\x1b[2J.png: " in said.out
    assert "\x1b" not in said.out + said.err
