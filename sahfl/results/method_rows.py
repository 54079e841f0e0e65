"""The rows of ``methods`` in results.json: averaged repeats of a method, and its trainings at single sites."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sahfl.config import (
    AdapterTuning,
    Method,
    Study,
    TrainedMethod,
    WeightTuning,
    ZeroShot,
)
from sahfl.config.grid import EACH, FROM_EACH, OTHERS
from sahfl.config.training import MOST_REPEATS
from sahfl.networks import trained_tensors
from sahfl.results.method_results import MASKED, Evaluated, Key, Sums, measured, read_fold, withheld_parts
from sahfl.run.folder import Record, RunFolder
from sahfl.statistics.estimates import estimate
from sahfl.statistics.sums import EvaluationSums, average
from sahfl.statistics.variances import Sample
from sahfl.task import Part, parts_of


@dataclass(frozen=True)
class MethodRow:
    """One row: a method and place of training, with the sums of each repeat."""

    id: str
    method: Method
    """The first of its trainings."""
    trained_at: str | None
    part: Part | None
    """What of it was evaluated, if each site has a part of its own."""
    trainings: tuple[Method, ...]
    """All of them, as named in the run's folder."""
    repeats: Mapping[int, Sums]
    """Sums of each repeat, by its number; of a method from several bases those of each base, averaged over repeats."""
    sums: Sums
    """Averaged over the repeats; each patient counts once."""
    missing: tuple[Record, ...]
    """Folds and sites that were not evaluated, each with repeat and reason."""

    @property
    def start(self) -> str | None:
        """What the training starts from, ``base`` or ``scratch``; None for zero-shot."""
        if isinstance(self.method, ZeroShot):
            return None
        return self.method.start if isinstance(self.method, WeightTuning) else "base"

    @property
    def evaluated(self) -> Evaluated:
        """The sums for estimates over patients and trainings."""
        if self.trained_at != FROM_EACH:
            return Evaluated(self.sums, self.repeats, trained=not isinstance(self.method, ZeroShot))
        # No repeat has the number of a base, so that the two are never taken for a pair.
        return Evaluated(self.sums, {MOST_REPEATS + number: sums for number, sums in self.repeats.items()})


def find_rows(folder: RunFolder, study: Study, after_round: int = 0) -> list[MethodRow]:
    """The rows of a study, in the order of its methods.

    Repeats share one row. A method with a part at each site has a row for each of ``task.Part``. A method that was
    trained at every site alone gets an additional row before those of the sites: each site's patients, segmented by the
    network that was trained at that site. So does one that was trained without each site in turn: each site's patients,
    segmented by the network of all other sites. A method from each pretraining site's own base gets the mean over
    these bases, each of which counts as a training. With ``after_round``, the sums are those after this round, which
    zero-shot does not have.
    """
    groups: dict[str, list[Method]] = {}
    for method in study.finetune.methods:
        groups.setdefault(plain_method(method).id, []).append(method)
    rows: dict[str, MethodRow] = {}
    for id_, methods in groups.items():
        for place, ending, part in _of_all_sites(methods[0]):
            federated = plain_method(methods[0], federated=True).id
            by_site: dict[str | None, list[Method]] = {
                site: groups.get(f"{federated}-{ending}-{site}", []) for site in study.finetune.sites
            }
            if all(by_site.values()):
                name = f"{federated}-{place}"
                rows.setdefault(name, _make_row(folder, study, name, place, by_site, part, after_round))
        if methods[0].base_of is not None and study.pretrain is not None:
            own = [plain_method(methods[0]).model_copy(update={"base_of": site}).id for site in study.pretrain.sites]
            if all(id_ in groups for id_ in own):
                name = plain_method(methods[0]).model_copy(update={"base_of": EACH}).id
                bases = [groups[id_] for id_ in own]
                rows.setdefault(name, _make_row_of_bases(folder, study, name, bases, after_round))
        for part in parts_of(methods[0]):
            name = id_ if part in (None, "personal") else f"{id_}-{part}"
            rows[name] = _make_row(folder, study, name, _place(methods[0]), {None: methods}, part, after_round)
    return list(rows.values())


def _of_all_sites(method: Method) -> Iterator[tuple[str, str, Part | None]]:
    """The row over all sites that a training for one site belongs to: place, ending of the trainings' ids, and part."""
    if not isinstance(method, ZeroShot) and method.is_alone:
        yield EACH, "at", "personal"
    if not isinstance(method, ZeroShot) and method.left_out:
        yield OTHERS, "without", None


def _place(method: Method) -> str | None:
    if method.base_of is not None:
        return f"from-{method.base_of}"
    if isinstance(method, ZeroShot):
        return None
    return f"without-{left_out}" if (left_out := left_out_of(method)) else method.trained_at


def left_out_of(method: Method) -> str | None:
    """The fine-tuning site that takes no part in the training, if there is one."""
    return None if isinstance(method, ZeroShot) else method.left_out


def plain_method(method: Method, *, federated: bool = False) -> Method:
    """The method in its first training; with ``federated``, trained at all sites."""
    if isinstance(method, ZeroShot):
        return method
    return method.model_copy(update={"repeat": 1} | ({"trained_at": None, "left_out": None} if federated else {}))


def _make_row(
    folder: RunFolder,
    study: Study,
    id_: str,
    place: str | None,
    wanted: Mapping[str | None, Sequence[Method]],
    part: Part | None,
    after_round: int,
) -> MethodRow:
    """A row from trainings, each with the site whose patients it covers; None for those of all sites.

    Trainings with one number are one training.
    """
    repeats: dict[int, dict[Key, EvaluationSums]] = {}
    missing: list[Record] = []
    for site, methods in wanted.items():
        for method in methods:
            number = 1 if isinstance(method, ZeroShot) else method.repeat
            known = repeats.setdefault(number, {})
            for fold in range(study.finetune.folds):
                found, lines = read_fold(folder, study, method, fold, part, after_round)
                known |= {key: sums for key, sums in found.items() if site in (None, key[1])}
                missing += [line | {"repeat": number} for line in lines if site in (None, line["site"])]
    trainings = tuple(method for methods in wanted.values() for method in methods)
    together = _average([repeats[number] for number in sorted(repeats)])
    return MethodRow(id_, trainings[0], place, part, trainings, repeats, together, tuple(missing))


def _make_row_of_bases(
    folder: RunFolder, study: Study, id_: str, bases: Sequence[Sequence[Method]], after_round: int
) -> MethodRow:
    """A row from the trainings of several bases; the average over a base's repeats counts as one training."""
    rows = [_make_row(folder, study, id_, FROM_EACH, {None: methods}, None, after_round) for methods in bases]
    trainings = tuple(method for row in rows for method in row.trainings)
    averages = {number: row.sums for number, row in enumerate(rows, start=1)}
    missing = tuple(line for row in rows for line in row.missing)
    return MethodRow(id_, trainings[0], FROM_EACH, None, trainings, averages, _average([*averages.values()]), missing)


def _average(repeats: Sequence[Sums]) -> dict[Key, EvaluationSums]:
    """Mean of the repeats' sums for each fold and site, without repeats that withhold other parts than the first.

    Of masked sums each fold has those of one set of sites, of the one that most repeats have, so that a patient counts
    once.
    """
    counts = Counter(key for sums in repeats for key in sums)
    masked = {fold: (fold, place) for (fold, place), _ in reversed(counts.most_common()) if place.startswith(MASKED)}
    keys = sorted(key for key in counts if not key[1].startswith(MASKED) or key == masked[key[0]])
    found: dict[Key, EvaluationSums] = {}
    for key in keys:
        first, *others = [sums[key] for sums in repeats if key in sums]
        found[key] = average([first, *(part for part in others if withheld_parts(part) == withheld_parts(first))])
    return found


def describe_rows(
    folder: RunFolder, study: Study, rows: Sequence[MethodRow], rounds: Sequence[Record]
) -> list[dict[str, Any]]:
    """The list ``methods`` in results.json."""
    return [_describe(folder, study, row, without_part(row, rows), rounds) for row in rows]


def _describe(
    folder: RunFolder, study: Study, row: MethodRow, plain: str | None, rounds: Sequence[Record]
) -> dict[str, Any]:
    ids = {method.id for method in row.trainings}
    sent = [site["bytes_up"] for line in rounds if line["method"] in ids for site in line["used"]]
    found = measured(study, row.evaluated)
    if not row.sums and row.missing:
        found["failed"] = "; ".join(dict.fromkeys(line["reason"] for line in row.missing))
    means = {number: _mean_dice(study, sums) for number, sums in sorted(row.repeats.items())}
    return {
        "id": row.id,
        "method": row.method.method,
        "rank": row.method.rank if isinstance(row.method, AdapterTuning) else None,
        "aggregation": None if isinstance(row.method, ZeroShot) else row.method.aggregation,
        "start": row.start,
        "rounds": _own_rounds(study, row.method),
        "trained_at": row.trained_at,
        "part": row.part,
        "plain": plain,
        "trainable": _trainable(study, row.method),
        "magnitudes": _magnitudes(study, row.method),
        "learning_rates": _learning_rates(folder, row),
        "bytes_up_per_round": max(sent, default=0),
        "repeats": [{"repeat": number, "dice": mean} for number, mean in means.items()],
        "sd_repeats": _spread(study, row.evaluated),
        **found,
        "not_evaluated": list(row.missing),
    }


def _own_rounds(study: Study, method: Method) -> int | None:
    """The rounds of a training that does not have those of the study's other methods; otherwise None."""
    rounds = study.rounds_of(method)
    return rounds if rounds not in (0, study.finetune.rounds) else None


def without_part(row: MethodRow, rows: Sequence[MethodRow]) -> str | None:
    """The id of the federated method that differs from one with a part at each site in this part alone.

    Its rounds may differ, because a last phase at each site takes the place of rounds; one with the same rounds comes
    first, then one with those of the study. None if the study has no such method, or the row has no part.
    """
    if row.part is None or isinstance(row.method, ZeroShot) or row.trained_at is not None:
        return None
    id_, rounds = _without_rounds(row.method.shared_alone()).id, row.method.rounds
    found = {
        other.method.rounds: other.id
        for other in rows
        if not isinstance(other.method, ZeroShot) and (other.trained_at, other.part) == (None, None)
        if _without_rounds(other.method).id == id_
    }
    return found.get(rounds) or found.get(None) or next(iter(found.values()), None)


def _without_rounds(method: TrainedMethod) -> TrainedMethod:
    """The method in its first training and the usual rounds."""
    return method.model_copy(update={"repeat": 1, "rounds": None})


def _mean_dice(study: Study, sums: Sums) -> float | None:
    parts = [part.overall for part in sums.values()]
    n = sum(part.n for part in parts)
    return estimate(Sample(sum(parts[1:], parts[0])), "dice").value if n else None


def _spread(study: Study, evaluated: Evaluated) -> float | None:
    """SD of the repeats' mean Dice, on the patients that all of them were evaluated on.

    None if fewer than two repeats have a mean there.
    """
    shared = evaluated.shared()
    means = [_mean_dice(study, {key: sums[key] for key in shared}) for sums in evaluated.trainings.values() if sums]
    known = [mean for mean in means if mean is not None]
    return statistics.stdev(known) if len(known) > 1 else None


def _trainable(study: Study, method: Method) -> int:
    """Number of trained parameters, with those that stay at a site."""
    if isinstance(method, ZeroShot):
        return 0
    trained = trained_tensors(study.views, study.model, method)
    return sum(math.prod(shape) for shape in (trained.shared | trained.staying).values())


def _magnitudes(study: Study, method: Method) -> dict[str, int] | None:
    """Of a DoRA form the number of adapted layers, and of those in which magnitudes train."""
    if not isinstance(method, AdapterTuning) or not method.has_magnitudes:
        return None
    trained = trained_tensors(study.views, study.model, method)
    return {"layers": trained.n_adapted, "trained": trained.n_magnitudes}


def _learning_rates(folder: RunFolder, row: MethodRow) -> list[dict[str, float | int]]:
    """The learning rates that a method chose from, each with how often it was taken; none if its rate is given."""
    if isinstance(row.method, ZeroShot) or len(row.method.rates) == 1:
        return []
    chosen = [rate for method in row.trainings for rate in folder.rates(method.id).values()]
    return [{"rate": rate, "n": chosen.count(rate)} for rate in row.method.rates]
