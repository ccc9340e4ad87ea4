"""The values that describe an experiment, and typed overrides of them.

Field names are those of the official YOLOX ``Exp`` (A2 of its specification), so that published recipes carry over.
Only ``build_*`` functions and the tools read these objects; every building block takes plain arguments.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from yolox.errors import UsageError, did_you_mean
from yolox.structures import Size

__all__ = [
    "DataConfig",
    "EvalConfig",
    "Experiment",
    "ModelConfig",
    "RecipeConfig",
    "apply_fields",
    "apply_overrides",
    "experiment_from_dict",
    "experiment_to_dict",
    "field_names",
]

STRIDE = 32
SQUARE_640 = Size(640, 640)


@dataclass(frozen=True)
class ModelConfig:
    """What the network is."""

    backbone: Literal["csp_darknet", "darknet53"] = "csp_darknet"
    depth: float = 1.0
    width: float = 1.0
    act: Literal["silu", "relu", "lrelu"] = "silu"
    depthwise: bool = False
    num_classes: int = 80


@dataclass(frozen=True)
class DataConfig:
    """Which images the network learns from, and how they are varied."""

    data_dir: str | None = None
    train_ann: str | None = None
    val_ann: str | None = None
    train_images: str | None = None
    val_images: str | None = None
    data_num_workers: int | None = None
    cache: Literal["ram", "disk", "off"] | None = None
    reduced_decode: bool = False
    input_size: Size = SQUARE_640
    multiscale_range: int = 5
    random_size: tuple[int, int] | None = None
    mosaic_prob: float = 1.0
    mixup_prob: float = 1.0
    enable_mixup: bool = True
    hsv_prob: float = 1.0
    flip_prob: float = 0.5
    degrees: float = 10.0
    translate: float = 0.1
    mosaic_scale: tuple[float, float] = (0.1, 2.0)
    mixup_scale: tuple[float, float] = (0.5, 1.5)
    shear: float = 2.0
    max_labels: int = 120

    @property
    def size_range(self) -> tuple[int, int]:
        """Smallest and largest multi-scale height in units of 32 pixels, both included."""
        if self.random_size is not None:
            return self.random_size
        middle = self.input_size.height // STRIDE
        return middle - self.multiscale_range, middle + self.multiscale_range


@dataclass(frozen=True)
class RecipeConfig:
    """How the network learns."""

    max_epoch: int = 300
    warmup_epochs: float = 5
    no_aug_epochs: int = 15
    warmup_lr: float = 0.0
    min_lr_ratio: float = 0.05
    basic_lr_per_img: float = 0.01 / 64
    scheduler: Literal["cos", "warmcos", "yoloxwarmcos", "multistep"] = "yoloxwarmcos"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    ema: bool = True
    ema_decay: float = 0.9998  # the highest decay of the averages; 1 - 1/N averages over N steps
    ema_time_constant: float = 2000.0  # steps; less suits runs of few steps, see `recipe.ema`
    weight_decay: float = 5e-4
    momentum: float = 0.9
    eval_interval: int = 10
    print_interval: int = 10
    save_history_ckpt: bool = False
    max_history_ckpt: int = 10


@dataclass(frozen=True)
class EvalConfig:
    """How the network is judged."""

    test_size: Size = SQUARE_640
    test_conf: float = 0.01
    nmsthre: float = 0.65


@dataclass(frozen=True)
class Experiment:
    """All that defines a run, apart from the machine it runs on.

    ``given`` holds the fields that somebody set, as ``section.field``; `recipe.choice` may choose the others.
    """

    exp_name: str
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    seed: int = 0
    output_dir: str = "./YOLOX_outputs"
    given: frozenset[str] = field(default=frozenset(), compare=False)


SECTIONS: Mapping[str, type] = {"model": ModelConfig, "data": DataConfig, "recipe": RecipeConfig, "eval": EvalConfig}
_TOP_LEVEL = ("exp_name", "seed", "output_dir")
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def _known_fields() -> dict[str, tuple[str, str]]:
    """Map every accepted key, plain and ``section.field``, to its section and field."""
    known = {name: ("", name) for name in _TOP_LEVEL}
    for section, cls in SECTIONS.items():
        for item in fields(cls):
            known[item.name] = known[f"{section}.{item.name}"] = (section, item.name)
    return known


@functools.cache
def field_names() -> frozenset[str]:
    """Return every key that overrides accept: ``max_epoch``, ``recipe.max_epoch``, ..."""
    return frozenset(_known_fields())


def _refuse(key: str, value: object, expected: str) -> UsageError:
    return UsageError(f"{key} got {value!r}, expected {expected}. Give a value of that kind.")


def _convert_number(key: str, value: object, kind: type) -> object:
    if kind is bool:
        if isinstance(value, bool):
            return value
        text = str(value).strip().lower()
        if text in _TRUE + _FALSE:
            return text in _TRUE
        raise _refuse(key, value, "true or false")
    if isinstance(value, bool):
        raise _refuse(key, value, "a number")
    try:
        number = float(str(value))
    except ValueError as error:
        raise _refuse(key, value, "a whole number" if kind is int else "a number") from error
    if kind is float:
        return number
    if not number.is_integer():
        raise _refuse(key, value, "a whole number")
    return int(number)


def _convert_sequence(key: str, value: object, kind: Any) -> object:
    items = value.strip("()[] ").replace(" ", ",").split(",") if isinstance(value, str) else value
    if not isinstance(items, Iterable):
        raise _refuse(key, value, "several numbers such as 0.5,1.5")
    given = [item for item in items if item != ""]
    if kind is Size:
        if len(given) == 1:
            given = given * 2
        hints: tuple[Any, ...] = (int, int)
    else:
        hints = get_args(kind)
        if hints[-1] is Ellipsis:
            hints = (hints[0],) * len(given)
    if len(given) != len(hints):
        raise _refuse(key, value, f"{len(hints)} numbers separated by commas")
    numbers: list[Any] = [_convert(key, item, hint) for item, hint in zip(given, hints, strict=True)]
    return Size(*numbers) if kind is Size else tuple(numbers)


def _convert(key: str, value: object, kind: Any) -> object:
    """Convert ``value``, text or a Python value, to the annotated type ``kind``."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
            return None
        return _convert(key, value, next(arm for arm in get_args(kind) if arm is not type(None)))
    if origin is Literal:
        options = get_args(kind)
        if value not in options:
            raise _refuse(key, value, " or ".join(map(str, options)) + "." + did_you_mean(str(value), options))
        return value
    if kind is Size or origin is tuple:
        return _convert_sequence(key, value, kind)
    if kind is str:
        if not isinstance(value, str):
            raise _refuse(key, value, "text")
        return value
    return _convert_number(key, value, kind)


def _check(experiment: Experiment) -> Experiment:
    """Refuse values that no run could use."""
    for name, size in (("input_size", experiment.data.input_size), ("test_size", experiment.eval.test_size)):
        if min(size) <= 0 or any(edge % STRIDE for edge in size):
            raise UsageError(
                f"{name} got {tuple(size)}, expected multiples of {STRIDE}. Try {STRIDE * 13},{STRIDE * 13}."
            )
    low, high = experiment.data.size_range
    if not 0 < low <= high:
        raise UsageError(f"random_size gives {low}...{high} x {STRIDE} pixels, expected 0 < smallest <= largest.")
    _check_range(
        experiment.recipe, ("max_epoch", "eval_interval", "print_interval", "max_history_ckpt"), "1 or more", 1
    )
    _check_range(experiment.recipe, ("ema_time_constant",), "a number of steps, 1 or more", 1)
    _check_range(experiment.recipe, ("ema_decay",), "a decay from 0 to 1", 0, 1)
    _check_range(experiment.model, ("num_classes",), "1 or more", 1)
    chances = ("mosaic_prob", "mixup_prob", "hsv_prob", "flip_prob")
    _check_range(experiment.data, chances, "a probability from 0 to 1", 0, 1)
    _check_range(experiment.eval, ("test_conf", "nmsthre"), "a value from 0 to 1", 0, 1)
    return experiment


def _check_range(section: object, keys: Iterable[str], expected: str, low: float, high: float = float("inf")) -> None:
    for key in keys:
        value = getattr(section, key)
        if not low <= value <= high:
            raise UsageError(f"{key} got {value}, expected {expected}.")


def apply_fields(experiment: Experiment, values: Mapping[str, object]) -> Experiment:
    """Return ``experiment`` with named fields replaced and checked.

    Args:
        experiment: The experiment to start from; it stays as it is.
        values: Keys are official field names (``max_epoch``) or ``section.field`` (``data.mosaic_prob``); values are
            Python values or text.

    Raises:
        UsageError: For an unknown key (with the nearest name) or a value that does not convert.
    """
    known = _known_fields()
    for key, value in values.items():
        if key not in known:
            raise UsageError(f"'{key}' is not a field of an experiment.{did_you_mean(key, known)}")
        section, name = known[key]
        target: Any = getattr(experiment, section) if section else experiment
        converted: Any = _convert(key, value, get_type_hints(type(target))[name])
        change: dict[str, Any] = {section: replace(target, **{name: converted})} if section else {name: converted}
        experiment = replace(experiment, **change, given=experiment.given | {f"{section}.{name}" if section else name})
    return _check(experiment)


def apply_overrides(experiment: Experiment, words: Iterable[str]) -> Experiment:
    """Return ``experiment`` with command-line overrides applied.

    Args:
        experiment: The experiment to start from.
        words: ``key value`` pairs in official style and ``key=value`` words, mixed as the user likes.

    Raises:
        UsageError: For a key without a value, an unknown key or a value that does not convert.
    """
    values: dict[str, object] = {}
    rest = iter(words)
    for word in rest:
        key, equals, value = word.partition("=")
        if not equals:
            following = next(rest, None)
            if following is None:
                raise UsageError(f"override '{key}' has no value. Write '{key} VALUE' or '{key}=VALUE'.")
            value = following
        values[key] = value
    return apply_fields(experiment, values)


def experiment_to_dict(experiment: Experiment) -> dict[str, Any]:
    """Return the experiment as plain nested dicts, lists and scalars (for checkpoints, YAML and JSON)."""

    def plain(value: object) -> object:
        return list(value) if isinstance(value, tuple) else value

    out: dict[str, Any] = {name: getattr(experiment, name) for name in _TOP_LEVEL}
    for section, cls in SECTIONS.items():
        part = getattr(experiment, section)
        out[section] = {item.name: plain(getattr(part, item.name)) for item in fields(cls)}
    return out


def experiment_from_dict(values: Mapping[str, Any]) -> Experiment:
    """Return the experiment described by nested dicts; the inverse of ``experiment_to_dict``.

    Raises:
        UsageError: For an unknown section or field, or a value of a wrong kind.
    """
    flat: dict[str, object] = {}
    for key, value in values.items():
        if key in SECTIONS:
            if not isinstance(value, Mapping):
                raise UsageError(f"section '{key}' got {value!r}, expected a mapping of its fields.")
            flat.update({f"{key}.{name}": item for name, item in value.items()})
        else:
            flat[key] = value
    return apply_fields(Experiment(exp_name=str(values.get("exp_name", "experiment"))), flat)
