"""The values that describe an experiment, and typed overrides of them.

Field names are those of the official YOLOX ``yolox/exp/yolox_base.py``, so that published recipes carry over.
Only ``build_*`` functions and the tools read these objects; every building block takes plain arguments.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal, get_type_hints

from yolox.errors import UsageError, did_you_mean
from yolox.fields import Ascending, FileName, Fixed, Multiple, Range, Text, convert, shown
from yolox.structures import Size

STRIDE = 32
SQUARE_640 = Size(640, 640)


Probability = Annotated[float, Range(0, 1, "a probability")]
Share = Annotated[float, Range(0, 1)]
Count = Annotated[int, Range(1)]
Epochs = Annotated[int, Range(0)]
Edges = Annotated[Size, Multiple(STRIDE, 8192)]
Place = Annotated[str | None, Text()]
Strides = Annotated[tuple[int, ...], Fixed((8, 16, 32), "the backbones halve an image three, four and five times")]


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of the network."""

    backbone: Literal["csp_darknet", "darknet53"] = "csp_darknet"
    depth: Annotated[float, Range(0, 10, above=True)] = 1.0
    width: Annotated[float, Range(0, 10, above=True)] = 1.0
    act: Literal["silu", "relu", "lrelu"] = "silu"
    depthwise: bool = False
    num_classes: Annotated[int, Range(1, 100_000)] = 80
    fpn_strides: Strides = (8, 16, 32)


@dataclass(frozen=True)
class DataConfig:
    """Which images the network learns from, and how they are varied."""

    data_dir: Place = None
    train_ann: Place = None
    val_ann: Place = None
    train_images: Place = None
    val_images: Place = None
    val_fraction: Share = 0.0  # of the images to evaluate on, where the data set has no such split
    data_num_workers: Annotated[int | None, Range(0, 1024)] = None
    cache: Literal["ram", "disk", "off"] | None = None
    reduced_decode: bool = False
    input_size: Edges = SQUARE_640
    multiscale_range: Annotated[int, Range(0, 256)] = 5
    random_size: Annotated[
        tuple[int, int] | None, Range(1, 256, f"a height in units of {STRIDE} pixels"), Ascending()
    ] = None
    mosaic_prob: Probability = 1.0
    mixup_prob: Probability = 1.0
    enable_mixup: bool = True
    hsv_prob: Probability = 1.0
    flip_prob: Probability = 0.5
    degrees: Annotated[float, Range(0, 360, "an angle")] = 10.0
    translate: Share = 0.1
    mosaic_scale: Annotated[tuple[float, float], Range(0, 100, above=True), Ascending()] = (0.1, 2.0)
    mixup_scale: Annotated[tuple[float, float], Range(0, 100, above=True), Ascending()] = (0.5, 1.5)
    shear: Annotated[float, Range(0, 89, "an angle")] = 2.0
    max_labels: Annotated[int, Range(1, 100_000)] = 120
    repeat_threshold: Share = 0.0  # classes in a smaller share of the images are drawn more often, see `repeat_factors`

    @property
    def size_range(self) -> tuple[int, int]:
        """Smallest and largest multi-scale height in units of 32 pixels, both included."""
        if self.random_size is not None:
            return self.random_size
        middle = self.input_size.height // STRIDE
        reach = min(self.multiscale_range, middle // 2)  # of small inputs half the size: it never comes to nothing
        return middle - reach, middle + reach


@dataclass(frozen=True)
class RecipeConfig:
    """How the network learns."""

    max_epoch: Count = 300
    steps: Annotated[int | None, Range(1)] = None  # the run ends after so many, whatever max_epoch says
    warmup_epochs: Annotated[float, Range(0, what="a number of epochs")] = 5
    no_aug_epochs: Epochs = 15
    warmup_lr: Annotated[float, Range(0, 1_000_000)] = 0.0
    min_lr_ratio: Share = 0.05
    basic_lr_per_img: Annotated[float, Range(0, 1_000_000, "a learning rate", above=True)] = 0.01 / 64
    scheduler: Literal["cos", "warmcos", "yoloxwarmcos", "multistep"] = "yoloxwarmcos"
    milestones: Annotated[tuple[int, ...], Range(0), Ascending()] = ()
    gamma: Annotated[float, Range(0, 1, above=True)] = 0.1
    ema: bool = True
    ema_decay: Share = 0.9998  # the highest decay of the averages; 1 - 1/N averages over N steps
    # steps; less suits runs of few steps, see `recipe.ema`
    ema_time_constant: Annotated[float, Range(1, what="a number of steps")] = 2000.0
    weight_decay: Annotated[float, Range(0, 1_000_000)] = 5e-4
    momentum: Annotated[float, Range(0, 1, above=True)] = 0.9
    bn_momentum: Share = 0.03  # share of a step in the running statistics of BatchNorm
    n_candidate_k: Annotated[int, Range(1, 100)] = 10  # best overlaps whose sum says how many anchors an object takes
    accumulate: Count = 1  # batches whose gradients make one step
    clip: Annotated[float | None, Range(0, what="a norm of gradients", above=True)] = None
    on_nonfinite: Literal["stop", "skip", "restore"] = "stop"  # what follows NaN or infinite numbers: `recipe.finite`
    freeze: tuple[Annotated[str, Text()], ...] = ()  # names of parts of the network, with * and ?
    patience: Annotated[int | None, Range(1, what="a number of epochs")] = None  # without a better AP, then it stops
    eval_interval: Count = 10
    print_interval: Count = 10
    ckpt_interval: Count = 1  # epochs from one latest_ckpt.pth to the next
    ckpt_interval_steps: Annotated[int | None, Range(1)] = None  # and steps, where long epochs ask for them
    save_history_ckpt: bool = False
    max_history_ckpt: Count = 10


@dataclass(frozen=True)
class EvalConfig:
    """How the network is evaluated."""

    test_size: Edges = SQUARE_640
    test_conf: Share = 0.01
    nmsthre: Share = 0.65


@dataclass(frozen=True)
class Experiment:
    """All that defines a run, apart from the machine it runs on.

    ``given`` holds the fields that somebody set, as ``section.field``; `recipe.choice` may choose the others.
    """

    exp_name: Annotated[str, FileName()]
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    output_dir: Annotated[str, Text()] = "./YOLOX_outputs"
    given: frozenset[str] = field(default=frozenset(), compare=False)


SECTIONS: Mapping[str, type] = {"model": ModelConfig, "data": DataConfig, "recipe": RecipeConfig, "eval": EvalConfig}
DATA_PATHS = ("train_ann", "val_ann", "train_images", "val_images", "val_fraction")
"""Fields that hold for the data set in ``data_dir`` and for no other."""
_TOP_LEVEL = ("exp_name", "seed", "output_dir")


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


def apply_fields(experiment: Experiment, values: Mapping[str, object]) -> Experiment:
    """Return ``experiment`` with named fields replaced and checked.

    Where ``input_size`` changes and nothing is said of multi-scale training, ``random_size`` follows in proportion.

    Args:
        experiment: The experiment to start from; it stays as it is.
        values: Keys are official field names (``max_epoch``) or ``section.field`` (``data.mosaic_prob``); values are
            Python values or text.

    Raises:
        UsageError: For an unknown key (with the nearest name), a value that does not convert or is out of range.
    """
    known = _known_fields()
    changed: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        if key not in known:
            raise UsageError(f"'{key}' is not a field of an experiment.{did_you_mean(key, known)}")
        section, name = known[key]
        owner = SECTIONS.get(section, Experiment)
        changed.setdefault(section, {})[name] = convert(key, value, _annotations(owner)[name])
    data = changed.get("data", {})
    if "input_size" in data and not data.keys() & {"random_size", "multiscale_range"}:
        data["random_size"] = _scaled(experiment.data, data["input_size"].height)
    parts = {section: replace(getattr(experiment, section), **fields) for section, fields in changed.items() if section}
    given = {f"{section}.{name}".lstrip(".") for section, fields in changed.items() for name in fields}
    return replace(experiment, **changed.get("", {}), **parts, given=experiment.given | given)


@functools.cache
def _annotations(owner: type) -> dict[str, Any]:
    return get_type_hints(owner, include_extras=True)


def _scaled(data: DataConfig, height: int) -> tuple[int, int] | None:
    """Return ``random_size`` for an input of another height, in the same proportion to it."""
    if data.random_size is None:
        return None
    low, high = (max(1, round(units * height / data.input_size.height)) for units in data.random_size)
    return low, high


def parse_overrides(words: Iterable[str]) -> dict[str, object]:
    """Return command-line overrides as values by field name.

    Args:
        words: ``key value`` pairs in official style and ``key=value`` words, mixed as the user likes.

    Raises:
        UsageError: For a key without a value.
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
    return values


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
    return apply_fields(Experiment(exp_name="experiment"), flatten(values))


def flatten(values: Mapping[Any, Any]) -> dict[str, object]:
    """Return nested ``{section: {field: value}}`` as ``{"section.field": value}``; other entries stay.

    Raises:
        UsageError: When a section holds anything but fields.
    """
    flat: dict[str, object] = {}
    for key, value in values.items():
        if key in SECTIONS:
            if not isinstance(value, Mapping):
                raise UsageError(f"section '{key}' got {shown(value)}, expected a mapping of its fields.")
            flat.update({f"{key}.{name}": item for name, item in value.items()})
        else:
            flat[str(key)] = value
    return flat
