"""Which steps threads compute one after another without waiting for each other."""

from __future__ import annotations

from collections.abc import Sequence

from yolox.kernels.int8.int8_ir import Feature, Matrix, Step


def root(feature: Feature) -> Feature:
    """Return the feature that owns the memory of this one."""
    while feature.whole is not None:
        feature = feature.whole
    return feature


def blocks_of(step: Step) -> tuple[Feature | Matrix, ...]:
    """Return all features and matrices that a step reads or writes."""
    return tuple(value for value in vars(step).values() if isinstance(value, Feature | Matrix))


def owner_of(block: Feature | Matrix) -> Feature | Matrix:
    """Return what owns the memory of a feature or matrix."""
    return root(block) if isinstance(block, Feature) else block


def stages_of(steps: Sequence[Step]) -> list[int]:
    """Return the number of the stage of each step, counted from 0.

    A thread computes the same rows of all steps of a stage: of what the stage wrote before, a step reads those rows
    alone, as 1x1 convolutions, sums and arithmetic do. Only between stages do threads wait for each other.
    """
    stages: list[int] = []
    rows, written = 0, set[int]()
    for step in steps:
        own = all(
            (block.height if isinstance(block, Feature) else block.rows) == rows
            for block in blocks_of(step)
            if id(owner_of(block)) in written
        )
        joins = bool(stages) and own and step.reads_its_rows and step.num_rows == rows
        stages.append(stages[-1] + (not joins) if stages else 0)
        if not joins:
            rows, written = step.num_rows, set()
        written.add(id(owner_of(step.target)))
    return stages
