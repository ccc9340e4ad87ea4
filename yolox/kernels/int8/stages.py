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
    alone, as 1x1 convolutions, sums and arithmetic do. Only between stages do threads wait for each other. The first
    step of a stage may read all that was written before, and no later one overwrites what it reads.
    """
    stages: list[int] = []
    rows, written, kept = 0, set[int](), set[int]()
    for step in steps:
        owners = {id(owner_of(block)): block for block in blocks_of(step)}
        own = all(_rows_of(block) == rows for owner, block in owners.items() if owner in written)
        target = id(owner_of(step.target))
        joins = bool(stages) and own and target not in kept and step.reads_its_rows and step.num_rows == rows
        stages.append(stages[-1] + (not joins) if stages else 0)
        if not joins:
            rows, written = step.num_rows, set()
            kept = set() if step.reads_its_rows else set(owners) - {target}
        written.add(target)
    return stages


def _rows_of(block: Feature | Matrix) -> int:
    return block.height if isinstance(block, Feature) else block.rows
