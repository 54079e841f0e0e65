"""From the journal: the rounds of a training that are committed, and whose answers were used in them."""

from __future__ import annotations

from collections.abc import Iterable

from sahfl.cell_names import PRETRAIN
from sahfl.payload import Header
from sahfl.run.folder import Record


def last_used(journal: Iterable[Record], header: Header, *, before: int) -> dict[str, int]:
    """The last round of a training, below ``before``, in which the answer of each site was used."""
    used: dict[int, list[str]] = {}
    for line in journal:
        if is_of(line, header) and line["round"] < before:  # a repeated round takes the place of all from it on
            used = {round_: sites for round_, sites in used.items() if round_ < line["round"]}
            used[line["round"]] = [item["site"] for item in line["used"]]
    return {site: round_ for round_ in sorted(used) for site in used[round_]}


def is_of(line: Record, header: Header) -> bool:
    """Whether a line of the journal is a committed round, or the last phase, of a training."""
    if line["event"] not in ("round", "local_phase") or not line["committed"] or line["stage"] != header.stage:
        return False
    if header.stage == "pretrain":
        return (line["method"] or PRETRAIN) == header.method
    return (line["method"], line["fold"]) == (header.method, header.fold)
