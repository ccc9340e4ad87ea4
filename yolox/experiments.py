"""The published experiments as values, and experiments from a user's file.

The numbers are those of official YOLOX, ``exps/default`` and ``yolox/exp/yolox_base.py``.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from yolox.config import DataConfig, EvalConfig, Experiment, ModelConfig, apply_fields, flatten
from yolox.errors import UsageError, did_you_mean
from yolox.structures import Size
from yolox.text_files import MAX_YAML_BYTES, load_yaml, read_text

_MAX_NUMBER = 1e100  # products of longer numbers take time, and Python does not print them
_MAX_ALIASES = 10  # that merge one another, each more than once: their number is a power


def _csp(name: str, depth: float, width: float) -> Experiment:
    return Experiment(exp_name=name, model=ModelConfig(depth=depth, width=width))


def _small(base: Experiment) -> Experiment:
    """The settings that nano and tiny share: 416 pixels, gentler scale jitter, no MixUp."""
    data = DataConfig(input_size=Size(416, 416), random_size=(10, 20), mosaic_scale=(0.5, 1.5), enable_mixup=False)
    return replace(base, data=data, eval=EvalConfig(test_size=Size(416, 416)))


_TINY = _small(_csp("yolox_tiny", 0.33, 0.375))
_NANO = replace(
    _TINY,
    exp_name="yolox_nano",
    model=replace(_TINY.model, width=0.25, depthwise=True),
    data=replace(_TINY.data, mosaic_prob=0.5),
)
_YOLOV3 = Experiment(exp_name="yolov3", model=ModelConfig(backbone="darknet53", act="lrelu"))

EXPERIMENTS: Mapping[str, Experiment] = {
    "yolox_nano": _NANO,
    "yolox_tiny": _TINY,
    "yolox_s": _csp("yolox_s", 0.33, 0.50),
    "yolox_m": _csp("yolox_m", 0.67, 0.75),
    "yolox_l": _csp("yolox_l", 1.0, 1.0),
    "yolox_x": _csp("yolox_x", 1.33, 1.25),
    "yolov3": _YOLOV3,
}
_ALIASES = {"yolox_darknet53": "yolov3", "yolox_darknet": "yolov3"}


def canonical_name(name: str) -> str:
    """Return the experiment's name for any accepted spelling (dashes, capitals, aliases).

    Raises:
        UsageError: When no experiment has that name.
    """
    key = name.strip().lower().replace("-", "_")
    key = _ALIASES.get(key, key)
    if key not in EXPERIMENTS:
        known = [*EXPERIMENTS, *_ALIASES]
        raise UsageError(f"unknown model '{name}'; expected one of {', '.join(known)}.{did_you_mean(key, known)}")
    return key


def get_experiment(name: str) -> Experiment:
    """Return a published experiment, for instance ``yolox_nano`` or ``yolox-nano``."""
    return EXPERIMENTS[canonical_name(name)]


def published_name(model: ModelConfig) -> str:
    """Return the name of the published experiment with that network; ``yolox`` where none has it."""
    for name, experiment in EXPERIMENTS.items():
        if replace(experiment.model, num_classes=model.num_classes) == model:
            return name
    return "yolox"


def experiment_from_file(path: str | Path) -> Experiment:
    """Return the experiment of a ``.yaml`` file or of an official-style ``.py`` file.

    A YAML file holds sections or plain field names, and may start from a published experiment with ``base: yolox_s``.
    A Python file holds a class ``Exp`` whose ``__init__`` sets fields; it is read, never executed.

    Raises:
        UsageError: When the file is missing, of another kind, or holds anything but fields.
    """
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"experiment file '{file}' does not exist; expected a .yaml or .py file.")
    if file.suffix in (".yaml", ".yml"):
        return _from_yaml(file)
    if file.suffix == ".py":
        return _from_python(file)
    raise UsageError(f"experiment file '{file}' ends in '{file.suffix}'; expected .yaml, .yml or .py.")


def _from_yaml(file: Path) -> Experiment:
    import yaml

    text = read_text(file, "an experiment", MAX_YAML_BYTES, UsageError)
    try:
        content = load_yaml(text, "SafeLoader", _MAX_ALIASES)
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # of dates and numbers
        raise UsageError(f"'{file}' is not valid YAML: {str(error)[:300] or type(error).__name__}") from error
    if not isinstance(content, dict):
        raise UsageError(f"'{file}' holds {type(content).__name__}; expected 'field: value' lines.")
    values = flatten(content)
    base = values.pop("base", None)
    values.setdefault("exp_name", file.stem)
    start = Experiment(exp_name="experiment") if base is None else get_experiment(str(base)[:80])
    return apply_fields(start, values)


def _from_python(file: Path) -> Experiment:
    text = read_text(file, "an experiment", MAX_YAML_BYTES, UsageError)
    try:
        tree = ast.parse(text, filename=str(file))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # null bytes and depths as well
        raise UsageError(f"'{file}' is not valid Python: {error}") from error
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Exp"]
    if len(classes) != 1:
        raise UsageError(f"'{file}' has {len(classes)} classes named 'Exp'; expected exactly one.")
    values: dict[str, object] = {"exp_name": file.stem}
    for node in classes[0].body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            for statement in node.body:
                _read_statement(file, statement, values)
        elif not _is_docstring(node):
            raise _refuse(file, node, "only __init__ may stand in class Exp")
    return apply_fields(_official_base(values), values)


def _official_base(values: dict[str, object]) -> Experiment:
    """Official exp files derive from one base class; nano marks itself by a ``depthwise`` field of its own."""
    backbone = "darknet53" if str(values.get("exp_name", "")).startswith("yolov3") else "csp_darknet"
    values.setdefault("backbone", backbone)
    return Experiment(exp_name=str(values["exp_name"]))


def _read_statement(file: Path, node: ast.stmt, values: dict[str, object]) -> None:
    """Add the field that one statement of ``__init__`` sets to ``values``."""
    if _is_docstring(node) or _is_super_call(node):
        return
    if not (isinstance(node, ast.Assign) and len(node.targets) == 1):
        raise _refuse(file, node, "only 'self.field = value' may stand in __init__")
    target = node.targets[0]
    if not (isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self"):
        raise _refuse(file, node, "only fields of self may be set")
    if target.attr == "exp_name" and not isinstance(node.value, ast.Constant):
        return  # official files compute the name from __file__; ours is the file's stem already
    values[target.attr] = _literal(file, node.value)


def _literal(file: Path, node: ast.expr) -> Any:
    """Evaluate a literal, or an arithmetic expression of numbers such as ``0.01 / 64``."""
    if isinstance(node, ast.BinOp):
        left, right = _literal(file, node.left), _literal(file, node.right)
        if not all(isinstance(side, int | float) for side in (left, right)):
            raise _refuse(file, node, "only numbers are divided and multiplied")
        number = None
        with suppress(OverflowError):
            if isinstance(node.op, ast.Div) and right:
                number = left / right
            elif isinstance(node.op, ast.Mult):
                number = left * right
        if number is not None and abs(number) < _MAX_NUMBER:
            return number
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError, MemoryError, SyntaxError) as error:
        raise _refuse(file, node, "a field takes a plain number, text, tuple or list") from error


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_super_call(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and "super" in ast.dump(node.value.func)


def _refuse(file: Path, node: ast.stmt | ast.expr, rule: str) -> UsageError:
    return UsageError(
        f"'{file}' line {node.lineno}: '{ast.unparse(node).splitlines()[0][:120]}' is more than a field; {rule}. "
        "Experiment files are read as values and never executed: set fields, or write the experiment as YAML."
    )
