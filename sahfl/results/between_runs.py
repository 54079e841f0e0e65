"""Comparison of two finished runs: the methods that both have, as paired differences on the same patients.

The runs may differ in what a method cannot set: views, network, pretraining. They must have the same seed, folds,
evaluation and data, so that both segmented the same patients in the same folds and weighted them equally in every
bootstrap replicate. If their base networks differ, each run has one pretraining, and another one would have given
another difference: methods that start from the base, and zero-shot, then have no p value and no verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sahfl.config import Study
from sahfl.errors import RunError
from sahfl.results.method_results import Evaluated, compare, measured
from sahfl.results.method_rows import MethodRow, find_rows
from sahfl.results.verdicts import correct
from sahfl.run.folder import RunFolder


def compare_runs(run: RunFolder, reference: RunFolder) -> dict[str, Any]:
    """Differences run minus reference for each method of both, corrected together (``verdicts.correct``).

    Returns:
        ``comparisons`` as in ``results.json``, each with its ``id``, and ``correction``.

    Raises:
        RunError: a run is not finished, the runs are not about the same patients, or no method is in both.
    """
    first, second = (_finished(folder) for folder in (run, reference))
    study, other = run.study(), reference.study()
    if differing := _differing(study, other, first, second):
        raise RunError(f"{run.path} and {reference.path}: cannot be compared, they differ in {', '.join(differing)}")
    one_base = first["base"]["sha256"] == second["base"]["sha256"]
    ours = {row.id: _evaluated(row, one_base=one_base) for row in find_rows(run, study)}
    theirs = {row.id: _evaluated(row, one_base=one_base) for row in find_rows(reference, other)}
    comparisons: list[dict[str, Any]] = []
    methods: list[dict[str, Any]] = []
    for id_ in [id_ for id_ in ours if id_ in theirs]:
        both = {f"{run.path}: {id_}": ours[id_], f"{reference.path}: {id_}": theirs[id_]}
        rows = [measured(study, evaluated) | {"id": name, "growth": None} for name, evaluated in both.items()]
        found = {"id": id_, "method": rows[0]["id"], "reference": rows[1]["id"]}
        comparisons.append(found | compare(study, ours[id_], theirs[id_]))
        methods += rows
    if not comparisons:
        raise RunError(f"{run.path} and {reference.path}: have no method in common, expected one of the same id")
    correction = correct(comparisons, methods)
    return {"comparisons": comparisons, "correction": correction}


def comparison_table(found: dict[str, Any]) -> str:
    """The comparisons as a Markdown table, a row for each method."""
    lines = ["| method | Dice | of the reference | difference | 95 % interval | n | verdict |", f"|{'---|' * 7}"]
    for row in found["comparisons"]:
        overall = row["metrics"]["dice"]["overall"]
        interval = "" if overall["low"] is None else f"{overall['low']:+.3f} to {overall['high']:+.3f}"
        numbers = [_number(value) for value in row["dice"]]
        cells = [row["id"], *numbers, _number(overall["difference"], "+"), interval, str(overall["n"]), row["verdict"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _number(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.3f}"


def _evaluated(row: MethodRow, *, one_base: bool) -> Evaluated:
    """The sums of a row; as of one training, if it starts from a base that the other run does not have."""
    return row.evaluated if one_base or row.start == "scratch" else row.evaluated.once()


def _finished(run: RunFolder) -> dict[str, Any]:
    results = run.read_json("results.json")
    if not isinstance(results, dict):
        raise RunError(f"{run.path}: has no results.json; a run is compared when it is finished")
    return results


def _differing(study: Study, other: Study, first: dict[str, Any], second: dict[str, Any]) -> Sequence[str]:
    """What keeps two runs from being about the same patients in the same folds."""
    pairs = {
        "seed": (study.seed, other.seed),
        "finetune.folds": (study.finetune.folds, other.finetune.folds),
        "finetune.sites": (study.finetune.sites, other.finetune.sites),
        "evaluation": (study.evaluation, other.evaluation),
    }
    names = [name for name, (one, two) in pairs.items() if one != two]
    hashes = [{site["site"]: site.get("data") for site in results["sites"]} for results in (first, second)]
    names += [f"the scans of {site}" for site in study.finetune.sites if hashes[0].get(site) != hashes[1].get(site)]
    return names
