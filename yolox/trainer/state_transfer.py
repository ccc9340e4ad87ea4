"""Send what a trainer has become to another process, into objects that exist there.

Objects that both processes have (the trainer, the module and its parameters, callbacks ...) are sent by name only, so
an optimizer arrives attached to the receiver's parameters and a callback attached to the receiver's trainer.
"""

from __future__ import annotations

import io
import logging
import pickle
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cloudpickle
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, ProgressBar
from torch import Tensor

_PLAIN = (int, float, complex, str, bytes, bool, type(None), list, dict, tuple, set, deque, OrderedDict, defaultdict)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StateTransfer:
    """A trainer's state on its way to another process.

    Args:
        content: What was packed by name.
        callbacks: For each callback its attributes.
        module: Attributes of the module that are plain values.
    """

    content: bytes
    callbacks: tuple[dict[str, bytes], ...]
    module: dict[str, bytes]

    @classmethod
    def pack(cls, trainer: pl.Trainer, callbacks: Sequence[Callback], **content: Any) -> StateTransfer:
        """Return the state of this process.

        Args:
            trainer: The trainer whose state it is.
            callbacks: Its callbacks, in the receiver's order.
            content: Values by name.
        """
        names = {id(value): name for name, value in _shared_objects(trainer, callbacks)}
        states = [
            {} if isinstance(callback, ProgressBar) else _pack_attributes(vars(callback), names)
            for callback in callbacks
        ]
        module = vars(trainer.lightning_module)
        plain = {name: module[name] for name in module if _is_own(name) and isinstance(module[name], (*_PLAIN, Tensor))}
        return cls(_dumps(content, names), tuple(states), _pack_attributes(plain, names))

    def unpack(self, trainer: pl.Trainer, callbacks: Sequence[Callback]) -> dict[str, Any]:
        """Return the content, and give callbacks and module of ``trainer`` their attributes."""
        objects = dict(_shared_objects(trainer, callbacks))
        content: dict[str, Any] = _loads(self.content, objects)
        for callback, state in zip(callbacks, self.callbacks, strict=True):
            vars(callback).update({name: _loads(value, objects) for name, value in state.items()})
        vars(trainer.lightning_module).update({name: _loads(value, objects) for name, value in self.module.items()})
        return content


def _is_own(name: str) -> bool:
    return not name.startswith("_") and name not in ("training", "prepare_data_per_node")


def _shared_objects(trainer: pl.Trainer, callbacks: Sequence[Callback]) -> Iterator[tuple[str, Any]]:
    """Yield what both processes have, with a name that is the same in both."""
    module = trainer.lightning_module
    for prefix, named in (
        ("module", module.named_modules()),
        ("parameter", module.named_parameters()),
        ("buffer", module.named_buffers()),
    ):
        yield from ((f"{prefix} {name}", value) for name, value in named)
    yield "trainer", trainer
    yield "strategy", trainer.strategy
    for name in ("fit_loop", "validate_loop", "test_loop", "predict_loop", "datamodule"):
        value = getattr(trainer, name, None)
        if value is not None:
            yield name, value
    yield from ((f"callback {number}", value) for number, value in enumerate(callbacks))
    yield from ((f"logger {number}", value) for number, value in enumerate(trainer.loggers))


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, file: io.BytesIO, names: dict[int, str]) -> None:
        super().__init__(file)
        self._names = names

    def persistent_id(self, value: Any) -> str | None:
        return self._names.get(id(value))


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, objects: dict[str, Any]) -> None:
        super().__init__(file)
        self._objects = objects

    def persistent_load(self, pid: Any) -> Any:
        return self._objects.get(pid)


def _dumps(value: Any, names: dict[int, str]) -> bytes:
    file = io.BytesIO()
    _Pickler(file, names).dump(value)
    return file.getvalue()


def _loads(content: bytes, objects: dict[str, Any]) -> Any:
    return _Unpickler(io.BytesIO(content), objects).load()


def _pack_attributes(attributes: dict[str, Any], names: dict[int, str]) -> dict[str, bytes]:
    packed = {}
    for name, value in attributes.items():
        try:
            packed[name] = _dumps(value, names)
        except Exception as error:  # noqa: BLE001 - open files, threads, locks: they cannot leave their process
            _log.debug("attribute %s stays in the worker: %s", name, error)
    return packed
