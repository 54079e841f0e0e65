"""Comparison of two finished runs: the methods that both have, as paired differences on the same patients.

The runs may differ in what a method cannot set: views, network, pretraining. They must have the same seed, folds,
evaluation and data, so that both segmented the same patients in the same folds and weighted them equally in every
bootstrap replicate. If their base networks differ, each run has one pretraining, and another one would have given
another difference: methods that start from the base, and zero-shot, then have no p value and no verdict.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from sahfl.config import Study
from sahfl.errors import RunError
from sahfl.results.evidence import signed
from sahfl.results.method_results import Evaluated, compare, measured
from sahfl.results.method_rows import MethodRow, find_rows
from sahfl.results.verdicts import correct
from sahfl.run.folder import RunFolder


def compare_runs(run: RunFolder, reference: RunFolder) -> dict[str, Any]:
    """Differences run minus reference for each method of both, corrected together (``verdicts.correct``).

    Returns:
        ``comparisons`` as in ``results.json``, each with its ``id``; ``correction``; and ``differs``, a list of every
        setting that is not the same in both, as ``setting``, ``run`` and ``reference``.

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
    ids = [found["id"] for found in comparisons]
    return {"differs": _settings_that_differ(study, other, ids), "comparisons": comparisons, "correction": correction}


def comparison_table(found: dict[str, Any]) -> str:
    """The settings that differ, and the comparisons as a Markdown table, a row for each method."""
    lines = [
        f"- {one['setting']}: {json.dumps(one['run'])}, of the reference {json.dumps(one['reference'])}"
        for one in found["differs"]
    ]
    lines = ["The runs differ in:", "", *lines, ""] if lines else []
    lines += ["| method | Dice | of the reference | difference | 95 % interval | n | verdict |", f"|{'---|' * 7}"]
    for row in found["comparisons"]:
        overall = row["metrics"]["dice"]["overall"]
        interval = "" if overall["low"] is None else f"{signed(overall['low'])} to {signed(overall['high'])}"
        numbers = [_number(value) for value in row["dice"]]
        gap = "" if overall["difference"] is None else signed(overall["difference"])
        cells = [row["id"], *numbers, gap, interval, str(overall["n"]), row["verdict"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _settings_that_differ(study: Study, other: Study, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Every setting in which two studies differ; of their methods only those of ``ids``, each under its id."""
    ours, theirs = (dict(_flat(_settings(each, ids))) for each in (study, other))
    names = [name for name in dict.fromkeys([*ours, *theirs]) if ours.get(name) != theirs.get(name)]
    return [{"setting": name, "run": ours.get(name), "reference": theirs.get(name)} for name in names]


def _settings(study: Study, ids: Sequence[str]) -> dict[str, Any]:
    """What determines the results of these methods, and not where the data lie."""
    settings = study.model_dump(mode="json", exclude={"name": True, "require_gain": True, "base": {"path"}})
    settings["data"] = study.data.identity()
    methods = {method.id: method.model_dump(mode="json") for method in study.finetune.methods if method.id in ids}
    settings["finetune"]["methods"] = methods
    return settings


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _flat(part, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


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
