"""Which method to use: a rule that does not depend on the results, applied to the verdicts of a study.

The methods to choose from are those that all fine-tuning sites trained together, from the common base and in the
study's rounds. Of these the rule keeps the methods that are *better* than zero-shot. If full fine-tuning is among them,
it then keeps full fine-tuning and the methods that are *better* or *not worse* than it; methods that are *better* than
full fine-tuning come before all others. If it is not, the rule leaves out a method that another one of them beats. Of
the methods that are left it takes the one that sends the fewest bytes, and of equal ones the first in the study file.

A mean decides nothing here, and a method that was trained once has no verdict, so that the rule never takes it. The
verdicts are corrected over all differences of the study (``sahfl.results.verdicts``), so that they hold for a method
that was chosen by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sahfl.report.compared import BETTER, NOT_WORSE, WORSE, verdict_between
from sahfl.report.names import EACH, OTHERS, POOLED, POOLED_STEPS, ZERO_SHOT, measured_method
from sahfl.report.text import Results

FULL = "full"
OF_ALL = (None, POOLED, POOLED_STEPS, EACH, OTHERS)
"""``trained_at`` of methods that have the patients of all sites and start from the base of all."""


@dataclass(frozen=True)
class Choice:
    """The method that the rule takes, and how it came to it."""

    candidates: tuple[Results, ...]
    """The methods to choose from."""
    better: tuple[Results, ...]
    """Those that are better than zero-shot."""
    fit: tuple[Results, ...]
    """Those of which the rule took the one that sends least."""
    method: Results | None
    """The method to use; None if the study shows no method to be better than zero-shot."""
    cheaper: Results | None
    """If ``method`` is full fine-tuning: a method that is better than zero-shot, sends less, and is not shown to be as
    good; the first adapter of the study file, or the first other method."""


def choose(results: Results) -> Choice:
    """Apply the rule to a study's results."""
    candidates = tuple(_candidates(results))
    better = tuple(m for m in candidates if verdict_between(results, m["id"], ZERO_SHOT) == BETTER)
    fit = tuple(_fit(results, better))
    method = min(fit, key=_sent, default=None)
    cheaper = None
    if method is not None and method["id"] == FULL:
        less = [other for other in better if _sent(other) < _sent(method)]
        cheaper = next((other for other in less if other["rank"] is not None), next(iter(less), None))
    return Choice(candidates, better, fit, method, cheaper)


def first_adapter(results: Results) -> Results | None:
    """The study file's first federated adapter; without an adapter, the first trained method. Results play no part."""
    tuned = tuned_for_all(results)
    federated = [method for method in tuned if method["trained_at"] is None] or tuned
    return next((method for method in federated if method["rank"] is not None), next(iter(federated), None))


def tuned_for_all(results: Results) -> list[Results]:
    """Fine-tuned methods for the patients of all sites: not those of one site, of one base or without one site."""
    return [method for method in results["methods"] if method["id"] != ZERO_SHOT and method["trained_at"] in OF_ALL]


def _candidates(results: Results) -> list[Results]:
    return [
        method
        for method in results["methods"]
        if (method["trained_at"], method["start"], method["rounds"]) == (None, "base", None)
        if method["part"] in (None, "personal") and measured_method(results, method["id"]) is not None
    ]


def _fit(results: Results, better: Sequence[Results]) -> list[Results]:
    full = [method for method in better if method["id"] == FULL]
    if not full:
        return [m for m in better if not any(_beats(results, other["id"], m["id"]) for other in better)]
    against = {method["id"]: verdict_between(results, method["id"], FULL) for method in better}
    above = [method for method in better if against[method["id"]] == BETTER]
    return above or [*full, *(method for method in better if against[method["id"]] == NOT_WORSE)]


def _beats(results: Results, name: str, other: str) -> bool:
    return verdict_between(results, name, other) == BETTER or verdict_between(results, other, name) == WORSE


def _sent(method: Results) -> float:
    return float(method["bytes_up_per_round"])
