"""Which findings of the reproduced paper a study confirms, judged from the intervals in its results.

A claim is about pairs: two methods on the same patients, or two groups of patients with the same method. Each pair has
a difference of mean Dice with a 95 % interval; positive differences support the claim. The claim states that the true
difference lies above a floor: 0 for "better", -``MARGIN`` for "no more than ``MARGIN`` worse".

Verdict of a pair: *reproduced* if its whole interval lies above the floor, *not reproduced* if the whole interval lies
below it, *undecided* if the interval contains the floor or is missing (too few patients, or withheld by their sites).
*Undecided* too if a method was trained once, because such an interval is over patients only.
*Undecided* too if both methods segment almost nothing (mean Dice of ``MARGIN`` or less).

Verdict of a claim: *reproduced* if every pair is, *not reproduced* if any pair is not, *undecided* otherwise; *not
tested* if the study has no pair. A reproduced claim needs no correction for many pairs, because all must hold; with
many pairs, one may contradict the claim by chance. The numbers shown are those of the pair with the weakest support.

To keep many ranks and settings from dominating, each adapter family counts once: at its highest rank, with the plain
mean as aggregation if the study has it, and federated unless the claim is about the place of training. Ranks are
compared with the family's lowest rank, all other settings equal. Repeats are averaged, as in the results. These rules
were fixed before any result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sahfl.adapters.methods import ADAPTERS
from sahfl.aggregation.rules import USUAL
from sahfl.config import POOLED
from sahfl.config.grid import EACH

MARGIN = 0.02
"""Dice difference up to which a method that is worse still counts as equal."""
SHARE = 1 / 3
"""Largest share of convLoRA's parameters that CP-LoRA may have."""
CP_LORA = ADAPTERS["cp_lora"]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Pair:
    """One difference that is relevant to a claim; larger values support the claim."""

    name: str
    difference: float | None
    low: float | None
    high: float | None
    n: int
    floor: float
    against: str = ""
    """A reason against the claim that holds whatever the interval is."""
    once: bool = False
    """Whether a method was trained once, so that the interval is over patients only."""
    blank: bool = False
    """Whether both methods segment almost nothing, so that their difference is meaningless."""

    @property
    def verdict(self) -> str:
        """Verdict of this pair alone."""
        if self.against:
            return "not reproduced"
        if self.low is None or self.high is None or self.once or self.blank:
            return "undecided"
        if self.low > self.floor:
            return "reproduced"
        return "not reproduced" if self.high < self.floor else "undecided"

    def __str__(self) -> str:
        if self.difference is None or self.low is None or self.high is None:
            return f"{self.name}: no interval (n = {self.n}){self.against and '; ' + self.against}"
        remarks = self.against, "one training" * self.once, "both segment next to nothing" * self.blank
        remark = "; ".join(filter(None, remarks))
        interval = f"95 % interval {self.low:+.3f} to {self.high:+.3f}, n = {self.n}"
        return f"{self.name}: {self.difference:+.3f} ({interval}){remark and '; ' + remark}"


class Evidence:
    """Access to the rows of ``results.json`` by their properties: methods, and paired differences between them."""

    def __init__(self, methods: Sequence[Row], comparisons: Iterable[Row]) -> None:
        self.methods = methods
        self._mean = {row["id"]: row["metrics"]["dice"]["overall"]["mean"] or 0.0 for row in methods}
        self._differences = {
            (row["method"], row["reference"]): row["metrics"]["dice"]["overall"] for row in comparisons
        }

    def tuned(self) -> list[Row]:
        """Rows of the trained federated methods: all standard fine-tunings, and one row for each adapter family."""
        weights = [row for row in self.federated() if row["rank"] is None]
        return [*weights, *self.families()]

    def federated(self) -> list[Row]:
        """Methods that all sites trained together."""
        return [row for row in self.methods if row["trained_at"] is None and row["method"] != "zero_shot"]

    def families(self) -> list[Row]:
        """Each adapter family at its highest rank."""
        known = [[row for row in self.federated() if row["method"] == name] for name in ADAPTERS]
        return [max(rows, key=lambda row: (row["rank"], row["aggregation"] == USUAL)) for rows in known if rows]

    def pair(self, method: str, reference: str, *, floor: float, sign: int = 1, against: str = "") -> list[Pair]:
        """The difference of two methods, or none if they were not compared; ``sign`` -1 reverses it."""
        if (found := self._differences.get((method, reference))) is None:
            return []
        numbers = [None if found[key] is None else sign * found[key] + 0.0 for key in ("difference", "low", "high")]
        value, low, high = numbers if sign > 0 else (numbers[0], numbers[2], numbers[1])
        name = f"{method} against {reference}" if sign > 0 else f"{reference} against {method}"
        blank = floor < 0 and max(self._mean[method], self._mean[reference]) <= MARGIN
        return [Pair(name, value, low, high, found["n"], floor, against, found["trainings"] == 1, blank)]


def judge(methods: Sequence[Row], comparisons: Iterable[Row]) -> list[dict[str, Any]]:
    """The findings, as written to ``results.json``, from its methods and comparisons.

    Each has id, claim, verdict, text, and difference, low, high and n of the pair with the weakest support.
    """
    evidence = Evidence(methods, list(comparisons))
    return [_finding(id_, claim, pairs(evidence)) for id_, claim, pairs in CLAIMS]


def _finding(id_: str, claim: str, pairs: Sequence[Pair]) -> dict[str, Any]:
    found = {"id": id_, "claim": claim}
    if not pairs:
        nothing = {"difference": None, "low": None, "high": None, "n": None}
        return found | {"verdict": "not tested", "text": "The study has no methods for this claim."} | nothing
    least = min(pairs, key=_support)
    numbers = {"difference": least.difference, "low": least.low, "high": least.high, "n": least.n}
    return found | {"verdict": least.verdict, "text": _text(pairs, least)} | numbers


def _support(pair: Pair) -> tuple[int, bool, float]:
    """Sort key, lowest for the weakest support: pairs against the claim, then undecided ones, then the others."""
    rank = ("not reproduced", "undecided", "reproduced").index(pair.verdict)
    return rank, pair.low is not None, 0.0 if pair.low is None else pair.low - pair.floor


def _text(pairs: Sequence[Pair], least: Pair) -> str:
    if len(pairs) == 1:
        return f"Difference of Dice: {least}."
    n = Counter(pair.verdict for pair in pairs)
    verdicts = f"For it {n['reproduced']}, against it {n['not reproduced']}, undecided {n['undecided']}"
    against = [str(pair) for pair in pairs if pair.verdict == "not reproduced" and pair is not least]
    rest = f" Also against it: {'; '.join(against)}." if against else ""
    return f"{verdicts} of {len(pairs)} pairs. Weakest support, difference of Dice: {least}.{rest}"


# ------------------------------------------------------------------------------------------------------------- pairs


def _beats_zero_shot(evidence: Evidence) -> list[Pair]:
    return [pair for row in evidence.tuned() for pair in evidence.pair(row["id"], "zero_shot", floor=0.0)]


def _equals_full(evidence: Evidence) -> list[Pair]:
    return [pair for row in evidence.families() for pair in evidence.pair(row["id"], "full", floor=-MARGIN)]


def _grows_with_volume(evidence: Evidence) -> list[Pair]:
    """Largest against smallest volumes of each method.

    The two groups contain different patients, so the interval of the difference follows from the two intervals: its
    half-length is the square root of the sum of their squared half-lengths on the relevant sides.

    Source: Zou & Donner 2008, Stat. Med. 27:1693 (MOVER), for independent estimates.
    """
    rows = [row for row in evidence.methods if row["method"] == "zero_shot"] + evidence.tuned()
    return [_between_groups(row) for row in rows if len(row["metrics"]["dice"]["by_volume"]) > 1]


def _between_groups(row: Row) -> Pair:
    small, *_, large = row["metrics"]["dice"]["by_volume"]
    name = f"{row['id']}, {large['stratum']} against {small['stratum']}"
    n = small["n"] + large["n"]
    if None in (*(small[key] for key in ("mean", "low", "high")), *(large[key] for key in ("mean", "low", "high"))):
        return Pair(name, None, None, None, n, 0.0)
    value = large["mean"] - small["mean"]
    down = ((large["mean"] - large["low"]) ** 2 + (small["high"] - small["mean"]) ** 2) ** 0.5
    up = ((large["high"] - large["mean"]) ** 2 + (small["mean"] - small["low"]) ** 2) ** 0.5
    return Pair(name, value, value - down, value + up, n, 0.0, once=small["trainings"] == 1)


def _cp_equals_conv(evidence: Evidence) -> list[Pair]:
    trainable = {row["id"]: row["trainable"] for row in evidence.methods}
    pairs = []
    for row in evidence.federated():
        if row["method"] != CP_LORA.name or (other := CP_LORA.counterpart(row["id"])) is None:
            continue
        share = row["trainable"] / trainable[other] if trainable.get(other) else None
        too_many = f"it has {share:.0%} of the parameters" if share is not None and share > SHARE else ""
        pairs += evidence.pair(row["id"], other, floor=-MARGIN, against=too_many)
    return pairs


def _rank_does_not_hurt(evidence: Evidence) -> list[Pair]:
    adapters = [row for row in evidence.federated() if row["rank"] is not None]
    pairs = [(row["id"], other["id"]) for row in adapters for other in adapters if row["rank"] > other["rank"]]
    return [pair for ids in pairs for pair in evidence.pair(*ids, floor=-MARGIN)]


def _above_place(evidence: Evidence, *, place: str, floor: float) -> list[Pair]:
    rows = [row["id"] for row in evidence.federated()]
    return [pair for id_ in rows for pair in evidence.pair(f"{id_}-{place}", id_, floor=floor, sign=-1)]


_near_pooled = partial(_above_place, place=POOLED, floor=-MARGIN)
_above_single_site = partial(_above_place, place=EACH, floor=0.0)
CLAIMS: tuple[tuple[str, str, Callable[[Evidence], list[Pair]]], ...] = (
    ("fine_tuning", "Fine-tuning beats zero-shot.", _beats_zero_shot),
    ("adapters", f"The LoRA family at least equals full fine-tuning (Dice no more than {MARGIN} below).", _equals_full),
    ("volume", "Dice grows with the volume of the hemorrhage.", _grows_with_volume),
    (
        "cp_lora",
        f"CP-LoRA is no more than {MARGIN} below convLoRA of the same rank, with a third of its parameters or less.",
        _cp_equals_conv,
    ),
    ("ranks", f"Higher ranks do not hurt (Dice no more than {MARGIN} below the lowest rank's).", _rank_does_not_hurt),
    ("pooled", f"Federated training is no more than {MARGIN} below training on pooled data.", _near_pooled),
    ("single_site", "Federated training is above training at single sites.", _above_single_site),
)
"""Id, claim and pairs of every finding, in the order of the report."""
