"""Training with IPEX: where it runs, and, where .venv-ipex has been built, that it learns what PyTorch learns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from yolox.cpu import ipex_location
from yolox.cpu.ipex_location import VARIABLE, IpexLocation, locate_ipex
from yolox.cpu.machine import read_machine
from yolox.data.sample_dataset import draw_sample_set
from yolox.errors import MissingDependencyError, UsageError
from yolox.trainer.ipex import GUARD, IpexTraining, plan_ipex, rerun_environment, run_again
from yolox.trainer.plan import IPEX
from yolox.trainer.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
ELSEWHERE = IpexLocation(False, Path("/opt/ipex/bin/python"), "IPEX is in /opt/ipex/bin/python.")
CAN_PACK_BF16 = "avx512f" in read_machine().isa
TOLERANCES = {"SGD 32": 1e-5, "AdamW 32": 1e-5, "SGD bf16": 5e-3, "AdamW bf16": 5e-3 if CAN_PACK_BF16 else 5e-2}
"""AdamW moves weights by whole learning rates (0.01) where rounding changes the sign of a tiny gradient."""
NOWHERE = IpexLocation(False, None, "IPEX was not found.")

TRAIN = """
import copy, json, torch
from torch import nn
from yolox.trainer.ipex import PreparedModule

def layers():
    torch.manual_seed(0)
    return nn.ModuleDict({"net": nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.SiLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.SiLU(), nn.Conv2d(16, 8, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))})

def train(module, optimizer, half):
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        x, y = torch.randn(8, 3, 16, 16, generator=generator), torch.randint(0, 4, (8,), generator=generator)
        def closure():
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                out = module["net"](x)
            loss = nn.functional.cross_entropy(out.float(), y)
            loss.backward()
            return loss
        optimizer.step(closure)

def largest(a, b):
    return max(float((a[key].double() - b[key].double()).abs().max()) for key in a)

answers = {}
for name, options in (("SGD", {"momentum": 0.9, "nesterov": True, "fused": True}), ("AdamW", {})):
    for precision in ("32", "bf16"):
        plain = layers()
        ours = copy.deepcopy(plain)
        make = getattr(torch.optim, name)
        optimizers = [make(m.parameters(), lr=0.01, **options) for m in (plain, ours)]
        names = set(vars(ours["net"][0]))
        prepared = PreparedModule(ours, optimizers[1], precision)
        published = largest(plain["net"].state_dict(), ours["net"].state_dict())
        train(plain, optimizers[0], precision == "bf16")
        train(ours, optimizers[1], precision == "bf16")
        while_prepared = {key: value.clone() for key, value in ours["net"].state_dict().items()}
        prepared.restore_()
        shapes = [tuple(value.shape) for state in optimizers[1].state.values() for value in state.values()
                  if torch.is_tensor(value) and value.dim()]
        train(ours, optimizers[1], precision == "bf16")  # both go on without IPEX
        train(plain, optimizers[0], precision == "bf16")
        answers[f"{name} {precision}"] = {
            "note": prepared.note,
            "published": published,
            "keys": sorted(set(while_prepared) ^ set(plain["net"].state_dict())),
            "dtypes": sorted({str(value.dtype) for value in while_prepared.values()}),
            "after": largest(plain.state_dict(), ours.state_dict()),
            "type": type(ours["net"][0]).__name__,
            "names": sorted(set(vars(ours["net"][0])) ^ names),
            "shapes": [list(shape) for shape in shapes],
        }
print(json.dumps(answers))
"""


@pytest.fixture(scope="session")
def ipex_python() -> str:
    location = locate_ipex(folders=(ROOT,))
    if location.importable:
        return sys.executable
    if location.interpreter is None:
        pytest.skip(f"{location.reason} Run 'make ipex'.")
    return str(location.interpreter)


def fake_python(folder: Path, body: str) -> Path:
    python = folder / ".venv-ipex" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{body}\n")
    python.chmod(0o755)
    return python


def test_finds_the_environment_and_keeps_its_own_path(tmp_path: Path) -> None:
    python = fake_python(tmp_path, """echo '["2.8.0+cpu", "2.8.0"]'""")
    location = locate_ipex({}, (tmp_path / "absent", tmp_path), look_here=False)
    assert location.interpreter == python
    assert location.found
    assert not location.importable


def test_a_half_built_environment_is_not_used_and_named(tmp_path: Path) -> None:
    python = fake_python(tmp_path, "echo 'No package metadata was found' >&2; exit 1")
    location = locate_ipex({}, (tmp_path,), look_here=False)
    assert not location.found
    assert str(python) in location.reason
    assert "No package metadata" in location.reason


def test_another_pytorch_beside_ipex_is_refused(tmp_path: Path) -> None:
    python = fake_python(tmp_path, """echo '["2.13.0", "2.8.0"]'""")
    with pytest.raises(UsageError, match=r"IPEX 2\.8\.0 beside PyTorch 2\.13\.0"):
        locate_ipex({VARIABLE: str(python)}, (), look_here=False)


def test_the_variable_wins_and_a_wrong_one_is_an_error(tmp_path: Path) -> None:
    fake_python(tmp_path, """echo '["2.8.0", "2.8.0"]'""")
    other = fake_python(tmp_path / "other", """echo '["2.8.0", "2.8.0"]'""")
    assert locate_ipex({VARIABLE: str(other)}, (tmp_path,), look_here=False).interpreter == other
    with pytest.raises(UsageError, match=f"{VARIABLE} is '/no/python'.*does not run.*make ipex"):
        locate_ipex({VARIABLE: "/no/python"}, (tmp_path,), look_here=False)


def test_this_python_is_the_first_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipex_location, "_own_versions", lambda: ("2.8.0+cpu", "2.8.0"))
    assert locate_ipex({VARIABLE: "/no/python"}).importable
    monkeypatch.setattr(ipex_location, "_own_versions", lambda: ("2.13.0", "2.8.0"))
    assert not locate_ipex({}, ()).found


def test_plan_runs_the_same_command_elsewhere_once() -> None:
    plan = plan_ipex(ELSEWHERE, "yolox.tools.train", ["-n", "yolox_nano", "--use_ipex"], environment={})
    assert plan.command == ("/opt/ipex/bin/python", "-m", "yolox.tools.train", "-n", "yolox_nano", "--use_ipex")
    assert "runs again there" in plan.note
    second = plan_ipex(ELSEWHERE, "yolox.tools.train", [], environment={GUARD: "1"})
    assert second.command is None
    assert not second.available


def test_plan_without_a_module_names_the_python_to_start() -> None:
    plan = plan_ipex(ELSEWHERE, environment={})
    assert plan.command is None
    assert "start it with /opt/ipex/bin/python" in plan.note


def test_plan_goes_on_with_a_note_and_strict_refuses() -> None:
    plan = plan_ipex(NOWHERE, "yolox.tools.train", [], environment={})
    assert plan.command is None
    for part in ("channels_last", "fused optimizer", "oneDNN", "make ipex", "--strict"):
        assert part in plan.note
    with pytest.raises(MissingDependencyError, match="make ipex"):
        plan_ipex(NOWHERE, "yolox.tools.train", [], strict=True, environment={})
    assert plan_ipex(ELSEWHERE, "m", [], strict=True, environment={}).command is not None


def test_importable_ipex_is_used_here() -> None:
    plan = plan_ipex(IpexLocation(True, None, "IPEX 2.8.0 with PyTorch 2.8.0 is used."), "m", [], strict=True)
    assert plan.available
    assert plan.command is None


def test_the_second_run_gets_arguments_guard_and_exit_code(tmp_path: Path) -> None:
    python = fake_python(tmp_path, f'echo "$@" "${GUARD}" "$PYTHONPATH" > {tmp_path}/seen; exit 7')
    location = locate_ipex_without_probe(python)
    assert run_again(plan_ipex(location, "some.tool", ["a b", "-c"], environment={}), replace=False) == 7
    seen = (tmp_path / "seen").read_text()
    assert seen.startswith("-m some.tool a b -c 1")
    assert str(ROOT) in seen


def test_a_second_run_that_is_killed_has_the_shell_s_exit_code(tmp_path: Path) -> None:
    python = fake_python(tmp_path, "kill -9 $$")
    plan = plan_ipex(locate_ipex_without_probe(python), "some.tool", [], environment={})
    assert run_again(plan, replace=False) == 128 + 9


def locate_ipex_without_probe(python: Path) -> IpexLocation:
    return IpexLocation(False, python, "there")


def test_rerun_environment_keeps_what_the_user_set() -> None:
    changed = rerun_environment({"PYTHONPATH": "/mine", "TORCH_CPP_LOG_LEVEL": "INFO"})
    assert changed["PYTHONPATH"] == os.pathsep.join((str(ROOT), "/mine"))
    assert changed["TORCH_CPP_LOG_LEVEL"] == "INFO"
    assert changed[GUARD] == "1"


@pytest.mark.parametrize("exception", [{}, {"fp32_modules": ["net.0"]}, {"bf16_operations": "list.txt"}])
def test_exceptions_from_bf16_keep_the_weights_in_fp32(
    exception: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yolox.trainer.trainer.find_spec", lambda name: name == IPEX or None)
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text("sigmoid\n")
    trainer = Trainer(use_ipex=True, precision="bf16", logger=False, enable_progress_bar=False, **exception)
    (callback,) = [item for item in trainer.callbacks if isinstance(item, IpexTraining)]  # type: ignore[attr-defined]
    assert callback.bf16_weights == (not exception)


@pytest.mark.processes
def test_the_training_tool_trains_with_ipex(ipex_python: str, tmp_path: Path) -> None:
    """Started in this Python, it runs in the other one, with two processes."""
    draw_sample_set(tmp_path / "data", num_train=8, num_val=2)
    words = f"-n yolox_nano -b 4 --data_dir {tmp_path}/data --output_dir {tmp_path} --num_workers 0 --logger none"
    options = "--use_ipex --strict --precision bf16 --num_processes 2"
    small = "input_size 64 test_size 64 random_size 2,3 max_epoch 1 warmup_epochs 0 no_aug_epochs 0"
    command = [sys.executable, "-m", "yolox.tools.train", *words.split(), *options.split(), *small.split()]
    environment = {**os.environ, VARIABLE: ipex_python, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((tmp_path / "yolox_nano" / "run.json").read_text())
    assert report["plan"]["ipex"]
    assert report["versions"]["torch"].startswith("2.8")
    assert report["steps_done"] == 2
    text = done.stdout + done.stderr
    if CAN_PACK_BF16:
        assert "IPEX packed the weights of" in text
        assert "fused the step of SGD" in text
    else:
        assert "IPEX left the weights as they are, since this processor has no AVX-512" in text


@pytest.mark.processes
def test_prepared_modules_learn_publish_and_come_back(ipex_python: str) -> None:
    environment = {**rerun_environment(os.environ), "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [ipex_python, "-c", TRAIN], capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout.strip().splitlines()[-1])
    for name, answer in answers.items():
        assert answer["published"] == 0.0, name
        assert answer["dtypes"] == ["torch.float32", "torch.int64"], name
        assert answer["type"] == "Conv2d", name
        assert answer["names"] == answer["keys"] == [], name
        assert answer["after"] < TOLERANCES[name], (name, answer["after"])
        assert [16, 3, 3, 3] in answer["shapes"], name
    expected = ("bf16 and fused the step of SGD", "no step of AdamW") if CAN_PACK_BF16 else ("no AVX-512", "no AVX-512")
    assert expected[0] in answers["SGD bf16"]["note"]
    assert expected[1] in answers["AdamW bf16"]["note"]
