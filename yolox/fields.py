"""Values of an experiment's fields: what each may be is said in its annotation, and every value is held to that.

``Annotated[float, Range(0, 1)]`` is a number from 0 to 1; `convert` makes one of text or of a Python value.
"""

from __future__ import annotations

import math
import re
import reprlib
import types
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from yolox.errors import UsageError, did_you_mean
from yolox.structures import Size

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_MAX_ITEMS = 10_000  # of a field that takes any number of them
_MAX_WHOLE = 2**53  # the largest up to which a float tells all whole numbers apart
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # and halves of characters, which no file name has


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``; of a tuple, every item.

    Args:
        low: The smallest.
        high: The largest.
        what: What the number is, for the message.
        above: Whether ``low`` itself is left out.
    """

    low: float
    high: float = math.inf
    what: str = ""
    above: bool = False

    def check(self, key: str, value: Any) -> None:
        """Refuse a number outside the range."""
        for number in value if isinstance(value, tuple) else (value,):
            if not self.low <= number <= self.high or (self.above and number == self.low):
                raise UsageError(f"{key} got {shown(number)}, expected {self}.")

    def __str__(self) -> str:
        """Return the range in words."""
        what = self.what or "a value"
        if self.above:
            return f"{what} above {self.low}" + (f", at most {self.high}" if self.high < math.inf else "")
        if self.high < math.inf:
            return f"{what} from {self.low} to {self.high}"
        return f"{self.what}, {self.low} or more" if self.what else f"{self.low} or more"


@dataclass(frozen=True)
class Ascending:
    """Several numbers, none smaller than the one before."""

    def check(self, key: str, value: Any) -> None:
        """Refuse another order."""
        if list(value) != sorted(value):
            raise UsageError(f"{key} got {shown(value)}, expected ascending numbers. Write the smaller one first.")


@dataclass(frozen=True)
class Fixed:
    """A value that follows from something else; files of other implementations may name it.

    Args:
        value: The only one.
        why: What it follows from.
    """

    value: object
    why: str

    def check(self, key: str, value: Any) -> None:
        """Refuse another value."""
        if value != self.value:
            raise UsageError(f"{key} got {shown(value)}, expected {self.value}: {self.why}. Leave it out.")


@dataclass(frozen=True)
class Multiple:
    """A size in pixels whose edges are multiples of ``of``, at most ``high``."""

    of: int
    high: int

    def check(self, key: str, value: Any) -> None:
        """Refuse other edges."""
        if any(not 0 < edge <= self.high or edge % self.of for edge in value):
            raise UsageError(
                f"{key} got {shown(tuple(value))}, expected multiples of {self.of} up to {self.high}. "
                f"Try {self.of * 13},{self.of * 13}."
            )


@dataclass(frozen=True)
class Text:
    """Text without control characters."""

    def check(self, key: str, value: Any) -> None:
        """Refuse control characters."""
        if _CONTROL.search(value):
            raise UsageError(f"{key} got {shown(value)}, expected text without control characters.")


@dataclass(frozen=True)
class FileName(Text):
    """A name for a file or folder: no path, so that it decides for no other place."""

    def check(self, key: str, value: Any) -> None:
        """Refuse paths, hidden names and what no file system takes."""
        super().check(key, value)
        if not value.strip() or "/" in value or "\\" in value or value.startswith(".") or len(value.encode()) > 200:
            raise UsageError(
                f"{key} got {shown(value)}, expected a plain name: no '/', no '.' at its start, at most 200 bytes. "
                "The folder above it is output_dir."
            )


def convert(key: str, value: object, kind: Any) -> Any:
    """Return ``value``, text or a Python value, as the annotated type ``kind``.

    Args:
        key: The field's name, for the message.
        value: What the user, a file or a checkpoint gave.
        kind: The annotation: a scalar type, `Size`, a tuple, ``Literal``, one of them or None, each with constraints.

    Raises:
        UsageError: When it does not convert, or does not meet a constraint.
    """
    origin = get_origin(kind)
    if origin is Annotated:
        kind, *constraints = get_args(kind)
        converted = convert(key, value, kind)
        for constraint in constraints if converted is not None else ():
            constraint.check(key, converted)
        return converted
    if origin in (Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
            return None
        return convert(key, value, next(arm for arm in get_args(kind) if arm is not type(None)))
    if kind is Size or origin is tuple:
        return _convert_sequence(key, value, kind)
    if kind is str or origin is Literal:
        return _convert_text(key, value, get_args(kind))
    return _convert_bool(key, value) if kind is bool else _convert_number(key, value, kind)


def _convert_text(key: str, value: object, options: tuple[str, ...]) -> str:
    """Return ``value``, one of ``options`` where there are any."""
    if not isinstance(value, str):
        raise _refuse(key, value, " or ".join(options) or "text")
    if options and value not in options:
        raise _refuse(key, value, " or ".join(options), did_you_mean(value, options))
    return value


def _convert_bool(key: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    text = value.strip().lower() if isinstance(value, str) else str(value) if value in (0, 1) else ""
    if text not in _TRUE + _FALSE:
        raise _refuse(key, value, "true or false")
    return text in _TRUE


def _convert_number(key: str, value: object, kind: type) -> int | float:
    expected = "a whole number" if kind is int else "a finite number"
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _refuse(key, value, expected)
    try:
        number = float(value)
    except (ValueError, OverflowError) as error:
        raise _refuse(key, value, expected) from error
    if not math.isfinite(number) or (kind is int and (not number.is_integer() or abs(number) > _MAX_WHOLE)):
        raise _refuse(key, value, expected)
    return int(number) if kind is int else number


def _convert_sequence(key: str, value: object, kind: Any) -> Any:
    items = value.strip("()[] ").replace(" ", ",").split(",") if isinstance(value, str) else value
    if kind is Size and isinstance(items, int):
        items = [items]
    if not isinstance(items, list | tuple) or len(items) > _MAX_ITEMS:
        raise _refuse(key, value, "several numbers such as 0.5,1.5")
    given = [item for item in items if not (isinstance(item, str) and not item)]
    if kind is Size:
        given = given * 2 if len(given) == 1 else given
        hints: tuple[Any, ...] = (int, int)
    else:
        hints = get_args(kind)
        if hints[-1] is Ellipsis:
            hints = (hints[0],) * len(given)
    if len(given) != len(hints):
        raise _refuse(key, value, f"{len(hints)} numbers separated by commas")
    numbers = [convert(key, item, hint) for item, hint in zip(given, hints, strict=True)]
    return Size(*numbers) if kind is Size else tuple(numbers)


def _refuse(key: str, value: object, expected: str, hint: str = "") -> UsageError:
    return UsageError(f"{key} got {shown(value)}, expected {expected}.{hint or ' Give a value of that kind.'}")


def shown(value: object) -> str:
    """Return a short text of a value that a file may have made large."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return f"{type(value).__name__} with a number of thousands of digits"
