"""Estimates from the sums of one method, and of two compared ones: ``methods`` and ``comparisons`` in results.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from sahfl.cell_names import cell_of
from sahfl.config import EvaluationConfig, Method, Study
from sahfl.run.folder import Record, RunFolder
from sahfl.statistics.cases import extent_labels, stratum_labels
from sahfl.statistics.estimates import difference, estimate, holm
from sahfl.statistics.groups import GroupSums
from sahfl.statistics.metrics import METRICS, VOLUME_EDGES_ML
from sahfl.statistics.sums import EvaluationSums, Withheld

Key = tuple[int, str]
"""Fold and site; methods are compared on the keys that both have."""
Sums = Mapping[Key, EvaluationSums]
ALL = "all with blood"
ALL_WITHHELD = "every case with blood lies in a group that its site withholds for being small"
NONE_EVALUATED = "no case with blood was evaluated"


def read_fold(
    folder: RunFolder, study: Study, method: Method, fold: int
) -> tuple[dict[Key, EvaluationSums], list[Record]]:
    """The sums that every site sent for one method and fold; and the sites not evaluated, each with the reason."""
    known = folder.evaluation(cell_of(method, fold))
    sums = {
        (fold, site): EvaluationSums.from_array(np.asarray(values), study.evaluation)
        for site, values in sorted(known["sums"].items())
    }
    return sums, [{"fold": fold, "site": site, "reason": why} for site, why in known["missing"].items()]


def measured(study: Study, sums: Sums) -> dict[str, Any]:
    """The results in a method's row: metrics, volumes, folds, sites, and what sites withheld."""
    total = _add(sums.values(), study.evaluation)
    return {
        "metrics": {metric.name: _metric(study.evaluation, total, metric.name) for metric in METRICS},
        "no_blood": {"n": total.n_no_blood, "n_false_positive": total.n_false_positive},
        "volume": vars(total.volume.agreement()) | {"histogram": _histogram(total)},
        "by_fold": [by_fold(fold, sums, study) for fold in range(study.finetune.folds)],
        "by_site": [_by_site(site, sums, study) for site in study.finetune.sites],
        "withheld": [found for site in study.finetune.sites if (found := _withheld(site, sums))],
        "failed": None if total.overall.n else ALL_WITHHELD if total.withheld.blood else NONE_EVALUATED,
    }


def by_fold(fold: int, sums: Sums, study: Study) -> dict[str, Any]:
    """Mean Dice on the held-out patients of one fold."""
    total = _add([part for (number, _), part in sums.items() if number == fold], study.evaluation)
    found = estimate(total.overall, "dice")
    return {"fold": fold, "n": found.n, "dice": found.value, "n_no_blood": total.n_no_blood}


def compare(study: Study, ours: Sums, theirs: Sums) -> dict[str, Any]:
    """Differences on the patients that both methods were evaluated on, if their sites withheld the same of both."""
    common = [
        key for key in sorted(ours.keys() & theirs.keys()) if withheld_parts(ours[key]) == withheld_parts(theirs[key])
    ]
    first, second = (_add([sums[key] for key in common], study.evaluation) for sums in (ours, theirs))
    groups, others = _groups(study.evaluation, first), _groups(study.evaluation, second)
    return {"metrics": {metric.name: _differences(groups, others, metric.name) for metric in METRICS}}


def correct(comparisons: Sequence[dict[str, Any]]) -> None:
    """Write ``p_holm`` into the overall differences; each metric and reference method has its own correction."""
    for reference in dict.fromkeys(comparison["reference"] for comparison in comparisons):
        family = [comparison for comparison in comparisons if comparison["reference"] == reference]
        for metric in METRICS:
            overall = [comparison["metrics"][metric.name]["overall"] for comparison in family]
            for part, p in zip(overall, holm([part["p"] for part in overall]), strict=True):
                part["p_holm"] = p


Labelled = dict[str, tuple[Sequence[str], Sequence[GroupSums]]]
"""All cases (one group) and their two splits, with the labels of the groups."""


def _groups(settings: EvaluationConfig, sums: EvaluationSums) -> Labelled:
    return {
        "overall": ((ALL,), (sums.overall,)),
        "by_volume": (stratum_labels(settings.volume_edges_ml), sums.by_volume),
        "by_extent": (extent_labels(settings.extent_edges_mm), sums.by_extent),
    }


def _metric(settings: EvaluationConfig, total: EvaluationSums, metric: str) -> dict[str, Any]:
    hidden = total.withheld.blood
    withheld = {"overall": hidden, "by_volume": hidden + total.withheld.strata}
    withheld["by_extent"] = hidden + total.withheld.extents
    found = {
        split: [
            _estimate(label, group, metric) | {"withheld": withheld[split] > 0}
            for label, group in zip(labels, groups, strict=True)
        ]
        for split, (labels, groups) in _groups(settings, total).items()
    }
    return found | {"overall": found["overall"][0]}


def _estimate(label: str, group: GroupSums, metric: str) -> dict[str, Any]:
    found = estimate(group, metric)
    numbers = {"mean": found.value, "sd": found.sd, "median": found.median, "low": found.low, "high": found.high}
    return {"stratum": label, "n": found.n, **numbers}


def _differences(ours: Labelled, theirs: Labelled, metric: str) -> dict[str, Any]:
    found = {
        split: [_difference(label, a, b, metric) for label, a, b in zip(*ours[split], theirs[split][1], strict=True)]
        for split in ours
    }
    return found | {"overall": found["overall"][0]}


def _difference(label: str, a: GroupSums, b: GroupSums, metric: str) -> dict[str, Any]:
    found = difference(a, b, metric)
    numbers = {"difference": found.value, "low": found.low, "high": found.high, "p": found.p, "p_holm": None}
    return {"stratum": label, "n": found.n, **numbers}


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
    return {"site": site, "n_folds": len(parts), **counts} if any(counts.values()) else {}


def _by_site(site: str, sums: Sums, study: Study) -> dict[str, Any]:
    parts = [part for (_, name), part in sums.items() if name == site]
    found = estimate(_add(parts, study.evaluation).overall, "dice")
    return {"site": site, "n": found.n, "dice": found.value}


def withheld_parts(sums: EvaluationSums) -> tuple[Withheld, bool]:
    """What a site withheld; only sums with equal parts withheld can be compared or averaged."""
    return sums.withheld, sums.overall.bare > 0


def _add(parts: Iterable[EvaluationSums], settings: EvaluationConfig) -> EvaluationSums:
    return reduce(add, parts, EvaluationSums.zero(settings))
