"""The start of the report: a headline worded according to its verdict, and the key figures."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from sahfl.report.names import (
    EACH,
    OTHERS,
    POOLED,
    POOLED_STEPS,
    ZERO_SHOT,
    dice_of,
    measured_method,
    method_name,
    method_named,
)
from sahfl.report.text import (
    DASH,
    Results,
    count,
    duration,
    interval,
    marked_interval,
    number,
    p_value,
    percent,
    signed,
    size,
)

MOST_SENTENCES = 3
"""Number of other methods with their own sentence; if there are more, all are counted by outcome."""


@dataclass(frozen=True)
class Headline:
    """The first sentence of the report, and its verdict."""

    verdict: str
    """gain, loss, unclear, once or none; determines the colour of the page's first box."""
    sentence: str
    others: tuple[str, ...]
    """One sentence for each other method, or counts of their outcomes."""


@dataclass(frozen=True)
class Tile:
    """One key figure."""

    label: str
    value: str
    note: str


OF_ALL = (None, POOLED, POOLED_STEPS, EACH, OTHERS)
"""``trained_at`` of the headline's methods, which have the patients of all sites and start from the base of all."""
OUTCOMES = {"better": "gain", "worse": "loss", "one training: no verdict": "once"}
"""Verdict of a comparison with zero-shot -> the headline's; any other verdict of an interval is ``unclear``."""


def compared(results: Results, name: str, reference: str) -> Results | None:
    """The comparison of a method with another one; None if they were not compared or the method failed."""
    if measured_method(results, name) is None:
        return None
    return next((c for c in results["comparisons"] if (c["method"], c["reference"]) == (name, reference)), None)


def gain_over_zero_shot(results: Results, name: str) -> Results | None:
    """The difference in Dice of a method from zero-shot; None if it was not compared or failed."""
    comparison = compared(results, name, ZERO_SHOT)
    return None if comparison is None else comparison["metrics"]["dice"]["overall"]


def outcome(results: Results, name: str) -> str:
    """The verdict of a method's comparison with zero-shot, for the headline."""
    comparison = compared(results, name, ZERO_SHOT)
    if comparison is None or comparison["metrics"]["dice"]["overall"]["low"] is None:
        return "none"
    return OUTCOMES.get(comparison["verdict"], "unclear")


def headline_method(results: Results) -> Results | None:
    """The study file's first federated adapter; results play no part in the choice.

    Without an adapter it is the first trained method; None if there is none.
    """
    tuned = _tuned(results)
    federated = [method for method in tuned if method["trained_at"] is None] or tuned
    return next((method for method in federated if method["rank"] is not None), next(iter(federated), None))


def _tuned(results: Results) -> list[Results]:
    """Fine-tuned methods for the patients of all sites: not those of one site, of one base or without one site."""
    return [method for method in results["methods"] if method["id"] != ZERO_SHOT and method["trained_at"] in OF_ALL]


def headline(results: Results) -> Headline:
    """State the effect of fine-tuning on Dice, and its cost in bytes."""
    first = headline_method(results)
    if first is None:
        return Headline("none", _zero_shot_sentence(results), ())
    if method_named(results, ZERO_SHOT) is None:
        return Headline("none", method_sentence(results, first), ())
    others = [method for method in _tuned(results) if method["id"] != first["id"]]
    sentences = [method_sentence(results, m) for m in others if len(others) <= MOST_SENTENCES or m["id"] == "full"]
    if len(others) > MOST_SENTENCES:
        sentences.append(_count_outcomes(results, others))
    return Headline(outcome(results, first["id"]), method_sentence(results, first), tuple(sentences))


def _count_outcomes(results: Results, methods: list[Results]) -> str:
    """For example: Of 23 other methods: 19 raised Dice over zero-shot, 3 made no clear change, 1 without a result."""
    words = {"gain": "raised Dice over zero-shot", "unclear": "made no clear change", "loss": "lowered Dice"}
    words |= {"once": "without a verdict for lack of trainings", "none": "have too few patients for an interval"}
    words |= {"failed": "without a result"}
    outcomes = Counter(
        "failed" if method["failed"] is not None else outcome(results, method["id"]) for method in methods
    )
    parts = [f"{outcomes[key]} {text}" for key, text in words.items() if outcomes[key]]
    return f"Of {count(len(methods), 'other method')}: {', '.join(parts)}."


def hostile_sentence(results: Results) -> str | None:
    """The hostile sites of a simulation and their acts; None if all sites were honest."""
    hostile = results.get("hostile", {})
    acts = ", ".join(f"{site} ({act.replace('_', ' ')})" for site, act in sorted(hostile.items()))
    return f"A simulation with hostile sites: {acts}. No result of a real study." if hostile else None


def cells_sentence(results: Results) -> str:
    """Number of cells taken from an earlier run; empty if the run has no reusable cells."""
    if (cells := results.get("cells")) is None:
        return ""
    reused = cells["reused"] or "none"
    were = "was" if reused == 1 else "were"
    taken = f"{reused} {were} taken from an earlier run with the same content"
    return f"Cells of the grid (a method in a fold): {cells['total']}, of which {taken}."


def method_sentence(results: Results, method: Results) -> str:
    """One sentence about one fine-tuned method; its verb depends on the interval."""
    subject = method_name(method)
    subject = subject if method["rank"] is None else f"Fine-tuning with {subject}"
    if method["failed"] is not None:
        return f"{subject} has no result: {method['failed'].rstrip('.')}."
    cost = _cost(results, method)
    if method_named(results, ZERO_SHOT) is None:
        reached = f"{subject} reached {_reached(results, dice_of(method))}"
        return f"{reached}, {cost}. The study has no zero-shot to compare with."
    compared_with = compared(results, method["id"], ZERO_SHOT)
    if compared_with is None or compared_with["metrics"]["dice"]["overall"]["difference"] is None:
        return f"{subject} cannot be compared with zero-shot: no scan with blood was evaluated with both."
    scope = _scope(results, compared_with["metrics"]["dice"]["overall"]["n"])
    change = _change(results, method, compared_with)
    return f"{subject}{':' if change.startswith('Dice') else ''} {change} {scope}, {cost}."


def _reached(results: Results, overall: Results) -> str:
    """``Dice 0.41 (95 % interval 0.35 to 0.47) over 30 patients in 3 folds``."""
    within = f" (95 % interval {interval(overall, 2)})" if overall["low"] is not None else ""
    return f"Dice {number(overall['mean'], 2)}{within} {_scope(results, overall['n'])}"


def _change(results: Results, method: Results, compared_with: Results) -> str:
    """``raised Dice from 0.41 to 0.50: +0.09 (95 % interval +0.05 to +0.13)``, or another outcome.

    Both means are over the scans that both methods were evaluated on.
    """
    comparison = compared_with["metrics"]["dice"]["overall"]
    (after, before), gap = compared_with["dice"], comparison["difference"]
    digits = _digits(before, after, comparison)
    change = f"{signed(gap, digits)} (95 % interval {interval(comparison, digits, plus=True)})"
    was = f"Dice was {number(before, digits)} before and {number(after, digits)} after: {signed(gap, digits)}"
    span = f"from {number(before, digits)} to {number(after, digits)}"
    verdict = outcome(results, method["id"])
    if verdict == "none":
        return f"{was}, with too few patients for an interval,"
    if verdict == "once":
        within = f"95 % interval over patients only, {interval(comparison, digits, plus=True)}"
        several = len(method["repeats"]) > 1
        trained = "not trained equally often for all patients" if several else "trained once"
        return f"{was} ({within}; {trained}, so without a verdict)"
    if verdict == "unclear":
        return f"made no clear change to Dice, {span}: {change[:-1]}, p (Holm) {p_value(comparison['p_holm'])})"
    return f"{'raised' if verdict == 'gain' else 'lowered'} Dice {span}: {change}"


def _digits(before: float | None, after: float | None, comparison: Results) -> int:
    """Two decimals; three if two would be inconsistent (0.414 to 0.496 is not +0.09) or round a number to 0."""
    shown = [comparison[key] for key in ("difference", "low", "high") if comparison[key] is not None]
    false_zero = any(value != 0 and abs(value) < 0.005 for value in shown)
    if before is None or after is None:
        return 3 if false_zero else 2
    agrees = round(round(after, 2) - round(before, 2), 2) == round(comparison["difference"], 2)
    return 2 if agrees and not false_zero else 3


def _scope(results: Results, n: int) -> str:
    folds = n_folds(results)
    return f"over {count(n, unit(results))}" + (f" in {count(folds, 'fold')}" if folds else "")


def _cost(results: Results, method: Results) -> str:
    sent, full = method["bytes_up_per_round"], results["base"]["bytes"]
    whole_model = sent >= 0.995 * full
    share = "as much as the full model" if whole_model else f"{percent(sent, full)} of the bytes of the full model"
    return f"sending {size(sent)} per site and round, {share}"


def _zero_shot_sentence(results: Results) -> str:
    zero_shot = measured_method(results, ZERO_SHOT)
    if zero_shot is None or dice_of(zero_shot)["mean"] is None:
        return "No method was fine-tuned for the patients of all sites, and the pretrained network has no result."
    reached = f"Without fine-tuning, the pretrained network reached {_reached(results, dice_of(zero_shot))}"
    tuned = any(method["start"] is not None for method in results["methods"])
    return f"{reached}; no method was fine-tuned{' for the patients of all sites' if tuned else ''}."


def n_folds(results: Results) -> int:
    """Folds of the study; 0 if no site fine-tuned."""
    return max((len(site["fold_sizes"]) for site in results["sites"]), default=0)


def unit(results: Results) -> str:
    """The unit of n: ``patient`` if every patient has one scan, otherwise ``scan``."""
    tuned = [site for site in results["sites"] if site["role"] == "finetune"]
    return "patient" if all(site["n_patients"] == site["n_volumes"] for site in tuned) else "scan"


def tiles(results: Results) -> tuple[Tile, ...]:
    """Key figures of the headline's method."""
    first = headline_method(results)
    first = None if first is None else measured_method(results, first["id"])
    shown = [*_dice_tiles(results, first)]
    if first is not None:
        sent, base = first["bytes_up_per_round"], results["base"]
        shown.append(Tile("Sent per site and round", size(sent), f"{percent(sent, base['bytes'])} of the full model"))
    return (*shown, *_run_tiles(results))


def _dice_tiles(results: Results, first: Results | None) -> list[Tile]:
    """Dice of zero-shot and of the method, over the scans that both were evaluated on, and their difference."""
    found = compared(results, first["id"], ZERO_SHOT) if first else None
    gain = None if found is None else found["metrics"]["dice"]["overall"]
    means = (None, None) if found is None else (found["dice"][1], found["dice"][0])
    shown = []
    for method, mean in zip((measured_method(results, ZERO_SHOT), first), means, strict=True):
        if method is not None:
            overall = dice_of(method)
            fewer = gain is not None and gain["n"] != overall["n"]
            whole = {"mean": mean, "low": None, "n": gain["n"]} if gain is not None and fewer else overall
            note = f"95 %: {marked_interval(overall)}" if whole["low"] is not None else f"n = {whole['n']}"
            shown.append(Tile(f"Dice, {method_name(method)}", number(whole["mean"]), note))
    if gain is not None:
        note = f"95 %: {marked_interval(gain, plus=True)}" if gain["low"] is not None else "too few for an interval"
        shown.append(Tile("Change in Dice", signed(gain["difference"]), note))
    return shown


def _run_tiles(results: Results) -> list[Tile]:
    tuned = [site for site in results["sites"] if site["role"] == "finetune"]
    patients, rounds = sum(site["n_patients"] for site in tuned), results["rounds"]
    asked = {(r["stage"], r["method"], r["fold"], r["round"]) for r in rounds}
    done, folds = sum(r["committed"] for r in rounds), n_folds(results)
    where = f"{count(len(tuned), 'site')}, {count(folds, 'fold')}" if folds else DASH
    cells = results.get("cells")
    saved = f", {cells['reused']} of {cells['total']} cells reused" if cells and cells["reused"] else ""
    return [
        Tile("Patients, fine-tuning", str(patients), where),
        Tile("Rounds committed", f"{done} of {len(asked)}", f"in {duration(results['seconds'])}{saved}"),
    ]
