"""Estimates from the sums of one method, and of two compared ones: ``methods`` and ``comparisons`` in results.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from sahfl.cell_names import cell_of
from sahfl.config import EvaluationConfig, Method, Study
from sahfl.errors import PayloadError, RunError
from sahfl.results.verdicts import MARGIN
from sahfl.run.folder import Record, RunFolder
from sahfl.statistics.cases import extent_labels, stratum_labels
from sahfl.statistics.estimates import Estimate, contrast, difference, estimate
from sahfl.statistics.groups import GroupSums
from sahfl.statistics.metrics import METRICS, VOLUME_EDGES_ML
from sahfl.statistics.misses import miss_difference, miss_rate
from sahfl.statistics.sums import EvaluationSums, Withheld, equally_hidden
from sahfl.statistics.variances import Sample
from sahfl.task import Part

Key = tuple[int, str]
"""Fold and site; methods are compared on the keys that both have."""
Sums = Mapping[Key, EvaluationSums]
MASKED = "masked: "
"""Begins the place of a masked sum in a key, before its sites: two methods are compared if the same sites are in it."""
MISSED = "missed"
"""The miss rate, beside the metrics of a case."""
MEASURES = (*(metric.name for metric in METRICS), MISSED)
ALL = "all with blood"
ALL_WITHHELD = "every case with blood lies in a group that its site withholds for being small"
NONE_EVALUATED = "no case with blood was evaluated"


@dataclass(frozen=True)
class Evaluated:
    """The sums of a method's evaluation, by fold and site."""

    sums: Sums
    """Averaged over the trainings; each patient counts once."""
    trainings: Mapping[int, Sums]
    """Of each training, by its number."""
    trained: bool = True
    """False for zero-shot."""

    def once(self) -> Evaluated:
        """The same sums as those of a single training, of whose randomness nothing is known."""
        return Evaluated(self.sums, {})

    def shared(self) -> list[Key]:
        """Folds and sites that every training was evaluated on, and of which the site withheld the same."""
        known = [sums for sums in self.trainings.values() if sums]
        first = known[0] if known else {}
        return [
            key
            for key in sorted(first)
            if all(key in sums and withheld_parts(sums[key]) == withheld_parts(first[key]) for sums in known)
        ]


def read_fold(
    folder: RunFolder, study: Study, method: Method, fold: int, part: Part | None = None, after_round: int = 0
) -> tuple[dict[Key, EvaluationSums], list[Record]]:
    """The sums that every site sent for one method and fold; and the sites not evaluated, each with the reason.

    ``part`` is what was evaluated of a method with a part at each site, and ``after_round`` one of the study's
    ``evaluated_rounds``.

    Raises:
        RunError: the file of the evaluation is damaged.
    """
    known = folder.evaluation(cell_of(method, fold), part, after_round)
    try:
        sums = {
            (fold, site): EvaluationSums.from_array(np.asarray(values), study.evaluation)
            for site, values in sorted(known["sums"].items())
        }
        if masked := known.get("masked"):
            key = fold, MASKED + ", ".join(masked["sites"])
            sums[key] = EvaluationSums.from_array(np.asarray(masked["sums"]), study.evaluation)
    except (PayloadError, ValueError, KeyError, TypeError) as error:  # lists of different lengths are no array
        where = f"{folder.path}: the evaluation of {cell_of(method, fold)}"
        raise RunError(f"{where} holds impossible sums ({error}); delete it to have it made again") from error
    return sums, [{"fold": fold, "site": site, "reason": why} for site, why in known["missing"].items()]


def measured(study: Study, evaluated: Evaluated) -> dict[str, Any]:
    """The results in a method's row: metrics, volumes, folds, sites, and what sites withheld."""
    sums = evaluated.sums
    total = _add(sums.values(), study.evaluation)
    groups = _groups(study.evaluation, evaluated, list(sums))
    return {
        "metrics": {name: _metric(groups, total.withheld, name) for name in MEASURES},
        "growth": _growth(groups),
        "no_blood": {"n": total.n_no_blood, "n_false_positive": total.n_false_positive},
        "volume": vars(total.volume.agreement()) | {"histogram": _histogram(total)},
        "by_fold": [by_fold(fold, sums, study) for fold in range(study.finetune.folds)],
        "by_site": [_by_site(site, sums, study) for site in study.finetune.sites],
        "withheld": [found for site in _places(study, sums) if (found := _withheld(site, sums))],
        "failed": None if total.overall.n else ALL_WITHHELD if total.withheld.blood else NONE_EVALUATED,
    }


def _places(study: Study, sums: Sums) -> list[str]:
    """The sites, and the places of masked sums."""
    return [*study.finetune.sites, *sorted({place for _, place in sums} - set(study.finetune.sites))]


def by_fold(fold: int, sums: Sums, study: Study) -> dict[str, Any]:
    """Mean Dice on the held-out patients of one fold."""
    total = _add([part for (number, _), part in sums.items() if number == fold], study.evaluation)
    found = estimate(Sample(total.overall), "dice")
    return {"fold": fold, "n": found.n, "dice": found.value, "n_no_blood": total.n_no_blood}


def compare(study: Study, ours: Evaluated, theirs: Evaluated) -> dict[str, Any]:
    """Differences on the patients that both methods were evaluated on, if their sites withheld the same of both.

    ``dice`` has the mean Dice of both methods over these patients, whose difference is that of Dice.
    """
    sums, others = ours.sums, theirs.sums
    common = [
        key for key in sorted(sums.keys() & others.keys()) if withheld_parts(sums[key]) == withheld_parts(others[key])
    ]
    first, second = (_groups(study.evaluation, each, common) for each in (ours, theirs))
    p_margin = difference(first["overall"][1][0], second["overall"][1][0], "dice", margin=MARGIN).p_margin
    means = [estimate(groups["overall"][1][0], "dice").value for groups in (first, second)]
    found = {"p_margin": p_margin, "p_margin_holm": None, "dice": means}
    return found | {"metrics": {name: _differences(first, second, name) for name in MEASURES}}


Labelled = dict[str, tuple[Sequence[str], Sequence[Sample]]]
"""All cases (one group) and their two splits, with the labels of the groups."""


def _groups(settings: EvaluationConfig, evaluated: Evaluated, keys: Sequence[Key]) -> Labelled:
    """The groups over the folds and sites ``keys``.

    Single trainings are in them if all have every one of these folds and sites. Otherwise some patients were segmented
    by fewer trainings than others, and the spread between trainings of their mean is unknown.
    """
    labels = {
        "overall": (ALL,),
        "by_volume": stratum_labels(settings.volume_edges_ml),
        "by_extent": extent_labels(settings.extent_edges_mm),
    }
    whole = _split(_add((evaluated.sums[key] for key in keys), settings))
    trainings = {number: sums for number, sums in evaluated.trainings.items() if sums and evaluated.trained}
    known = trainings if set(keys) <= set(evaluated.shared()) else {}
    # What a site hid of one training is hidden in all of them, so that they are over the same cases.
    parts = [equally_hidden([sums[key] for sums in known.values()]) for key in keys]
    each = {number: _split(_add((part[place] for part in parts), settings)) for place, number in enumerate(known)}
    return {
        split: (
            names,
            [
                Sample(group, {number: parts[split][place] for number, parts in each.items()}, evaluated.trained)
                for place, group in enumerate(whole[split])
            ],
        )
        for split, names in labels.items()
    }


def _split(sums: EvaluationSums) -> dict[str, tuple[GroupSums, ...]]:
    return {"overall": (sums.overall,), "by_volume": sums.by_volume, "by_extent": sums.by_extent}


def _metric(groups: Labelled, hidden: Withheld, metric: str) -> dict[str, Any]:
    withheld = {"overall": hidden.blood, "by_volume": hidden.blood + hidden.strata}
    withheld["by_extent"] = hidden.blood + hidden.extents
    found = {
        split: [
            _estimate(label, sample, metric) | {"withheld": withheld[split] > 0 or _hidden(sample, metric)}
            for label, sample in zip(labels, samples, strict=True)
        ]
        for split, (labels, samples) in groups.items()
    }
    return found | {"overall": found["overall"][0]}


def _hidden(sample: Sample, metric: str) -> bool:
    """Whether a site withheld what a metric needs to know about misses."""
    return metric in (MISSED, "hd95_mm") and sample.sums.hidden > 0


def _estimate(label: str, sample: Sample, metric: str) -> dict[str, Any]:
    found = miss_rate(sample) if metric == MISSED else estimate(sample, metric)
    numbers = {"mean": found.value, "sd": found.sd, "median": found.median, "low": found.low, "high": found.high}
    return {"stratum": label, "n": found.n, **numbers, "trainings": found.trainings}


def _differences(ours: Labelled, theirs: Labelled, metric: str) -> dict[str, Any]:
    found = {
        split: [_difference(label, a, b, metric) for label, a, b in zip(*ours[split], theirs[split][1], strict=True)]
        for split in ours
    }
    return found | {"overall": found["overall"][0]}


def _difference(label: str, a: Sample, b: Sample, metric: str) -> dict[str, Any]:
    return {"stratum": label, **_gap(miss_difference(a, b) if metric == MISSED else difference(a, b, metric))}


def _growth(groups: Labelled) -> dict[str, Any] | None:
    """Dice of the largest hemorrhages minus that of the smallest; None if the study does not split by volume."""
    labels, samples = groups["by_volume"]
    if len(labels) < 2:
        return None
    return {"stratum": labels[-1], "reference": labels[0], **_gap(contrast(samples[-1], samples[0], "dice"))}


def _gap(found: Estimate) -> dict[str, Any]:
    numbers = {"difference": found.value, "low": found.low, "high": found.high, "p": found.p, "p_holm": None}
    return {"n": found.n, **numbers, "trainings": found.trainings}


def _histogram(total: EvaluationSums) -> dict[str, Any] | None:
    """Cases by annotated and predicted volume, and their number ``n``; None if every site withheld its histogram."""
    n = float(total.volume_counts.sum())
    if not n:
        return None
    return {"edges_ml": list(VOLUME_EDGES_ML), "counts": total.volume_counts.tolist(), "n": round(n)}


def _withheld(site: str, sums: Sums) -> dict[str, Any]:
    """In how many folds a site withheld which results because a group was too small; empty if it withheld none."""
    parts = [part for (_, name), part in sums.items() if name == site]
    counts = vars(reduce(add, (part.withheld for part in parts), Withheld()))
    counts |= {"replicates": sum(part.overall.bare > 0 for part in parts)}
    counts |= {"misses": sum(part.overall.hidden > 0 or part.hides_groups for part in parts)}
    return {"site": site, "n_folds": len(parts), **counts} if any(counts.values()) else {}


def _by_site(site: str, sums: Sums, study: Study) -> dict[str, Any]:
    parts = [part for (_, name), part in sums.items() if name == site]
    found = estimate(Sample(_add(parts, study.evaluation).overall), "dice")
    return {"site": site, "n": found.n, "dice": found.value}


def withheld_parts(sums: EvaluationSums) -> tuple[Withheld, bool]:
    """What a site withheld; only sums with equal parts withheld can be compared or averaged."""
    return sums.withheld, sums.overall.bare > 0


def _add(parts: Iterable[EvaluationSums], settings: EvaluationConfig) -> EvaluationSums:
    return reduce(add, parts, EvaluationSums.zero(settings))
