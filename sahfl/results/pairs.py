"""What is compared with what: ``comparisons`` in results.json."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sahfl.adapters.methods import ADAPTERS
from sahfl.config import POOLED, POOLED_STEPS, POOLS, AdapterTuning, Method, Study, ZeroShot
from sahfl.config.grid import EACH, FROM_EACH, OTHERS
from sahfl.results.method_results import compare
from sahfl.results.method_rows import MethodRow, left_out_of, plain_method, without_part


def compare_rows(study: Study, rows: Sequence[MethodRow]) -> list[dict[str, Any]]:
    """All comparisons whose two methods are in the study; their p values are not corrected yet."""
    by_id = {row.id: row for row in rows}
    found = []
    for method, reference in dict.fromkeys(_pairs(rows)):
        if method in by_id and reference in by_id:
            ours, theirs = by_id[method].evaluated, by_id[reference].evaluated
            # The base of all comes from one pretraining, and another one would give another base.
            ours = ours.once() if by_id[reference].trained_at == FROM_EACH else ours
            differs = _differs(by_id[method], by_id[reference])
            pair = {"method": method, "reference": reference, "differs": differs}
            found.append(pair | compare(study, ours, theirs))
    return found


NOT_IN_IDS = ("learning_rate", "alpha", "scaling", "rank_dropout", "all_magnitudes", "site_ranks")
"""Settings of a method that its id does not have."""


def _differs(row: MethodRow, other: MethodRow) -> list[str]:
    """Settings of both methods in which they differ although the comparison is not about them.

    Standard fine-tuning and adapters need other learning rates, so that of these only the rounds count.
    """
    if isinstance(row.method, ZeroShot) or isinstance(other.method, ZeroShot):
        return []
    names = (*NOT_IN_IDS, "rounds") if type(row.method) is type(other.method) else ("rounds",)

    def values(row: MethodRow, name: str) -> set[str]:
        return {str(getattr(method, name, None)) for method in row.trainings}

    return [name for name in names if values(row, name) != values(other, name)]


def _pairs(rows: Sequence[MethodRow]) -> Iterator[tuple[str, str]]:
    """Method and reference, in this order.

    Every trained method with zero-shot; every federated fine-tuning with that of the whole network, and with training
    from scratch; adapters with the lowest rank of the same settings; CP-LoRA with convLoRA of the same rank and
    options; federated training with training in one place and with training without the patients' own site, and this
    with each site alone; a method with a part at each site with the same method without it, federated, at each site
    alone and pooled; pooled training with that in as many steps as one site takes; the base of all pretraining sites
    with their own bases, before and after fine-tuning.
    """
    yield from _pairs_of_bases(rows)
    trained = [row for row in rows if not isinstance(row.method, ZeroShot) and row.method.base_of is None]
    adapters = [row for row in trained if isinstance(row.method, AdapterTuning)]
    federated = [row for row in adapters if row.trained_at is None and row.part in (None, "personal")]
    whole = [row for row in trained if row.trained_at == OTHERS or not left_out_of(row.method)]
    yield from ((row.id, "zero_shot") for row in whole)
    tuned = [row for row in trained if row.trained_at is None and row.start == "base"]
    yield from ((row.id, "full") for row in tuned if row.id != "full")
    scratch = [row.id for row in trained if row.trained_at is None and row.start == "scratch"]
    yield from ((row.id, other) for row in tuned if row.part in (None, "personal") for other in scratch)
    yield from ((row.id, other) for row in adapters if (other := ADAPTERS[row.method.method].counterpart(row.id)))
    for row in federated:
        lowest = min((other for other in federated if _settings(other) == _settings(row)), key=_rank)
        if lowest is not row:
            yield row.id, lowest.id
    places = [row for row in trained if row.trained_at in (*POOLS, EACH, OTHERS)]
    yield from ((plain_method(row.method, federated=True).id, row.id) for row in places)
    pooled = [plain_method(row.method, federated=True).id for row in places if row.trained_at == POOLED]
    yield from ((f"{id_}-{POOLED}", f"{id_}-{POOLED_STEPS}") for id_ in pooled)
    left_out = [row for row in trained if row.trained_at == OTHERS]
    yield from ((row.id, f"{plain_method(row.method, federated=True).id}-{EACH}") for row in left_out)
    for row in trained:
        if (plain := without_part(row, rows)) is not None:  # what each site gains by a part of its own
            others = [plain] if row.part != "personal" else [plain, *(f"{plain}-{place}" for place in (EACH, *POOLS))]
            yield from ((row.id, other) for other in others)


def _pairs_of_bases(rows: Sequence[MethodRow]) -> Iterator[tuple[str, str]]:
    for row in rows:
        if row.trained_at == FROM_EACH:
            yield plain_method(row.method).model_copy(update={"base_of": None}).id, row.id


def _settings(row: MethodRow) -> Method:
    """The settings that all ranks of a method share."""
    return row.method.model_copy(update={"rank": 1, "repeat": 1})


def _rank(row: MethodRow) -> int:
    return row.method.rank if isinstance(row.method, AdapterTuning) else 0
