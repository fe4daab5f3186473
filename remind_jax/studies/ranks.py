"""Ranks of methods over data sets, and which of them are more than chance.

Figures of several data sets have no common unit, their ranks do. As Demsar (2006, JMLR 7) asks, Friedman's test with
the F of Iman and Davenport says whether the methods differ at all; if they do, those whose mean ranks lie at least
Nemenyi's critical difference apart differ. Blocks are what methods are ranked in; tests take them for independent.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from remind_jax.evaluation.differences import holm

LEVEL = 0.05
Block = tuple[str, str]
"""Data set and seed."""
_DIGITS = 9  # to which figures are the same


class Complete(NamedTuple):
    """The part of blocks × methods without holes.

    Attributes:
      values: method -> its figure in each block.
      blocks: those that at least one method has.
      lacking: method that is left out -> the blocks that it has not.
      undefined: the blocks that no method has.
    """

    values: dict[str, list[float]]
    blocks: tuple[Block, ...]
    lacking: dict[str, list[Block]]
    undefined: tuple[Block, ...]


class Friedman(NamedTuple):
    """Friedman's chi square, corrected for ties, F with its degrees of freedom, and p of F."""

    chi2: float
    f: float
    degrees: tuple[int, int]
    p: float


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Mean ranks of methods.

    Attributes:
      means: method -> mean rank, best first.
      blocks: how many.
      friedman: None of one block, and where all are alike in every block.
      difference: the critical one; None of one block.
    """

    means: dict[str, float]
    blocks: int
    friedman: Friedman | None
    difference: float | None

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods, best first."""
        return tuple(self.means)

    @property
    def differs(self) -> bool:
        """Tells whether Friedman's test finds that not all methods are alike."""
        return self.friedman is not None and self.friedman.p < LEVEL

    @property
    def cliques(self) -> list[tuple[int, int]]:
        """Returns first and last place, from 0, of the largest groups of two or more that are not apart."""
        if self.difference is None:
            return []
        reach = self.difference if self.differs else np.inf
        return cliques(list(self.means.values()), reach)

    @property
    def apart(self) -> dict[str, tuple[str, ...]]:
        """Returns the methods that are worse than one beyond the critical difference, where there are any."""
        if self.difference is None or not self.differs:
            return {}
        found = {
            one: tuple(m for m, mean in self.means.items() if mean - own >= self.difference)
            for one, own in self.means.items()
        }
        return {one: worse for one, worse in found.items() if worse}


def complete(cells: Mapping[Block, Mapping[str, float | None]], methods: Sequence[str]) -> Complete:
    """Keeps blocks that some method has and methods that have all of these; cells are block -> method -> figure."""
    there = {block: {m: v for m, v in found.items() if v is not None} for block, found in cells.items()}
    blocks = tuple(block for block, found in there.items() if found)
    lacking = {m: [block for block in blocks if m not in there[block]] for m in methods}
    values = {m: [there[block][m] for block in blocks] for m in methods if not lacking[m]}
    undefined = tuple(block for block, found in there.items() if not found)
    return Complete(values, blocks, {m: holes for m, holes in lacking.items() if holes}, undefined)


def compare(values: Mapping[str, Sequence[float]], more: Sequence[bool]) -> Ranking | None:
    """Ranks methods, given by their figures in n blocks; `more` [n] says where more is better.

    None of fewer than two methods, or without blocks.
    """
    if len(values) < 2 or not more:
        return None
    ranked = ranks(np.array(list(values.values()), np.float64).T, np.array(more, bool))
    means = dict(sorted(zip(values, ranked.mean(axis=0).tolist(), strict=True), key=lambda item: item[1]))
    n, k = ranked.shape
    return Ranking(means, n, friedman(ranked), critical_difference(k, n) if n > 1 else None)


def ranks(figures: np.ndarray, more: np.ndarray) -> np.ndarray:
    """Ranks methods in each block, [n, k] and bool [n] -> [n, k]; the best has 1, ties share the mean of theirs."""
    from scipy import stats

    return stats.rankdata(np.round(np.where(more[:, None], -figures, figures), _DIGITS), axis=1)


def friedman(ranked: np.ndarray) -> Friedman | None:
    """Tests whether ranks [n, k] could be those of methods that are all alike; None where that cannot be tested."""
    from scipy import stats

    n, k = ranked.shape
    centred = ranked - (k + 1) / 2
    total = np.sum(centred**2)
    if n < 2 or not total:
        return None
    chi2 = (k - 1) * np.sum(centred.sum(axis=0) ** 2) / total
    left, degrees = n * (k - 1) - chi2, (k - 1, (k - 1) * (n - 1))
    f = (n - 1) * chi2 / left if left > 1e-9 else np.inf
    return Friedman(float(chi2), float(f), degrees, float(stats.f.sf(f, *degrees)))


def critical_difference(k: int, n: int, level: float = LEVEL) -> float:
    """Computes by how much mean ranks of k methods over n blocks must differ, by Nemenyi's test of all pairs."""
    from scipy import stats

    return float(stats.studentized_range.isf(level, k, np.inf) * (k * (k + 1) / (12 * n)) ** 0.5)


def cliques(means: Sequence[float], difference: float) -> list[tuple[int, int]]:
    """Returns first and last index of the largest runs of two or more that differ by less; means are in order."""
    found: list[tuple[int, int]] = []
    for first, mean in enumerate(means):
        last = max(i for i, other in enumerate(means) if other - mean < difference)
        if last > max(first, found[-1][1] if found else 0):
            found.append((first, last))
    return found


def wilcoxon(values: Mapping[str, Sequence[float]], more: Sequence[bool], against: str) -> dict[str, float] | None:
    """Tests each method against one by Wilcoxon's signed ranks over blocks; returns p, corrected by Holm.

    Differences are divided by the standard deviation of the block's figures over methods, as blocks have other units.
    None where so few blocks could give no corrected p below `LEVEL`.
    """
    others = [method for method in values if method != against]
    if 2.0 ** (1 - len(more)) * len(others) >= LEVEL or against not in values:
        return None
    from scipy import stats

    figures = {m: np.where(more, 1, -1) * np.array(values[m]) for m in values}
    spread = np.std(list(figures.values()), axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        each = [np.nan_to_num(np.round(figures[m] - figures[against], _DIGITS) / spread) for m in others]
    p = holm([float(stats.wilcoxon(x).pvalue) if np.any(x) else 1.0 for x in each])
    return {m: corrected for m, corrected in zip(others, p, strict=True) if corrected is not None}
