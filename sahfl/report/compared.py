"""What the results say about two methods and the size of the study: the parts that sentences and tables share."""

from __future__ import annotations

import statistics

from sahfl.report.names import ZERO_SHOT, measured_method, row_of_training
from sahfl.report.text import Results, interval, signed

BETTER, NOT_WORSE, WORSE, UNDECIDED, ONE_TRAINING = "better", "not worse", "worse", "undecided", "one training"


def short_verdict(verdict: str) -> str:
    """``one training`` for ``one training: no verdict``."""
    return verdict.partition(":")[0]


def compared(results: Results, name: str, reference: str) -> Results | None:
    """The comparison of a method with another one; None if they were not compared or the method failed."""
    if measured_method(results, name) is None:
        return None
    return next((c for c in results["comparisons"] if (c["method"], c["reference"]) == (name, reference)), None)


def verdict_between(results: Results, name: str, reference: str) -> str | None:
    """The verdict of a method's comparison with another one, in its short form; None if they were not compared."""
    found = compared(results, name, reference)
    return None if found is None else short_verdict(found["verdict"])


def gain_over_zero_shot(results: Results, name: str) -> Results | None:
    """The difference in Dice of a method from zero-shot; None if it was not compared or failed."""
    comparison = compared(results, name, ZERO_SHOT)
    return None if comparison is None else comparison["metrics"]["dice"]["overall"]


def difference_words(results: Results, comparison: Results) -> str:
    """``−0.016 (95 % interval −0.030 to −0.003), undecided after the correction for 89 differences``."""
    gap, verdict = comparison["metrics"]["dice"]["overall"], short_verdict(comparison["verdict"])
    if gap["difference"] is None:
        return "not known, because no scan with blood was evaluated with both"
    if gap["low"] is None or gap["high"] is None:
        return f"{signed(gap['difference'])}, with too few patients for an interval"
    over = " over patients only" if gap["trainings"] == 1 else ""
    n = results["correction"]["n"]["dice"]
    excluded = gap["low"] > 0 or gap["high"] < 0
    corrected = f" after the correction for {n} differences" if verdict == UNDECIDED and excluded and n > 1 else ""
    others = ", ".join(name.replace("_", " ") for name in comparison["differs"])
    too = f"; the two differ in {others} too" if others else ""
    within = f"95 % interval{over} {interval(gap, plus=True)}"
    return f"{signed(gap['difference'])} ({within}), {verdict}{corrected}{too}"


def turned(comparison: Results) -> Results:
    """The comparison of the reference with the method, in place of the method with the reference."""
    gap = comparison["metrics"]["dice"]["overall"]
    minus = {key: None if gap[key] is None else -gap[key] for key in ("difference", "low", "high")}
    opposite = {BETTER: WORSE, WORSE: BETTER, NOT_WORSE: UNDECIDED}
    return {
        **{"method": comparison["reference"], "reference": comparison["method"], "differs": comparison["differs"]},
        "verdict": opposite.get(short_verdict(comparison["verdict"]), comparison["verdict"]),
        "metrics": {"dice": {"overall": {**gap, **minus, "low": minus["high"], "high": minus["low"]}}},
    }


def site_seconds(results: Results, method: Results) -> float | None:
    """Median time that a site trained in a round of a method, repeats included; None if it is not known."""
    found = [
        used["seconds"]
        for entry in results["rounds"]
        if entry["method"] is not None and row_of_training(results, entry["method"]) is method
        for used in entry["used"]
        if used.get("seconds") is not None
    ]
    return statistics.median(found) if found else None


def n_folds(results: Results) -> int:
    """Folds of the study; 0 if no site fine-tuned."""
    return max((len(site["fold_sizes"]) for site in results["sites"]), default=0)


def unit(results: Results) -> str:
    """The unit of n: ``patient`` if every patient has one scan, otherwise ``scan``."""
    tuned = [site for site in results["sites"] if site["role"] == "finetune"]
    return "patient" if all(site["n_patients"] == site["n_volumes"] for site in tuned) else "scan"
