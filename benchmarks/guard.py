"""``python -m benchmarks.guard``: which kernel, step or tool became slower since another commit, by more than noise."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from benchmarks.checkouts import CheckoutProcess, checkout_of
from benchmarks.guard_side import MEASUREMENTS
from benchmarks.protocol import ROOT, native_precisions
from yolox.inference.search.latency import interleave
from yolox.tables import text_table

Ask = Callable[[int], object]
TOLERATED = 0.02
"""A change of 2 % is never called one: two checkouts of the same commit differ by as much."""
_SCRIPT = ROOT / "benchmarks" / "guard_side.py"


@dataclass(frozen=True)
class Verdict:
    """How a measurement changed.

    Args:
        name: The measurement.
        before: Median seconds of the other commit.
        after: Median seconds of this checkout.
        ratio: Median over the rounds of after by before.
        low: Lower end of the 95 % interval of the ratio.
        high: Its upper end.
        problem: Why there is no figure, else empty.
    """

    name: str
    before: float = float("nan")
    after: float = float("nan")
    ratio: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    problem: str = ""

    @property
    def word(self) -> str:
        """``slower``, ``faster``, ``same``, or the problem."""
        if self.problem:
            return self.problem
        if self.low > 1 + TOLERATED:
            return "slower"
        return "faster" if self.high < 1 - TOLERATED else "same"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; the exit code is 1 where something became slower."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guard", description=__doc__)
    parser.add_argument("commit", nargs="?", default="HEAD~1", help="the commit to compare this checkout with (HEAD~1)")
    parser.add_argument("--only", metavar="TEXT", default="", help="only measurements whose name contains TEXT")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of both sides (%(default)s)")
    args = parser.parse_args(argv)
    wanted = [
        name for name in MEASUREMENTS if args.only in name and ("bf16" not in name or "bf16" in native_precisions())
    ]
    if not wanted:
        parser.error(f"no measurement is named like '{args.only}'; there are: {'; '.join(MEASUREMENTS)}")
    try:
        with checkout_of(args.commit) as other:
            verdicts = compare(other, ROOT, wanted, args.rounds)
    except subprocess.CalledProcessError:
        return 2  # git has said why
    print(table(verdicts, args.commit))
    return 1 if any(verdict.word == "slower" for verdict in verdicts) else 0


def compare(before: Path, after: Path, names: Sequence[str], rounds: int) -> list[Verdict]:
    """Measure two checkouts by turns, in one process each.

    Args:
        before: One checkout.
        after: The other one.
        names: Measurements of `guard_side`.
        rounds: Rounds of each measurement.
    """
    with CheckoutProcess(before, [str(_SCRIPT)]) as old, CheckoutProcess(after, [str(_SCRIPT)]) as new:
        verdicts = []
        for name in names:
            print(f"{name} ...", file=sys.stderr, flush=True)
            verdicts.append(_measure(name, partial(_ask, old, name), partial(_ask, new, name), rounds))
        return verdicts


def _ask(process: CheckoutProcess, name: str, runs: int) -> object:
    return process.ask([name, runs])


def _measure(name: str, old: Ask, new: Ask, rounds: int) -> Verdict:
    sides = {"before": old, "after": new}
    runs = 1
    for side, ask in sides.items():
        first = ask(2)
        if not isinstance(first, list):
            return Verdict(name, problem=f"not measured, {side}: {first}")
        runs = max(1, min(50, int(0.3 / max(first[-1], 1e-6))))  # a third of a second a round
    medians: dict[str, list[float]] = {side: [] for side in sides}
    for _, side in interleave(list(sides), rounds):
        medians[side].append(float(np.median(np.asarray(sides[side](runs), dtype=float))))
    return judge(name, medians["before"], medians["after"])


def judge(name: str, before: ArrayLike, after: ArrayLike) -> Verdict:
    """Return the verdict on the medians of the rounds, which belong together pairwise.

    The interval is the bootstrap's: rounds drawn again with replacement, two thousand times.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13.
    """
    old, new = np.asarray(before, np.float64), np.asarray(after, np.float64)
    ratios = new / old
    drawn = np.random.default_rng(0).integers(0, len(ratios), (2000, len(ratios)))
    low, high = np.percentile(np.median(ratios[drawn], axis=1), [2.5, 97.5])
    middle = float(np.median(ratios))
    return Verdict(name, float(np.median(old)), float(np.median(new)), middle, float(low), float(high))


def table(verdicts: Sequence[Verdict], commit: str) -> str:
    """Return the verdicts as text, the slower ones first."""
    order = sorted(
        verdicts, key=lambda verdict: ("slower", "faster", "same").index(verdict.word) if not verdict.problem else 3
    )
    rows = [
        [v.name, f"{1e3 * v.before:.2f}", f"{1e3 * v.after:.2f}", f"{v.ratio:.3f}", f"{v.low:.3f}–{v.high:.3f}", v.word]
        if not v.problem
        else [v.name, "–", "–", "–", "–", v.problem]
        for v in order
    ]
    return text_table(["measurement", f"{commit}, ms", "here, ms", "ratio", "95 % interval", ""], rows)


if __name__ == "__main__":
    sys.exit(main())
