"""From a finished run's files to ``results.json``, the only source of all figures and tables."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import version
from typing import Any

from sahfl import __version__
from sahfl.adapters import AdapterState, digest
from sahfl.config import Method, Study
from sahfl.results.by_round import by_round
from sahfl.results.findings import judge
from sahfl.results.gains import site_gains
from sahfl.results.method_results import by_fold, read_fold
from sahfl.results.method_rows import describe_rows, find_rows
from sahfl.results.pairs import compare_rows
from sahfl.results.support import fold_support, support_notes
from sahfl.results.verdicts import correct
from sahfl.run.folder import Record, RunFolder
from sahfl.task import Part, SiteDescription

SCHEMA = 3


def collect(
    folder: RunFolder, study: Study, sites: Mapping[str, SiteDescription], base: AdapterState
) -> dict[str, Any]:
    """All content of ``results.json``, as plain JSON values."""
    journal = folder.journal()
    started, finished = (_last(journal, event) for event in ("started", "finished"))
    rounds = _rounds(journal, study)
    n_cells = len(study.trainings) * study.finetune.folds + (study.pretrain is not None) + len(study.own_bases)
    rows = find_rows(folder, study)
    methods, comparisons = describe_rows(folder, study, rows, rounds), compare_rows(study, rows)
    correction = correct(comparisons, methods)
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
            "mode": "federated" if study.pretrain else "none" if study.base == "none" else "loaded",
        },
        "support": {"folds": fold_support(study, sites), "notes": support_notes(study, sites)},
        "evaluation": study.evaluation.model_dump(mode="json"),
        "methods": methods,
        "comparisons": comparisons,
        "correction": correction,
        "by_round": by_round(folder, study),
        "gains": site_gains(study, rows),
        "findings": judge(methods, comparisons),
        "cells": {"total": n_cells, "reused": len(folder.reused())},
        "overlays": [],
        "rounds": rounds,
        "interruptions": sum(line["event"] == "resumed" for line in journal),
        "unreadable_journal_lines": folder.unreadable_lines(),
    }


def fold_metrics(
    folder: RunFolder, study: Study, method: Method, fold: int, part: Part | None = None
) -> dict[str, float | None]:
    """Mean Dice and numbers of cases on the held-out patients of one fold; ``part`` as in ``read_fold``."""
    sums, _ = read_fold(folder, study, method, fold, part)
    found = by_fold(fold, sums, study)
    return {name: found[name] for name in ("dice", "n", "n_no_blood")}


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


def _rounds(journal: list[Record], study: Study) -> list[Record]:
    """Rounds in the study's order, whatever the order of the work; failed attempts come first.

    A round that was repeated after a damaged checkpoint counts once, with its last attempt. Those of trials of a
    learning rate are left out.
    """
    order = {method.id: index for index, method in enumerate(study.finetune.methods)}
    trials = {method.id for method in study.trainings} - set(order)
    rounds = [line for line in journal if line["event"] == "round" and line["method"] not in trials]
    failed = [line for line in rounds if not line["committed"]]
    committed = {(r["stage"], r["method"], r["fold"], r["round"]): r for r in rounds if r["committed"]}

    def place(line: Record) -> tuple[int, int, int]:
        return order.get(line["method"], -1), line["fold"] or 0, line["round"]

    return [*sorted(failed, key=place), *sorted(committed.values(), key=place)]


def _last(journal: list[Record], event: str) -> str | None:
    return next((line.get("at") for line in reversed(journal) if line["event"] == event), None)


def _seconds(journal: list[Record]) -> float:
    """Working time: from each start to the last journal entry before the next start, so that pauses do not count."""
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
