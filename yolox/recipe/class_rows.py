"""Classes of a trained network carried over to the classes of another data set, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from yolox.class_names import plain_name
from yolox.models.detector import Detector

_CLASS_PREFIX = "head.cls_preds."


def carry_classes(
    detector: Detector, weights: Mapping[str, Tensor], theirs: Sequence[str], ours: Sequence[str]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return ``weights`` with the rows of the class predictions in the order of ``ours``, and the classes carried over.

    A class is carried over where both sides have its name, whatever its capitals, dashes and underscores; the rows of
    the others are the fresh ones of ``detector``.

    Args:
        detector: A network with ``ours`` as its classes.
        weights: By official keys, with ``theirs`` as its classes.
        theirs: Class names of the weights.
        ours: Class names of the network.
    """
    rows = {plain_name(name): row for row, name in enumerate(theirs)}
    pairs = [(row, rows[plain_name(name)]) for row, name in enumerate(ours) if plain_name(name) in rows]
    own = detector.state_dict()
    carried = dict(weights)
    for key, value in weights.items():
        if key.startswith(_CLASS_PREFIX) and key in own and value.shape[1:] == own[key].shape[1:]:
            carried[key] = own[key].clone()
            for row, their_row in pairs:
                carried[key][row] = value[their_row]
    return carried, tuple(ours[row] for row, _ in pairs)
