"""Warnings before a study starts: small sites, folds without blood, likely repeat scans; and how the study treats them.

The rules are fixed. A fold or a site without a scan with blood is trained and evaluated as usual; it adds nothing to
mean Dice, and its false positives are counted. A site without a patient outside a fold skips that fold's training and
does not count for its quorum. A site of one or two patients takes part; if its policy lets it send sums, they reveal
its patients' Dice. Every estimate is given with its number of scans; an estimate over no scan is None, never NaN.
"""

from __future__ import annotations

from typing import Any

from sahfl.config import Study
from sahfl.task import Descriptions

SMALL_SITE = 2
"""Patients; the sums of so few patients reveal their individual results."""


def fold_support(study: Study, sites: Descriptions) -> list[dict[str, int]]:
    """Number of patients, and of patients with blood, in each fold over the fine-tuning sites."""
    tuned = [sites[site] for site in study.finetune.sites if site in sites]
    return [
        {
            "fold": fold,
            "n_patients": sum(site.fold_sizes[fold] for site in tuned),
            "n_positive": sum(site.fold_positive[fold] for site in tuned),
        }
        for fold in range(study.finetune.folds)
    ]


def support_notes(study: Study, sites: Descriptions) -> list[dict[str, Any]]:
    """One journal line for each small site, fold without blood and site with likely repeat scans, with the rule."""
    notes: list[dict[str, Any]] = []
    for part in fold_support(study, sites):
        if not part["n_positive"]:
            text = "no patient with blood is held out: the fold has no Dice, only counts of false positives"
            notes.append({"rule": "fold_without_blood", **part, "policy": text})
    for name in study.finetune.sites:
        if name not in sites:
            continue
        site = sites[name]
        if site.n_patients <= SMALL_SITE:
            text = "takes part; where its policy lets its sums out, they are the results of its patients"
            notes.append({"rule": "small_site", "site": name, "n_patients": site.n_patients, "policy": text})
        if "repeat_scan" in site.findings:
            text = "by their names, they look like repeat scans of patients, but each counts as a patient of its own"
            notes.append({"rule": "repeat_scans", "site": name, "n": site.findings["repeat_scan"], "policy": text})
        for fold in range(study.finetune.folds):
            if site.sits_out(fold):
                text = "has no patient outside the fold: sits its training out and does not count for the quorum"
                notes.append({"rule": "sits_out", "site": name, "fold": fold, "policy": text})
    return [{"event": "policy", **note} for note in notes]
