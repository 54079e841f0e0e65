"""Evidence for findings: the rows of results.json by their properties, and single comparisons in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sahfl.adapters.methods import ADAPTERS
from sahfl.results.verdicts import Row


@dataclass(frozen=True)
class Pair:
    """One comparison that tests a claim."""

    name: str
    gap: Row
    """The difference of Dice, with interval, corrected p value and n."""
    verdict: str
    against: str = ""
    """A reason against the claim that holds whatever the Dice is."""
    blank: bool = False
    """Whether both methods segment almost nothing."""
    differs: Sequence[str] = ()
    """Settings in which the two methods differ besides what is compared."""

    def __str__(self) -> str:
        others = f"they differ in {', '.join(self.differs)} too" if self.differs else ""
        remarks = self.against, "both segment next to nothing" * self.blank, others
        remark = "".join(f"; {remark}" for remark in remarks if remark)
        value, low, high, n = (self.gap[key] for key in ("difference", "low", "high", "n"))
        if value is None or low is None or high is None:
            return f"{self.name}: no interval (n = {n}){remark}"
        p = self.gap["p_holm"]
        shown = "" if p is None else ", p (Holm) < 0.001" if p < 0.0005 else f", p (Holm) {p:.3f}"
        within = f"95 % interval {signed(low)} to {signed(high)}"
        return f"{self.name}: {signed(value)} ({within}, n = {n}{shown}){remark}"

    def row(self) -> dict[str, Any]:
        """This comparison in ``results.json``."""
        numbers = {key: self.gap[key] for key in ("difference", "low", "high", "n", "trainings", "p_holm")}
        return {"name": self.name, "verdict": self.verdict, **numbers}


def signed(value: float) -> str:
    """Three decimals with a sign, but for 0.000."""
    text = f"{value:+.3f}"
    return text if float(text) else text[1:]


class Evidence:
    """Access to the rows of ``results.json`` by their properties: methods, and comparisons between them."""

    def __init__(self, methods: Sequence[Row], comparisons: Iterable[Row]) -> None:
        self.methods = methods
        self._comparisons = {(row["method"], row["reference"]): row for row in comparisons}

    def federated(self, *, adapters: bool | None = None) -> list[Row]:
        """Methods that all sites fine-tuned together, as each site uses them; only adapters or others, if asked."""
        tuned = [row for row in self.methods if row["trained_at"] is None and row["start"] == "base"]
        rows = [row for row in tuned if row["part"] in (None, "personal")]
        return [row for row in rows if adapters is None or (row["method"] in ADAPTERS) == adapters]

    def whole(self, *, adapters: bool | None = None) -> list[Row]:
        """Those of ``federated`` without a part at each site, in as many rounds as the study's methods usually have."""
        return [row for row in self.federated(adapters=adapters) if row["part"] is None and row["rounds"] is None]

    def pair(self, method: str, reference: str, against: str = "") -> list[Pair]:
        """The comparison of two methods, or none if the study does not have it."""
        if (found := self._comparisons.get((method, reference))) is None:
            return []
        gap = found["metrics"]["dice"]["overall"]
        return [Pair(f"{method} against {reference}", gap, found["verdict"], against, found["blank"], found["differs"])]
