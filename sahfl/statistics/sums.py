"""Sums that a hospital sends instead of cases.

A site adds up its own cases (``EvaluationSums.of``) and sends one flat array. The coordinator adds the arrays of all
sites. ``estimates`` then gives the same values as the pooled cases would, although no case leaves its site.

What the sums reveal: with one case, a total is its Dice; with two, ``totals`` and ``squares`` give both values. Whoever
has the keys can solve the replicate sums of one method for the Dice of every case, so keys must depend on a secret of
the site. A histogram of few cases lists them. The sums contain no image and no identity. ``disclosure`` decides what a
site withholds of small groups; the sums record it, so that a withheld group cannot be mistaken for an empty one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import NDArray

from sahfl.statistics.agreement import VolumeSums, check, read_count
from sahfl.statistics.cases import CaseResult, Settings, extent_of, n_groups, stratum_of
from sahfl.statistics.groups import STEPS, GroupSums, row_length
from sahfl.statistics.metrics import NAMES, VOLUME_EDGES_ML, Floats, count_volumes

HEAD = 15
"""How many numbers of a site's array precede the histogram of volumes and the groups."""
N_VOLUME_BINS = len(VOLUME_EDGES_ML) - 1


@dataclass(frozen=True)
class Withheld:
    """How many sites withheld which results of small groups."""

    strata: int = 0
    """Sites that withheld the split of cases with blood by volume."""
    extents: int = 0
    """Sites that withheld the split of cases with blood by extent."""
    blood: int = 0
    """Sites that withheld all results of cases with blood."""
    no_blood: int = 0
    """Sites that withheld the counts of cases without blood."""

    def __add__(self, other: Withheld) -> Withheld:
        return Withheld(*map(add, astuple(self), astuple(other)))


@dataclass(frozen=True, eq=False)
class EvaluationSums:
    """Everything that a site reports about the evaluation of one method."""

    overall: GroupSums
    """All cases with blood."""
    by_volume: tuple[GroupSums, ...]
    """The cases with blood by volume stratum; zero for sites that withhold this split."""
    by_extent: tuple[GroupSums, ...]
    """The cases with blood by extent group; zero for sites that withhold this split."""
    n_no_blood: int
    """Cases without annotated blood; they are in no group and not in ``volume``."""
    n_false_positive: float
    """Cases without blood in which blood was predicted; a whole number except in an ``average``."""
    volume: VolumeSums
    """Volume sums over the cases with blood."""
    volume_counts: Floats
    """Cases with blood by annotated and predicted volume, (bins, bins); zero for sites that withhold replicates."""
    withheld: Withheld = Withheld()
    """Which results are missing, and from how many sites."""

    @classmethod
    def of(cls, cases: Sequence[CaseResult], settings: Settings, *, seed: int) -> EvaluationSums:
        """Add up the cases of a site; stratum i holds ``edges[i-1] <= volume < edges[i]``, and likewise for extents.

        Raises:
            ValueError: the edges are not positive and increasing.
        """
        n_strata, n_extents = n_groups(settings)
        empty = [case for case in cases if case.volume_ml == 0]
        blood = [case for case in cases if case.volume_ml > 0]
        strata = [[case for case in blood if stratum_of(case, settings) == index] for index in range(n_strata)]
        extents = [[case for case in blood if extent_of(case, settings) == index] for index in range(n_extents)]
        overall, *groups = (
            GroupSums.of(group, replicates=settings.replicates, seed=seed) for group in (blood, *strata, *extents)
        )
        pairs = [(case.volume_ml, case.predicted_ml) for case in blood]
        n_false_positive = sum(case.predicted_ml > 0 for case in empty)
        counts = len(empty), n_false_positive
        volumes = VolumeSums.of(pairs), count_volumes(pairs)
        return cls(overall, tuple(groups[:n_strata]), tuple(groups[n_strata:]), *counts, *volumes)

    @classmethod
    def zero(cls, settings: Settings) -> EvaluationSums:
        """Sums over no case; the start of a sum over sites."""
        return cls.of([], settings, seed=0)

    def __add__(self, other: EvaluationSums) -> EvaluationSums:
        for name in ("by_volume", "by_extent"):
            ours, theirs = len(getattr(self, name)), len(getattr(other, name))
            if ours != theirs:
                raise ValueError(f"evaluation sums, {name}: got {theirs} groups, expected {ours}")
        return EvaluationSums(
            self.overall + other.overall,
            tuple(map(add, self.by_volume, other.by_volume)),
            tuple(map(add, self.by_extent, other.by_extent)),
            self.n_no_blood + other.n_no_blood,
            self.n_false_positive + other.n_false_positive,
            self.volume + other.volume,
            self.volume_counts + other.volume_counts,
            self.withheld + other.withheld,
        )

    def to_array(self) -> Floats:
        """The flat array that a site sends, float64, shape (``array_length(settings)``,).

        Its order: n_no_blood, n_false_positive, six volume sums; 1 or 0 for withheld strata, extents, blood, no_blood,
        replicates, misses in all, and misses in the groups; the histogram of volumes; then the groups: overall, by
        volume, by extent.

        Raises:
            ValueError: the sums add up sites that withheld different parts; such sums are never sent.
        """
        n = self.overall.n
        for groups, absent in ((self.by_volume, self.withheld.strata), (self.by_extent, self.withheld.extents)):
            kept = sum(group.n for group in groups)
            whole = {self.overall.bare, self.overall.hidden} <= {0, n} and sum(g.hidden for g in groups) in (0, kept)
            if kept != (0 if absent else n) or not whole:
                raise ValueError("evaluation sums: hold several sites that withheld different parts, expected one site")
        flags = [*astuple(self.withheld), self.overall.bare > 0, self.overall.hidden > 0, self.hides_groups]
        head = [self.n_no_blood, self.n_false_positive, *astuple(self.volume), *flags]
        rows = [group.to_row() for group in self.groups]
        return np.hstack([np.asarray(head, np.float64), self.volume_counts.ravel(), *rows])

    @property
    def groups(self) -> tuple[GroupSums, ...]:
        """All groups, in the order of an array: overall, by volume, by extent."""
        return self.overall, *self.by_volume, *self.by_extent

    def with_groups(self, groups: Iterable[GroupSums]) -> EvaluationSums:
        """The same sums with other groups, in the order of ``groups``."""
        overall, *parts = groups
        n = len(self.by_volume)
        return replace(self, overall=overall, by_volume=tuple(parts[:n]), by_extent=tuple(parts[n:]))

    @property
    def hides_groups(self) -> bool:
        """Whether misses and HD95 of the strata and extents are withheld, by one site or more."""
        return any(group.hidden for group in self.groups[1:])

    @classmethod
    def from_array(cls, array: NDArray[np.generic], settings: Settings) -> EvaluationSums:
        """Read the sums that a site sent, shape (``array_length(settings)``,).

        Guarantees: counts are whole numbers; some cases could have given every sum; groups add up to the whole; volumes
        and volume errors agree; parts marked as withheld are zero.

        Raises:
            PayloadError: a sum is impossible; the message names it.
        """
        check(array.dtype == np.float64, "dtype", array.dtype, "float64")
        length = array_length(settings)
        check(array.shape == (length,), "shape", array.shape, f"({length},)")
        check(bool(np.isfinite(array).all()), "array", "NaN or inf", "finite numbers")
        n_strata, n_extents = n_groups(settings)
        head, volumes, body = np.split(array.astype(np.float64), np.cumsum([HEAD, N_VOLUME_BINS**2]))
        rows = body.reshape(1 + n_strata + n_extents, -1)
        withheld, bare, hidden = _read_withheld(head, volumes, rows, n_strata)
        names = ["all", *(f"stratum {i}" for i in range(n_strata)), *(f"extent {i}" for i in range(n_extents))]
        overall, *groups = (
            GroupSums.from_row(row, name, bare=bare, hidden=hidden[name != "all"])
            for row, name in zip(rows, names, strict=True)
        )
        by_volume, by_extent = tuple(groups[:n_strata]), tuple(groups[n_strata:])
        if not withheld.strata:
            _check_split("strata", overall, by_volume)
        if not withheld.extents:
            _check_split("extents", overall, by_extent)
        n_no_blood, n_false_positive = read_count(head[0], "n_no_blood"), read_count(head[1], "n_false_positive")
        check(n_false_positive <= n_no_blood, "n_false_positive", n_false_positive, f"<= n_no_blood={n_no_blood}")
        volume = VolumeSums.from_array(head[2:8], n=overall.n)
        _check_volumes(overall, volume, volumes)
        counts = volumes.reshape(N_VOLUME_BINS, -1).copy()  # a view would keep the whole array in memory
        return cls(overall, by_volume, by_extent, n_no_blood, float(n_false_positive), volume, counts, withheld)


def array_length(settings: Settings) -> int:
    """How many numbers a site sends for one method and fold."""
    return HEAD + N_VOLUME_BINS**2 + (1 + sum(n_groups(settings))) * row_length(settings.replicates)


def average(repeats: Sequence[EvaluationSums]) -> EvaluationSums:
    """Average sums of repeats: one method trained several times, each repeat evaluated on the same cases. n is one
    repeat's.

    A mean is the mean over repeats of their means, and its interval over patients is that of this mean. The SD and the
    median are those of all case results of all repeats. ``volume`` describes a randomly drawn case of a random repeat.

    Raises:
        ValueError: there is no repeat, or the repeats hold different cases.
    """
    first, *others = repeats
    if not others:
        return first
    for other in others:
        n, n_no_blood = first.overall.n, first.n_no_blood
        same = (other.overall.n, other.n_no_blood, other.withheld) == (n, n_no_blood, first.withheld)
        if not same or not np.array_equal(other.overall.weights, first.overall.weights):
            got = f"{first.overall.n} and {other.overall.n} cases"
            raise ValueError(f"average of repeats: got {got}, expected the same cases in all")
    repeats = equally_hidden(repeats)
    total, share = reduce(add, repeats), 1 / len(repeats)
    volume = VolumeSums(first.volume.n, *(share * value for value in astuple(total.volume)[1:]))
    averaged = replace(
        total,
        n_no_blood=first.n_no_blood,
        n_false_positive=share * total.n_false_positive,
        volume=volume,
        volume_counts=share * total.volume_counts,
        withheld=first.withheld,
    )
    return averaged.with_groups(_share(*pair, share) for pair in zip(total.groups, repeats[0].groups, strict=True))


def equally_hidden(repeats: Sequence[EvaluationSums]) -> list[EvaluationSums]:
    """The repeats without misses and HD95 of every group of which one of them withholds these."""
    hidden = [any(group.hidden for group in same) for same in zip(*(part.groups for part in repeats), strict=True)]
    return [
        part.with_groups(
            group.without_detection() if hide else group for group, hide in zip(part.groups, hidden, strict=True)
        )
        for part in repeats
    ]


def _share(total: GroupSums, one: GroupSums, share: float) -> GroupSums:
    sums = {name: share * getattr(total, name) for name in ("totals", "squares", "counts", "weighted", "missed")}
    return replace(one, **sums)


def _read_withheld(
    head: Floats, volumes: Floats, rows: Floats, n_strata: int
) -> tuple[Withheld, bool, tuple[bool, bool]]:
    """Read what a site withheld, whether its replicates, and whether the misses of all and of the groups.

    Every withheld part must be zero, except that ``GroupSums.from_row`` checks the sums of HD95.
    """
    check(bool(np.isin(head[8:], (0, 1)).all()), "withheld", head[8:].tolist(), "0 or 1 each")
    strata, extents, blood, no_blood, bare, hidden, hides_groups = map(int, head[8:])
    check(not ((strata or extents) and blood), "withheld", "a split and all cases with blood", "one of them")
    check(
        not hidden or bool(hides_groups or (strata and extents)), "withheld", "misses in all, not in groups", "in both"
    )
    first = 2 + 2 * len(NAMES)
    parts = {"strata": (strata, rows[1 : 1 + n_strata]), "extents": (extents, rows[1 + n_strata :])}
    parts |= {"cases with blood": (blood, rows), "replicates and histograms": (bare, rows[:, first:])}
    parts |= {"volumes": (blood, head[2:8]), "histogram of volumes": (blood or bare, volumes)}
    parts |= {"cases without blood": (no_blood, head[:2])}
    for name, (missing, values) in parts.items():
        check(not (missing and values.any()), name, "numbers although withheld", "zeros")
    return Withheld(strata, extents, blood, no_blood), bool(bare), (bool(hidden), bool(hides_groups))


def _check_split(name: str, whole: GroupSums, parts: Sequence[GroupSums]) -> None:
    """Check that the groups of a split add up to the whole: counts exactly, other sums except for rounding."""
    together = reduce(add, parts)
    exact = together.n == whole.n and np.array_equal(together.weights, whole.weights)
    if together.hidden:
        whole = whole.without_detection()
    exact = exact and np.array_equal(together.counts, whole.counts) and together.missed == whole.missed
    check(bool(exact), name, "other cases", "those of the whole")
    # A site rounds each sum down or up to a step before it sends it.
    slack = (2 + len(parts)) * STEPS
    for what in ("totals", "squares", "weighted"):
        ours, theirs = getattr(together, what).T, getattr(whole, what).T
        fits = bool((np.abs(ours - theirs) <= slack + 1e-9 * np.abs(theirs)).all())
        check(fits, f"{name}, {what}", "another sum", "that of the whole")


def _check_volumes(whole: GroupSums, volume: VolumeSums, counts: Floats) -> None:
    """Check volumes against their histogram, and sums of errors against volumes: a squared error is (y - x)**2."""
    bins = counts.reshape(N_VOLUME_BINS, -1)
    fits = bool(((counts >= 0) & (counts == np.floor(counts))).all())
    there = 0 if whole.bare else whole.n
    check(fits and counts.sum() == there, "histogram of volumes", "another", f"whole numbers of {there} cases")
    for name, total, margin in (("x", volume.x, bins.sum(1)), ("y", volume.y, bins.sum(0))):
        least = float(margin @ np.asarray(VOLUME_EDGES_ML[:-1]))
        check(least <= total * (1 + 1e-9), f"volume, {name}", total, f"at least {least:g}, as the histogram requires")
    index = NAMES.index("volume_error_ml")
    total, squares, slack = float(whole.totals[index]), float(whole.squares[index]), 2 * float(STEPS[index])
    expected, scale = volume.xx + volume.yy - 2 * volume.xy, 1e-9 * (volume.xx + volume.yy)
    fits = abs(squares - expected) <= slack + scale
    check(fits, "volume_error_ml, squares", squares, f"{expected:g}, of the volumes")
    low, high = abs(volume.y - volume.x), volume.x + volume.y
    fits = low * (1 - 1e-9) - slack <= total <= high * (1 + 1e-9) + slack
    check(fits, "volume_error_ml, total", total, f"in [{low:g}, {high:g}], of the volumes")
