"""A finished run of made-up evaluations, and its results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from harness.tiny_study import TINY, changed
from sahfl.cell_names import cell_of
from sahfl.config import Study, parse
from sahfl.results.collect import collect
from sahfl.run.folder import RunFolder
from sahfl.statistics.cases import CaseResult
from sahfl.statistics.sums import EvaluationSums
from sahfl.task import SiteDescription, parts_of

ZERO_SHOT = ({"method": "zero_shot"},)


def patients(site, fold, dice):
    """Patients of a site and fold, small and large hemorrhages in turn, whose Dice a method gets."""
    return [
        CaseResult(f"{site}-{fold}-{n}", (5.0, 50.0)[n % 2], 4.0, float(value), 0.5, 4.0, 0.5, 40.0)
        for n, value in enumerate(dice)
    ]


def make_run(path, grid, dice, *, methods=ZERO_SHOT, cases=patients, **changes):
    """A finished run: ``dice(id, site, fold)`` gives its patients' Dice; None: the site did not evaluate the fold."""
    settings = changed(TINY, finetune__methods=list(methods), **changes)
    settings["finetune"]["grid"] = list(grid)
    study = parse(Study, settings, where="test")
    folder = RunFolder.create(Path(path), study)
    for method in study.finetune.methods:
        for fold in range(study.finetune.folds):
            known = {"sums": {}, "missing": {}}
            for site in study.evaluating_sites(method):
                if (values := dice(method.id, site, fold)) is None:
                    known["missing"][site] = "worn out"
                    continue
                sums = EvaluationSums.of(cases(site, fold, values), study.evaluation, seed=study.seed)
                known["sums"][site] = sums.to_array().tolist()
            for part in parts_of(method):
                folder.write_evaluation(cell_of(method, fold), known, part)
    return folder, study


def results_of(folder, study, *, n=6):
    """Its results.json, for sites with ``n`` patients in each fold."""
    folds = study.finetune.folds
    described = {
        site: SiteDescription(
            **{"site": site, "source": "phantom", "n_volumes": n * folds, "n_patients": n * folds},
            **{"n_positive": n * folds, "volume_ml": 100.0, "fold_sizes": (n,) * folds, "fold_positive": (n,) * folds},
            **{
                "data": "0" * 16,
                "software": "0" * 16,
                "batches": "0" * 16,
                "confirmations": 0,
                "n_refused": 0,
                "findings": {},
            },
        )
        for site in study.sites
    }
    found = collect(folder, study, described, {"weight": np.zeros(1000, np.float32)})
    return json.loads(json.dumps(found, allow_nan=False))


def around(middle, *, n=6, spread=0.005):
    """A function for ``make_run``: Dice near ``middle(id, site, fold)`` that differ by patient and training."""

    def dice(id_, site, fold):
        if (value := middle(id_, site, fold)) is None:
            return None
        random = np.random.default_rng([fold, *site.encode(), *id_.encode()])
        return np.clip(value + random.normal(0, spread, n), 0.01, 1)

    return dice
