"""`YOLOX` in Python: the examples of its documentation, and that it is what the commands do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from self_labelled import NAMES, write_checkpoint, write_data

from yolox import YOLOX, Result
from yolox.errors import DataError, ModelFileError, UsageError
from yolox.tools.eval import main as eval_main


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "mine.pth")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "coco", checkpoint)


def test_predict(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    model = YOLOX(checkpoint)
    assert model.class_names == NAMES
    results = list(model.predict(data / "val2017", confidence=0.3, batch_size=2))
    assert [result.name for result in results] == [f"{number:03d}.png" for number in range(1, 6)]
    assert all(isinstance(result, Result) and len(result.boxes) for result in results)
    first = results[0]
    assert (np.diff(first.boxes.scores) <= 0).all()
    assert float(first.boxes.scores.min()) >= 0.3
    array = cv2.imread(str(data / "val2017" / "001.png"))
    (alone,) = model.predict(array, confidence=0.3)
    assert np.allclose(alone.boxes.xyxy, first.boxes.xyxy, atol=1e-3)
    assert alone.boxes.names == first.boxes.names
    (some,) = model.predict(array, confidence=0.01, classes=(2,))
    assert set(some.boxes.labels.tolist()) <= {2}
    assert first.save(tmp_path / "found.jpg").is_file()


def test_val_is_the_command(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    result = YOLOX(checkpoint).val(data, num_workers=0)
    words = ["-c", str(checkpoint), "--data_dir", str(data), "--num_workers", "0", "--json", str(tmp_path / "r.json")]
    assert eval_main(words) == 0
    told = json.loads((tmp_path / "r.json").read_text())
    assert told["AP"] == result.metrics["AP"] > 0.1


@pytest.mark.processes
def test_several_processes_give_the_same_ap(checkpoint: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-c", str(checkpoint), "--data_dir", str(data), "--num_workers", "0", "--json"]
    facts = []
    for extra in ([], ["--num_processes", "2"]):
        assert eval_main([*words, *extra]) == 0
        facts.append(json.loads(capsys.readouterr().out))  # stdout holds JSON and nothing else
    for key in ("AP", "AP50", "AR100", "images", "detections"):
        assert facts[0][key] == pytest.approx(facts[1][key], abs=1e-9), key
    assert eval_main([*words, "--num_processes", "2", "--conf", "0.99999"]) == 0  # a share without any detection


def test_train_returns_the_new_model(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    annotations = data / "annotations"
    (annotations / "instances_train2017.json").write_bytes((annotations / "instances_val2017.json").read_bytes())
    (data / "train2017").symlink_to(data / "val2017")
    options = {"batch_size": 2, "num_workers": 0, "logger": "none", "output_dir": tmp_path, "warmup_epochs": 0}
    trained = YOLOX(checkpoint).train(data, epochs=1, no_aug_epochs=0, mosaic_prob=0.0, random_size=(2, 2), **options)
    assert Path(trained.model).parent == tmp_path / "mine"
    assert trained.class_names == NAMES
    again = YOLOX(checkpoint).train(data, epochs=1, dry_run=True, experiment_name="other", **options)
    assert not (tmp_path / "other").exists()
    assert Path(again.model).parent == tmp_path / "other"
    with pytest.raises(UsageError, match="unknown option 'epoch'"):
        YOLOX(checkpoint).train(data, epoch=3)


@pytest.mark.backends
def test_exported_and_official_outputs_are_predicted_alike(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = YOLOX(checkpoint)
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8)
    boxes, scores = model.predictor.run_batch(images)
    for number, options in enumerate(({"two_outputs": True}, {"decode_in_inference": True}, {})):
        file = model.export(tmp_path / f"{number}.onnx", **options)
        deployed = YOLOX(file)
        assert deployed.class_names == NAMES
        found_boxes, found_scores = deployed.predictor.run_batch(images)  # two images through a fixed batch of one
        assert np.allclose(found_boxes, boxes, atol=0.05)
        assert np.allclose(found_scores, scores, atol=1e-3)
        assert [result.name for result in deployed.predict(data / "val2017", batch_size=2)][4] == "005.png"
        with pytest.raises(UsageError, match="deployed model"):
            deployed.export(tmp_path / "again.onnx")
    result = YOLOX(tmp_path / "0.onnx").val(data, num_workers=0)
    assert result.metrics["AP"] == pytest.approx(model.val(data, num_workers=0).metrics["AP"], abs=0.05)  # near ties
    code = (
        "import sys; from yolox import YOLOX; print(len(list(YOLOX(sys.argv[1]).predict(sys.argv[2])))); "
        "sys.exit('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "0.onnx"), str(data / "val2017")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "5"), done.stderr


def test_import_costs_nothing() -> None:
    code = "import sys; import yolox; sys.exit(bool({'numpy', 'torch', 'cv2'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_mistakes_are_told_at_once(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        YOLOX(checkpoint).predict(tmp_path / "nowhere.jpg")
    with pytest.raises(ModelFileError, match="does not exist"):
        YOLOX(tmp_path / "none.pth").predict(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ModelFileError, match="ONNX"):
        (tmp_path / "bad.onnx").write_bytes(b"no model")
        YOLOX(tmp_path / "bad.onnx").predict(np.zeros((8, 8, 3), np.uint8))
