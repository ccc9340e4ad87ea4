"""Experiments as values, overrides and experiment files."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from yolox.config import apply_fields, experiment_from_dict, experiment_to_dict, flatten, parse_overrides
from yolox.errors import UsageError
from yolox.experiments import EXPERIMENTS, experiment_from_file, get_experiment
from yolox.structures import Size

NANO = EXPERIMENTS["yolox_nano"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_round_trip_through_plain_values(name: str) -> None:
    assert experiment_from_dict(experiment_to_dict(EXPERIMENTS[name])) == EXPERIMENTS[name]


CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "exp_name": st.text(
            st.characters(exclude_categories=["C", "Z"], exclude_characters="/\\\\."), min_size=1, max_size=9
        ),
        "max_epoch": st.integers(1, 10**6),
        "basic_lr_per_img": st.floats(1e-9, 1),
        "input_size": st.builds(
            Size, st.integers(1, 40).map(lambda k: 32 * k), st.integers(1, 40).map(lambda k: 32 * k)
        ),
        "random_size": st.none() | st.tuples(st.integers(1, 9), st.integers(9, 20)),
        "milestones": st.lists(st.integers(0, 99), max_size=4).map(lambda k: tuple(sorted(k))),
        "act": st.sampled_from(["silu", "relu", "lrelu"]),
        "ema": st.booleans(),
        "data_dir": st.none() | st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=20),
    },
)


@given(CHANGES)
def test_every_way_of_writing_an_experiment_down_gives_it_back(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, object]
) -> None:
    """Plain values, YAML as ``yolox settings`` prints it, and words of the command line."""
    changed = apply_fields(NANO, changes)
    assert experiment_from_dict(experiment_to_dict(changed)) == changed
    file = tmp_path_factory.getbasetemp() / "written.yaml"
    file.write_text(yaml.safe_dump(experiment_to_dict(changed), sort_keys=False, default_flow_style=None), "utf-8")
    assert experiment_from_file(file) == changed
    words = [
        f"{key}={','.join(map(str, value)) if isinstance(value, tuple) else value}" for key, value in changes.items()
    ]
    assert apply_fields(NANO, parse_overrides(words)) == changed


@pytest.mark.parametrize("name", ["yolox-nano", "YOLOX_NANO", "yolox_nano"])
def test_spellings(name: str) -> None:
    assert get_experiment(name) is NANO


def test_darknet_has_two_names() -> None:
    assert get_experiment("yolox-darknet53") is get_experiment("yolov3")


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'yolox_nano'"):
        get_experiment("yolox_nan")


def test_overrides_in_both_styles() -> None:
    changed = apply_fields(
        NANO, parse_overrides(["max_epoch", "2", "data.mosaic_prob=0.25", "ema", "False", "input_size", "320,352"])
    )
    assert changed.recipe.max_epoch == 2
    assert changed.data.mosaic_prob == 0.25
    assert changed.recipe.ema is False
    assert changed.data.input_size == Size(320, 352)
    assert NANO.recipe.ema is True


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["max_epch", "2"], "Did you mean 'max_epoch'"),
        (["max_epoch"], "has no value"),
        (["max_epoch", "two"], "expected a whole number"),
        (["max_epoch", "0"], "expected 1 or more"),
        (["ema", "maybe"], "expected true or false"),
        (["input_size", "400"], "multiples of 32"),
        (["mosaic_prob", "1.5"], "probability"),
        (["act", "gelu"], "silu or relu"),
        (["random_size", "10"], "2 numbers"),
        (["random_size", "0,3"], "from 1 to 256"),
        (["random_size", "5,3"], "ascending"),
        (["basic_lr_per_img", "nan"], "finite number"),
        (["basic_lr_per_img", "1e999"], "finite number"),
        (["basic_lr_per_img", "-1"], "a learning rate above 0"),
        (["weight_decay", "-0.1"], "from 0"),
        (["momentum", "1.5"], "at most 1"),
        (["seed", "-1"], "from 0 to 4294967295"),
        (["max_epoch", "1e300"], "expected a whole number"),
        (["input_size", "0"], "multiples of 32"),
        (["input_size", "32000"], "up to 8192"),
        (["width", "0"], "above 0"),
        (["width", "1000"], "at most 10"),
        (["num_classes", "1000000000"], "from 1 to 100000"),
        (["degrees", "inf"], "finite number"),
        (["mosaic_scale", "2,1"], "ascending"),
        (["mosaic_scale", "0,nan"], "finite number"),
        (["exp_name", "../elsewhere"], "plain name"),
        (["exp_name", ""], "plain name"),
        (["exp_name", ".."], "plain name"),
        (["exp_name", "a\x1b[31m"], "control characters"),
        (["data_dir", "a\0b"], "control characters"),
        (["freeze", "backbone,\x1b[2J"], "control characters"),
        (["on_nonfinite", "explode"], "expected stop or skip or restore. Give"),
    ],
)
def test_bad_overrides_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        apply_fields(NANO, parse_overrides(words))


def test_every_field_keeps_its_default() -> None:
    """The default of each field meets the constraints in its annotation."""
    for experiment in EXPERIMENTS.values():
        assert apply_fields(experiment, flatten(experiment_to_dict(experiment))) == experiment


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        ("yolox_nano", ["input_size", "64,128"], (2, 3)),  # 10...20 of 13, of 2
        ("yolox_nano", ["input_size", "832"], (20, 40)),
        ("yolox_nano", ["input_size", "64", "random_size", "1,4"], (1, 4)),
        ("yolox_nano", ["mosaic_prob", "0"], (10, 20)),
        ("yolox_s", [], (15, 25)),
        ("yolox_s", ["input_size", "320"], (5, 15)),
        ("yolox_s", ["input_size", "128,256"], (2, 6)),
        ("yolox_s", ["input_size", "32,640"], (1, 1)),
        ("yolox_s", ["input_size", "640", "multiscale_range", "0"], (20, 20)),
    ],
)
def test_multi_scale_follows_the_input_size(name: str, words: list[str], expected: tuple[int, int]) -> None:
    assert apply_fields(get_experiment(name), parse_overrides(words)).data.size_range == expected


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: &d [*c, *c]\nmax_epoch: [*d, *d]\n",
        "max_epoch: " + "[" * 900_000,
        "max_epoch: [" + ",".join("a" * 110_000) + "]",
        "max_epoch: 2001-99-99",
        "data: 3",
        "data: [1]",
        "base: [yolox_s]",
        "1: 2",
        "exp_name: [a]",
        "seed: 1" + "0" * 5000,
        "mosaic_scale: {0: 1}",
        "ema: [true]",
        "backbone: {a: 1}",
        "? [a]\n: 1",
        "x: !!python/object:os.system {}",
        "a" * 5_000_000,
    ],
    ids=lambda text: text[:20],
)
def test_hostile_yaml_is_refused_quickly(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UsageError) as refusal:
        experiment_from_file(tmp_path / "a.yaml")
    assert len(str(refusal.value)) < 2000


@pytest.mark.parametrize("suffix", [".yaml", ".py"])
@pytest.mark.parametrize("amount", [300, pytest.param(20_000, marks=pytest.mark.slow)])
def test_mutated_experiment_files_are_experiments_or_refused(tmp_path: Path, suffix: str, amount: int) -> None:
    values = {key: value for key, value in flatten(experiment_to_dict(NANO)).items() if value is not None}
    whole = {
        ".yaml": "\n".join(
            f"{key}: {list(value) if isinstance(value, tuple) else value}" for key, value in values.items()
        ),
        ".py": "class Exp:\n    def __init__(self):\n"
        + "".join(f"        self.{key.rpartition('.')[2]} = {value!r}\n" for key, value in values.items()),
    }[suffix]
    file = tmp_path / f"a{suffix}"
    file.write_text(whole)
    assert experiment_from_file(file).data == NANO.data
    chance = random.Random(11)
    words = [
        b"&a ",
        b"*a",
        b"!!python/name:os.system ",
        b"<<: ",
        b"[" * 50,
        b"1e999",
        b"-",
        b"\x00",
        b"\xff",
        b"2001-1-1",
        b"9" * 30,
    ]
    refused = 0
    for _ in range(amount):
        data = bytearray(whole.encode())
        for _ in range(chance.choice((1, 2, 5))):
            where = chance.randrange(len(data))
            data[where : where + chance.randrange(3)] = chance.choice([*words, bytes([chance.randrange(256)])])
        file.write_bytes(data)
        try:
            experiment_from_file(file)
        except UsageError:
            refused += 1
    assert refused > amount // 4


@pytest.mark.parametrize("value", ["1 / 0", "'a' * 1000000000", "[1] * 3", "-" * 10000 + "1", "{[]: 1}", "f'{x}'"])
def test_hostile_exp_files_are_refused(tmp_path: Path, value: str) -> None:
    (tmp_path / "a.py").write_text(f"class Exp:\n    def __init__(self):\n        self.depth = {value}\n")
    with pytest.raises(UsageError):
        experiment_from_file(tmp_path / "a.py")


def test_yaml_on_a_base(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("base: yolox-s\nmax_epoch: 7\ndata:\n  degrees: 5\n  data_dir: /data\nnum_classes: 3\n")
    experiment = experiment_from_file(file)
    assert (experiment.exp_name, experiment.recipe.max_epoch, experiment.data.degrees) == ("mine", 7, 5.0)
    assert (experiment.model.width, experiment.model.num_classes) == (0.5, 3)


def test_official_exp_file_is_read_not_run(tmp_path: Path) -> None:
    file = tmp_path / "yolox_custom.py"
    file.write_text(
        "import os\nfrom yolox.exp import Exp as MyExp\nraise SystemExit('executed')\n"
        "class Exp(MyExp):\n    def __init__(self):\n        super(Exp, self).__init__()\n"
        "        self.depth = 0.33\n        self.width = 0.50\n        self.degrees = 5\n"
        "        self.basic_lr_per_img = 0.02 / 64.0\n        self.random_size = (14, 26)\n"
        "        self.exp_name = os.path.split(os.path.realpath(__file__))[1].split('.')[0]\n"
    )
    experiment = experiment_from_file(file)
    assert experiment.exp_name == "yolox_custom"
    assert (experiment.model.depth, experiment.data.degrees, experiment.data.random_size) == (0.33, 5.0, (14, 26))
    assert experiment.recipe.basic_lr_per_img == pytest.approx(0.02 / 64)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("class Exp:\n    def get_model(self):\n        return 1\n", "only __init__"),
        ("class Exp:\n    def __init__(self):\n        self.depth = compute()\n", "line 3"),
        ("class Exp:\n    def __init__(self):\n        self.dpth = 1\n", "Did you mean 'depth'"),
        ("x = 1\n", "0 classes named 'Exp'"),
        ("class Exp(:\n", "not valid Python"),
    ],
)
def test_exp_files_that_do_more_are_refused(tmp_path: Path, body: str, message: str) -> None:
    file = tmp_path / "exp.py"
    file.write_text(body)
    with pytest.raises(UsageError, match=message):
        experiment_from_file(file)


@pytest.mark.parametrize(("name", "text"), [("a.yaml", "- 1"), ("a.yaml", "a: [1"), ("a.txt", "")])
def test_other_files_are_refused(tmp_path: Path, name: str, text: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(UsageError, match=r"expected|not valid"):
        experiment_from_file(file)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        experiment_from_file(tmp_path / "none.yaml")
