"""From a finished run's files to ``results.json``, the one source of every figure and table."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import datetime
from functools import reduce
from importlib.metadata import version
from operator import add
from typing import Any

import numpy as np

from sahfl import __version__
from sahfl.adapters import AdapterState, digest
from sahfl.adapters.folder import CONFIG
from sahfl.config import AdapterTuning, Method, Study, ZeroShot
from sahfl.federation.protocol import SiteDescription
from sahfl.federation.server.run_folder import Record, RunFolder
from sahfl.federation.server.support import fold_support, support_notes
from sahfl.statistics import Estimate, EvaluationSums, Withheld, dice_estimate, difference, overall, stratum_labels

SCHEMA = 1
Key = tuple[int, str]
"""Fold and site; methods are compared on the keys that both have."""
Sums = dict[Key, EvaluationSums]


def collect(
    folder: RunFolder, study: Study, sites: Mapping[str, SiteDescription], base: AdapterState
) -> dict[str, Any]:
    """Everything that the report shows, as plain JSON values."""
    journal = folder.journal()
    sums = {method.id: _read_sums(folder, study, method) for method in study.finetune.methods}
    started, finished = (_last(journal, event) for event in ("started", "finished"))
    rounds = _rounds(journal, study)
    return {
        "schema": SCHEMA,
        "sahfl": __version__,
        "name": study.name,
        "fingerprint": study.fingerprint(),
        "study": study.model_dump(mode="json"),
        "environment": _environment(),
        "started": started,
        "finished": finished,
        "seconds": _seconds(journal),
        "hostile": study.hostile,
        "sites": [_site(name, study, sites, journal) for name in study.sites],
        "base": {
            "sha256": digest(base),
            "parameters": sum(value.size for value in base.values()),
            "bytes": sum(value.nbytes for value in base.values()),
            "mode": "federated" if study.pretrain else "loaded",
        },
        "support": {"folds": fold_support(study, sites), "notes": support_notes(study, sites)},
        "evaluation": study.evaluation.model_dump(mode="json"),
        "methods": [_method(folder, study, method, sums[method.id], rounds) for method in study.finetune.methods],
        "comparisons": _comparisons(study, sums),
        "cells": _cells(journal, study),
        "rounds": rounds,
        "interruptions": sum(line["event"] == "resumed" for line in journal),
        "unreadable_journal_lines": folder.unreadable_lines(),
    }


def _read_sums(folder: RunFolder, study: Study, method: Method) -> Sums:
    n_strata, replicates = len(study.evaluation.volume_edges_ml) + 1, study.evaluation.replicates
    return {
        (fold, site): EvaluationSums.from_array(np.asarray(values), n_strata=n_strata, replicates=replicates)
        for fold in range(study.finetune.folds)
        for site, values in sorted(
            (folder.read_json(f"evaluation/{method.id}/fold-{fold}.json") or {"sums": {}})["sums"].items()
        )
    }


def _method(folder: RunFolder, study: Study, method: Method, sums: Sums, rounds: list[Record]) -> dict[str, Any]:
    labels = stratum_labels(study.evaluation.volume_edges_ml)
    total = _add(sums.values(), study)
    sent = [site["bytes_up"] for line in rounds if line["method"] == method.id for site in line["used"]]
    agreement = total.volume.agreement()
    return {
        "id": method.id,
        "method": method.method,
        "rank": method.rank if isinstance(method, AdapterTuning) else None,
        "trainable": 0 if isinstance(method, ZeroShot) else _trainable(folder, method, study.finetune.folds),
        "bytes_up_per_round": max(sent, default=0),
        "strata": [_stratum(label, dice_estimate(part)) for label, part in zip(labels, total.strata, strict=True)],
        "overall": _stratum("all with blood", dice_estimate(overall(total))),
        "no_blood": {"n": total.n_no_blood, "n_false_positive": total.n_false_positive},
        "volume": vars(agreement),
        "by_fold": [_by_fold(fold, sums, study) for fold in range(study.finetune.folds)],
        "by_site": [_by_site(site, sums, study) for site in study.finetune.sites],
        "withheld": [found for site in study.finetune.sites if (found := _withheld(site, sums))],
        "failed": None if overall(total).n else _nothing(total),
        "not_evaluated": _not_evaluated(folder, study, method),
    }


def _trainable(folder: RunFolder, method: Method, folds: int) -> int:
    """Parameters that a method trains, as its saved adapters say; 0 where no fold of it could be trained."""
    saved = (folder.read_json(f"adapters/{method.id}/fold-{fold}/{CONFIG}") for fold in range(folds))
    return next((int(config["sahfl"]["parameters"]) for config in saved if config), 0)


def _not_evaluated(folder: RunFolder, study: Study, method: Method) -> list[dict[str, Any]]:
    return [
        {"fold": fold, "site": site, "reason": reason}
        for fold in range(study.finetune.folds)
        for site, reason in (
            (folder.read_json(f"evaluation/{method.id}/fold-{fold}.json") or {}).get("missing", {})
        ).items()
    ]


def _withheld(site: str, sums: Sums) -> dict[str, Any]:
    """In how many folds a site withheld what, because its group was too small; empty if it never did."""
    parts = [part for (_, name), part in sums.items() if name == site]
    counts = vars(reduce(add, (part.withheld for part in parts), Withheld()))
    counts |= {"replicates": sum(overall(part).bare > 0 for part in parts)}
    return {"site": site, "n_folds": len(parts), **counts} if any(counts.values()) else {}


def _nothing(total: EvaluationSums) -> str:
    if total.withheld.blood:
        return "every case with blood lies in a group that its site withholds for being small"
    return "no case with blood was evaluated"


def _by_site(site: str, sums: Sums, study: Study) -> dict[str, Any]:
    estimate = dice_estimate(overall(_add([part for (_, name), part in sums.items() if name == site], study)))
    return {"site": site, "n": estimate.n, "dice": estimate.value}


def fold_metrics(folder: RunFolder, study: Study, method: Method, fold: int) -> dict[str, float | None]:
    """What was measured on the held-out patients of one fold."""
    measured = _by_fold(fold, _read_sums(folder, study, method), study)
    return {name: measured[name] for name in ("dice", "n", "n_no_blood")}


def _by_fold(fold: int, sums: Sums, study: Study) -> dict[str, Any]:
    total = _add([part for (number, _), part in sums.items() if number == fold], study)
    estimate = dice_estimate(overall(total))
    return {"fold": fold, "n": estimate.n, "dice": estimate.value, "n_no_blood": total.n_no_blood}


def _comparisons(study: Study, sums: Mapping[str, Sums]) -> list[dict[str, Any]]:
    """Every trained method against zero-shot, and every adapter against full fine-tuning, where these are there."""
    trained = [method for method in study.finetune.methods if not isinstance(method, ZeroShot)]
    others = [method for method in trained if method.id != "full"]
    pairs = [(method.id, "zero_shot") for method in trained] + [(method.id, "full") for method in others]
    return [_compare(study, sums, *pair) for pair in pairs if pair[1] in sums]


def _compare(study: Study, sums: Mapping[str, Sums], method: str, reference: str) -> dict[str, Any]:
    """The difference on the patients that both methods were evaluated on, where their sites tell the same of both."""
    common = sorted(sums[method].keys() & sums[reference].keys())
    common = [key for key in common if _form(sums[method][key]) == _form(sums[reference][key])]
    ours, theirs = (_add([sums[id_][key] for key in common], study) for id_ in (method, reference))
    strata = zip(stratum_labels(study.evaluation.volume_edges_ml), ours.strata, theirs.strata, strict=True)
    return {
        "method": method,
        "reference": reference,
        **_difference(difference(overall(ours), overall(theirs))),
        "strata": [{"stratum": label, **_difference(difference(a, b))} for label, a, b in strata],
    }


def _form(sums: EvaluationSums) -> tuple[Withheld, bool]:
    return sums.withheld, overall(sums).bare > 0


def _difference(estimate: Estimate) -> dict[str, Any]:
    return {"n": estimate.n, "difference": estimate.value, "low": estimate.low, "high": estimate.high}


def _stratum(label: str, estimate: Estimate) -> dict[str, Any]:
    numbers = {"dice": estimate.value, "sd": estimate.sd, "low": estimate.low, "high": estimate.high}
    return {"stratum": label, "n": estimate.n, **numbers}


def _add(parts: Any, study: Study) -> EvaluationSums:
    zero = EvaluationSums.zero(
        n_strata=len(study.evaluation.volume_edges_ml) + 1, replicates=study.evaluation.replicates
    )
    return reduce(add, parts, zero)


def _site(name: str, study: Study, sites: Mapping[str, SiteDescription], journal: list[Record]) -> dict[str, Any]:
    role = "finetune" if name in study.finetune.sites else "pretrain"
    if name not in sites:
        reasons = [line["reason"] for line in journal if line["event"] == "site_out" and line["site"] == name]
        nothing = {"source": "", "n_volumes": 0, "n_patients": 0, "n_positive": 0, "volume_ml": 0.0, "fold_sizes": []}
        out = reasons[-1] if reasons else "absent"
        return {"site": name, "role": role, "out": out, "n_refused": 0, "findings": {}} | nothing
    described = sites[name].model_dump(mode="json")
    if role == "pretrain":
        described["fold_sizes"] = []
    return described | {"role": role, "out": None}


def _cells(journal: list[Record], study: Study) -> dict[str, int]:
    """Pretraining, and each method on each fold: how many there are, and how many an earlier run had finished."""
    total = len(study.finetune.methods) * study.finetune.folds + (study.pretrain is not None)
    return {"total": total, "reused": len({line["cell"] for line in journal if line["event"] == "reused"})}


def _rounds(journal: list[Record], study: Study) -> list[Record]:
    """Rounds in the study's order, in whatever order cells took turns; those that failed first.

    A round that was committed again after a damaged checkpoint counts once, as it last was.
    """
    order = {method.id: index for index, method in enumerate(study.finetune.methods)}
    committed = {}
    failed = []
    for line in journal:
        if line["event"] != "round":
            continue
        if line["committed"]:
            committed[line["stage"], line["method"], line["fold"], line["round"]] = line
        else:
            failed.append(line)

    def place(line: Record) -> tuple[int, int, int]:
        return order.get(line["method"], -1), line["fold"] or 0, line["round"]

    return [*sorted(failed, key=place), *sorted(committed.values(), key=place)]


def _last(journal: list[Record], event: str) -> str | None:
    times = [line["at"] for line in journal if line["event"] == event]
    return times[-1] if times else None


def _seconds(journal: list[Record]) -> float:
    """Time at work: from each start to the last sign of life before the next, so that pauses do not count."""
    total, began, last = 0.0, None, None
    for line in journal:
        at = datetime.fromisoformat(line["at"]) if "at" in line else None
        if line["event"] in ("started", "resumed"):
            if began and last:
                total += (last - began).total_seconds()
            began = at
        last = at or last
    return round(total + (last - began).total_seconds(), 1) if began and last else 0.0


def _environment() -> dict[str, str]:
    packages = ("torch", "flwr", "monai", "numpy")
    return {"python": platform.python_version(), "platform": platform.platform(), **{p: version(p) for p in packages}}
