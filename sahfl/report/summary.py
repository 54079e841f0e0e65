"""What a reader wants to know first: the headline, in words that follow the interval, and the key figures."""

from __future__ import annotations

from dataclasses import dataclass

from sahfl.report.text import DASH, Results, count, duration, interval, number, percent, signed, size

ZERO_SHOT = "zero_shot"
NAMES = {
    "zero_shot": "Zero-shot",
    "full": "Full fine-tuning",
    "encoder": "Fine-tuning of the encoder",
    "bottleneck": "Fine-tuning of the bottleneck",
    "decoder": "Fine-tuning of the decoder",
    "last_layer": "Fine-tuning of the last layer",
    "norm_bias": "Fine-tuning of norms and biases",
    "lora_c": "LoRA-C",
    "conv_lora": "convLoRA",
    "cp_lora": "CP-LoRA",
    "dora_c": "DoRA-C",
    "conv_dora": "convDoRA",
    "cp_dora": "CP-DoRA",
}
FIXED_COLOURS = {"zero_shot": "#6B6B6B", "full": "#D55E00"}
OTHER_COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe & Ito 2008, "Color universal design": told apart with any colour vision."""


@dataclass(frozen=True)
class Headline:
    """The first sentence of the report and what it means."""

    verdict: str
    """gain, loss, unclear or none; colours the page's first box."""
    sentence: str
    others: tuple[str, ...]
    """One sentence for each other method."""


@dataclass(frozen=True)
class Tile:
    """One key figure."""

    label: str
    value: str
    note: str


def method_name(method: Results) -> str:
    """``CP-LoRA (rank 8)``; a method unknown to this version keeps its own name."""
    name, rank = NAMES.get(method["method"], str(method["method"])), method["rank"]
    plain = method["method"] if rank is None else f"{method['method']}-r{rank}"
    # What the id holds besides are the settings that tell two methods of the same kind apart.
    rest = method["id"].removeprefix(plain).strip("-").replace("-", " ") if method["id"].startswith(plain) else ""
    details = ", ".join(filter(None, [rank and f"rank {rank}", rest]))
    return f"{name} ({details})" if details else name


def method_colours(methods: list[Results]) -> dict[str, str]:
    """Colour by method id, the same in every figure and table."""
    others = [method["id"] for method in methods if method["id"] not in FIXED_COLOURS]
    colours = {name: OTHER_COLOURS[i % len(OTHER_COLOURS)] for i, name in enumerate(others)}
    return FIXED_COLOURS | colours


def method_named(results: Results, name: str) -> Results | None:
    """The method with this id, or None."""
    return next((method for method in results["methods"] if method["id"] == name), None)


def gain_over_zero_shot(results: Results, name: str) -> Results | None:
    """The comparison of a method with zero-shot; None if it has none or failed."""
    method = method_named(results, name)
    if method is None or method["failed"] is not None:
        return None
    found = (c for c in results["comparisons"] if c["method"] == name and c["reference"] == ZERO_SHOT)
    return next(found, None)


def verdict_of(comparison: Results | None) -> str:
    """``gain`` or ``loss`` only where the whole interval lies on one side of zero."""
    if comparison is None or comparison["low"] is None or comparison["high"] is None:
        return "none"
    if comparison["low"] > 0:
        return "gain"
    return "loss" if comparison["high"] < 0 else "unclear"


def headline(results: Results) -> Headline:
    """Say first what fine-tuning did to Dice, and what it cost in bytes.

    The method in the first sentence is the first adapter of the study file, never the best one afterwards; without an
    adapter it is the first method that was trained.
    """
    tuned = [method for method in results["methods"] if method["id"] != ZERO_SHOT]
    if not tuned:
        return Headline("none", _zero_shot_sentence(results), ())
    first = next((method for method in tuned if method["rank"] is not None), tuned[0])
    others = tuple(method_sentence(results, method) for method in tuned if method is not first)
    return Headline(verdict_of(gain_over_zero_shot(results, first["id"])), method_sentence(results, first), others)


def hostile_sentence(results: Results) -> str | None:
    """Which sites acted against the others, in a simulation that says so; None where all were honest."""
    hostile = results.get("hostile", {})
    acts = ", ".join(f"{site} ({act.replace('_', ' ')})" for site, act in sorted(hostile.items()))
    return f"A simulation with hostile sites: {acts}. No result of a real study." if hostile else None


def method_sentence(results: Results, method: Results) -> str:
    """One sentence on one fine-tuned method; its verb follows the interval."""
    subject = method_name(method)
    subject = subject if method["rank"] is None else f"Fine-tuning with {subject}"
    if method["failed"] is not None:
        return f"{subject} has no result: {method['failed'].rstrip('.')}."
    comparison = gain_over_zero_shot(results, method["id"])
    if comparison is None or comparison["difference"] is None:
        return f"{subject} cannot be compared with zero-shot: no scan with blood was evaluated with both."
    scope, cost = _scope(results, comparison["n"]), _cost(results, method)
    return f"{subject} {_change(results, method, comparison)} {scope}, {cost}."


def _change(results: Results, method: Results, comparison: Results) -> str:
    """``raised Dice from 0.41 to 0.50: +0.09 (95 % interval +0.05 to +0.13)`` and its other outcomes."""
    zero_shot = method_named(results, ZERO_SHOT)
    before = zero_shot["overall"]["dice"] if zero_shot else None
    after, gap = method["overall"]["dice"], comparison["difference"]
    digits = _digits(before, after, comparison)
    change = f"{signed(gap, digits)} (95 % interval {interval(comparison, digits, plus=True)})"
    span = f"from {number(before, digits)} to {number(after, digits)}"
    verdict = verdict_of(comparison)
    if verdict == "none":
        return f"moved Dice {span}: {signed(gap, digits)}, with too few patients for an interval,"
    if verdict == "unclear":
        return f"made no clear change to Dice, {span}: {change[:-1]}, which includes zero)"
    return f"{'raised' if verdict == 'gain' else 'lowered'} Dice {span}: {change}"


def _digits(before: float | None, after: float | None, comparison: Results) -> int:
    """Two decimals, or three where two would contradict themselves (0.414 to 0.496 is not +0.09) or show a false 0."""
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
    zero_shot = method_named(results, ZERO_SHOT)
    if zero_shot is None or zero_shot["failed"] is not None or zero_shot["overall"]["dice"] is None:
        return "No method was fine-tuned, and the pretrained network has no result."
    overall = zero_shot["overall"]
    within = f" (95 % interval {interval(overall, 2)})" if overall["low"] is not None else ""
    reached = f"Without fine-tuning, the pretrained network reached Dice {number(overall['dice'], 2)}{within}"
    return f"{reached} {_scope(results, overall['n'])}; no method was fine-tuned."


def n_folds(results: Results) -> int:
    """Folds of the study; 0 if no site fine-tuned."""
    return max((len(site["fold_sizes"]) for site in results["sites"]), default=0)


def unit(results: Results) -> str:
    """``patient`` where every patient has one scan, else ``scan``: that is what n counts."""
    tuned = [site for site in results["sites"] if site["role"] == "finetune"]
    return "patient" if all(site["n_patients"] == site["n_volumes"] for site in tuned) else "scan"


def tiles(results: Results) -> tuple[Tile, ...]:
    """Key figures, of the method that the headline is about."""
    tuned = [m for m in results["methods"] if m["id"] != ZERO_SHOT and m["failed"] is None]
    first = next((m for m in tuned if m["id"] != "full"), tuned[0] if tuned else None)
    return (*_dice_tiles(results, first), *_cost_tiles(results, first), *_run_tiles(results))


def _dice_tiles(results: Results, first: Results | None) -> list[Tile]:
    zero_shot, shown = method_named(results, ZERO_SHOT), []
    for method in (zero_shot, first):
        if method is not None and method["failed"] is None:
            overall = method["overall"]
            note = f"95 %: {interval(overall)}" if overall["low"] is not None else f"n = {overall['n']}"
            shown.append(Tile(f"Dice, {method_name(method)}", number(overall["dice"]), note))
    comparison = gain_over_zero_shot(results, first["id"]) if first else None
    if comparison is not None:
        note = (
            f"95 %: {interval(comparison, plus=True)}" if comparison["low"] is not None else "too few for an interval"
        )
        shown.append(Tile("Change in Dice", signed(comparison["difference"]), note))
    return shown


def _cost_tiles(results: Results, first: Results | None) -> list[Tile]:
    if first is None:
        return []
    sent, base = first["bytes_up_per_round"], results["base"]
    return [Tile("Sent per site and round", size(sent), f"{percent(sent, base['bytes'])} of the full model")]


def _run_tiles(results: Results) -> list[Tile]:
    tuned = [site for site in results["sites"] if site["role"] == "finetune"]
    patients, rounds = sum(site["n_patients"] for site in tuned), results["rounds"]
    asked = {(r["stage"], r["method"], r["fold"], r["round"]) for r in rounds}
    done = sum(r["committed"] for r in rounds)
    folds = n_folds(results)
    where = f"{count(len(tuned), 'site')}, {count(folds, 'fold')}" if folds else DASH
    return [
        Tile("Patients evaluated", str(patients), where),
        Tile("Rounds committed", f"{done} of {len(asked)}", f"in {duration(results['seconds'])}"),
    ]
