"""The rows of the inversion benchmark, and its tables in Markdown.

python benchmarks/inversion.py    # measures and prints them
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from inversion_readout import NOTHING, Score, interval, wilson


@dataclass
class Row:
    """An attack and what came of it."""

    name: str
    what: str
    sizes: str
    base: str
    start: str
    found: Score = NOTHING
    alone: list[bool] = field(default_factory=list)
    """Whether the scored slice was the only one behind its gate."""
    rounds: int = 0
    n_bytes: int = 0
    """Of one answer."""
    seconds: float = 0.0
    """Of all rounds at the hospital."""
    opened: int = 0
    """Rounds in which a gate opened, or all."""
    held: int = 0
    """Of these, rounds whose update the check of the default policy holds back."""
    statistics: dict[str, float] = field(default_factory=dict)

    def line(self) -> str:
        """The row in Markdown."""
        r, first = self.found.residual, self.found.first
        if not r:
            return f"| {self.what} | {self.sizes} | {self.base} | {self.start} | nothing | | | | | | |"
        single = [one for one, alone in zip(r, self.alone, strict=False) if alone]
        cells = [
            *(self.what, self.sizes, self.base, self.start, f"{len(r)} in {self.rounds}"),
            "{:.2f} ({:.2f} to {:.2f})".format(*interval(r)) + (f"; alone {np.mean(single):.2f}" if single else ""),
            f"{np.mean(self.found.prior):.2f}",
            "{:.2f} ({:.2f} to {:.2f})".format(float(np.mean(first)), *wilson(sum(first), len(first))),
            *(f"{self.held} of {self.opened}", f"{self.n_bytes / 1000:.0f} kB", f"{self.seconds / self.rounds:.1f}"),
        ]
        return f"| {' | '.join(cells)} |"


def as_tables(rows: Sequence[Row]) -> Iterator[str]:
    """The scores and the statistics, in Markdown."""
    columns = "attack", "steps x slices", "base", "start", "slices in rounds"
    scores = "residual r (95 %)", "prior r", "first of 100 (95 %)", "held back", "sent", "s a round"
    yield f"| {' | '.join([*columns, *scores])} |\n{'|---' * 11}|"
    yield from (row.line() for row in rows if row.name != "usual")
    told = [row for row in rows if row.statistics]
    names = list(told[0].statistics) if told else []
    yield f"\n| attack | {' | '.join(names)} |\n{'|---' * (len(names) + 1)}|"
    yield from (f"| {row.what} | {' | '.join(f'{row.statistics[name]:.2g}' for name in names)} |" for row in told)
