"""The conclusion of a study: which method to use, at what cost, where it is worse, and what is not known.

``conclude`` makes the first box of the report and the text at the end of a run in a terminal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sahfl.data.misplaced import misplaced
from sahfl.report.choice import FULL, Choice, choose, first_adapter
from sahfl.report.compared import (
    BETTER,
    ONE_TRAINING,
    UNDECIDED,
    WORSE,
    compared,
    difference_words,
    n_folds,
    short_verdict,
    site_seconds,
    turned,
    unit,
    verdict_between,
)
from sahfl.report.names import ZERO_SHOT, dice_of, left_out, measured_method, method_name, method_named
from sahfl.report.outcome_tables import outcome_table
from sahfl.report.tables import Table
from sahfl.report.text import Results, count, duration, estimate, number, percent, signed, size, whole

UNTRAINED = "the pretrained network without fine-tuning (zero-shot)"
TONES = {BETTER: "gain", WORSE: "loss", UNDECIDED: "unclear", ONE_TRAINING: "once"}


@dataclass(frozen=True)
class Point:
    """One labelled sentence of a conclusion."""

    label: str
    text: str


@dataclass(frozen=True)
class Conclusion:
    """What a reader must know first."""

    notices: tuple[str, ...]
    """What the results are not, such as results of patients; above everything else."""
    tone: str
    """gain, loss, unclear, once or none; determines the colour of the page's first box."""
    use: str
    """Which method to use, or that none can be recommended."""
    points: tuple[Point, ...]
    table: Table


def conclude(results: Results) -> Conclusion:
    """The conclusion of a study, by the rule of ``choice`` and the verdicts of its comparisons."""
    choice, first = choose(results), first_adapter(results)
    shown = [method for method in (choice.method or first, choice.cheaper) if method is not None]
    if choice.method is not None:
        tone, use = "gain", _advice(results, choice.method, choice.cheaper)
    else:
        tone, use = _no_advice(results, choice, first)
    points = [*_dice_points(results, shown), *_cost_points(results, shown), *_limit_points(results, shown)]
    if choice.method is not None:
        points.append(Point("How chosen", _rule(results, choice)))
    table = outcome_table(results, [method["id"] for method in shown])
    return Conclusion(tuple(_notices(results)), tone, use, tuple(points), table)


def _notices(results: Results) -> Iterator[str]:
    """Sentences about results that are no results of patients at real hospitals."""
    sources = [site["source"] for site in results["sites"] if site["source"]]
    made = sum(source.startswith("phantom") for source in sources)
    if made:
        some = "" if made == len(sources) else " IN PART"
        which = "All scans are" if made == len(sources) else f"The scans of {made} of {len(sources)} sites are"
        yield f"SIMULATED{some}. {which} made by a program. No number here says how accurate a method is in patients."
    elif _source(results) not in (None, "sites"):
        yield "SIMULATED FEDERATION. The scans are from files, and one machine computed for all sites."
    if _source(results) == "sites" and not is_masked(results):
        yield "NOT MASKED. The server saw the updates and results of each site."
    hostile = results.get("hostile", {})
    if acts := ", ".join(f"{site} ({act.replace('_', ' ')})" for site, act in sorted(hostile.items())):
        yield f"A simulation with hostile sites: {acts}. No result of a real study."


def is_masked(results: Results) -> bool:
    """Whether the sites masked what they sent."""
    rounds = results["study"].get("rounds")
    return isinstance(rounds, dict) and rounds.get("masking") is not None


def _source(results: Results) -> str | None:
    data = results["study"].get("data")
    return data.get("source") if isinstance(data, dict) else None


# ---------------------------------------------------------------------------------------------------- what to use


def _in_text(method: Results) -> str:
    """The method's name inside a sentence: ``full fine-tuning``, ``CP-LoRA (rank 8)``."""
    name = method_name(method)
    return name if method["rank"] is not None else name[0].lower() + name[1:]


def _advice(results: Results, method: Results, cheaper: Results | None) -> str:
    if cheaper is None:
        return f"Use {_in_text(method)}."
    share = percent(cheaper["bytes_up_per_round"], method["bytes_up_per_round"])
    use = f"Use {_in_text(method)}, or {_in_text(cheaper)} if a site is to send only {share} of the bytes."
    found = compared(results, cheaper["id"], method["id"])
    if found is None:
        return f"{use} The two were not compared with each other."
    return (
        f"{use} Against {_in_text(method)}, Dice of {_in_text(cheaper)} differs by {difference_words(results, found)}."
    )


def _no_advice(results: Results, choice: Choice, first: Results | None) -> tuple[str, str]:
    """Tone and sentence if no method is shown to be better than zero-shot."""
    nobody = "No method can be recommended"
    if first is None:
        return "none", f"{nobody}: no method was fine-tuned for the patients of all sites."
    if method_named(results, ZERO_SHOT) is None:
        return "none", f"{nobody}: the study has no zero-shot, so nothing shows what fine-tuning changes."
    if not choice.candidates:
        return "none", f"{nobody}: no method that all sites train together has a result."
    verdicts = [verdict_between(results, method["id"], ZERO_SHOT) for method in choice.candidates]
    gaps = [compared(results, method["id"], ZERO_SHOT) for method in choice.candidates]
    known = [gap for gap in gaps if gap is not None and gap["metrics"]["dice"]["overall"]["low"] is not None]
    if not known:
        return "none", f"{nobody}: the study has too few patients for an interval."
    if set(verdicts) == {WORSE}:
        return "loss", f"Use {UNTRAINED}: fine-tuning made Dice worse."
    if set(verdicts) == {ONE_TRAINING}:
        each = "each" if len(verdicts) > 1 else _in_text(choice.candidates[0])
        again = (
            f"Train {'each' if len(verdicts) > 1 else 'it'} at least twice (an entry of finetune.grid with repeats: 2)."
        )
        return "once", f"{nobody}: {each} {_once(choice.candidates)}, and one training decides nothing. {again}"
    n = Counter(verdict for verdict in verdicts if verdict is not None)
    if len(verdicts) == 1:
        return "unclear", f"{nobody}: whether {_in_text(choice.candidates[0])} is better than zero-shot is undecided."
    words = {UNDECIDED: UNDECIDED, ONE_TRAINING: f"with {ONE_TRAINING}", WORSE: WORSE}
    counts = ", ".join(f"{n[verdict]} {word}" for verdict, word in words.items() if n[verdict])
    tone = TONES.get(verdict_between(results, first["id"], ZERO_SHOT) or "", "none")
    return tone, f"{nobody}: none of {len(verdicts)} is shown to be better than zero-shot ({counts})."


def _once(methods: Sequence[Results]) -> str:
    several = any(len(method["repeats"]) > 1 for method in methods)
    return "was trained once" + (", or not equally often for all patients" if several else "")


def _rule(results: Results, choice: Choice) -> str:
    n_all, n_better = len(choice.candidates), len(choice.better)
    others = [method for method in choice.fit if method["id"] != FULL]
    taken = "the one that sends least was taken"
    if n_better == 1:
        last = "It was taken."
    elif not any(method["id"] == FULL for method in choice.better):
        beaten = n_better - len(others)
        last = f"Another one of them beats {beaten}; of the rest, {taken}." if beaten else f"Of these, {taken}."
    elif others:
        as_good = BETTER if choice.fit[0]["id"] != FULL else "not worse"
        last = (
            f"Of these, {len(others)} {'is' if len(others) == 1 else 'are'} {as_good} than full fine-tuning; {taken}."
        )
    else:
        last = "No other one is shown to be as good as full fine-tuning, so this was taken."
    return (
        f"After the results, by a rule that was fixed before. Of {count(n_all, 'method')} that all sites trained "
        f"together, {n_better} {'is' if n_better == 1 else 'are'} better than zero-shot. {last} The verdicts are "
        f"corrected over all {results['correction']['n']['dice']} differences of the study; a mean decides nothing. "
        f"Not worse means no more than {results['correction']['margin']} of Dice below."
    )


# ------------------------------------------------------------------------------------------------ why, and its price


def _dice_points(results: Results, shown: Sequence[Results]) -> Iterator[Point]:
    zero_shot = measured_method(results, ZERO_SHOT)
    if not shown and zero_shot is not None and dice_of(zero_shot)["mean"] is not None:
        overall = dice_of(zero_shot)
        yield Point(
            "Dice", f"{estimate(overall['mean'], overall)} without fine-tuning, {_scope(results, overall['n'])}."
        )
    for method in shown:
        if method["failed"] is not None:
            yield Point(method_name(method), f"No result: {method['failed'].rstrip('.')}.")
            continue
        found = compared(results, method["id"], ZERO_SHOT)
        if found is None:
            overall = dice_of(method)
            text = f"Dice {estimate(overall['mean'], overall)}, {_scope(results, overall['n'])}."
        else:
            after, before = found["dice"]
            n = found["metrics"]["dice"]["overall"]["n"]
            text = f"Dice {number(after)}, without fine-tuning {number(before)}: {difference_words(results, found)}; "
            text += f"{_scope(results, n)}."
        named = method["id"] != shown[0]["id"]  # the first sentence compares the second method with full fine-tuning
        against = None if named else compared(results, method["id"], FULL)
        text += "" if against is None else f" Against full fine-tuning: {difference_words(results, against)}."
        yield Point(method_name(method), text)
    if (each := _each_site(results, shown)) is not None:
        yield Point("Each hospital", each)


def _scope(results: Results, n: int | None) -> str:
    folds = n_folds(results)
    return f"{count(n or 0, unit(results))}" + (f" in {count(folds, 'fold')}" if folds else "")


def _each_site(results: Results, shown: Sequence[Results]) -> str | None:
    """What the first method that is shown changes at each hospital, and what taking part gives a hospital."""
    sentences = []
    measured = [method for method in shown if method["failed"] is None]
    if measured and (listed := ", ".join(_site_changes(results, measured[0]))):
        sentences.append(f"Dice of {_in_text(measured[0])} minus zero-shot: {listed}; no interval for one hospital.")
    gains = [gain for method in measured[:1] for gain in results["gains"] if gain["method"] == method["id"]]
    if gains:
        listed = ", ".join(f"{g['site']} {signed(g['difference'])} ({short_verdict(g['verdict'])})" for g in gains)
        sentences.append(f"Taking part against training alone: {listed}.")
    return " ".join(sentences) or None


def _site_changes(results: Results, method: Results) -> Iterator[str]:
    """``sah_a +0.04``, for each site on whose patients both the method and zero-shot were evaluated."""
    zero_shot = measured_method(results, ZERO_SHOT)
    before = {} if zero_shot is None else {part["site"]: part for part in zero_shot["by_site"]}
    for part in method["by_site"]:
        old = before.get(part["site"])
        if old is not None and old["n"] == part["n"] and None not in (old["dice"], part["dice"]):
            yield f"{part['site']} {signed(part['dice'] - old['dice'])}"


def _cost_points(results: Results, shown: Sequence[Results]) -> Iterator[Point]:
    full, base = measured_method(results, FULL), results["base"]
    costly = [method for method in shown if method["failed"] is None]
    costly += [] if full is None or full in costly else [full]
    parts = []
    for method in costly:
        sent, seconds = method["bytes_up_per_round"], site_seconds(results, method)
        whole_network = sent >= 0.995 * base["bytes"]
        share = "the whole network" if whole_network else f"{percent(sent, base['bytes'])} of the network"
        time = f", {duration(seconds)} of training" if seconds is not None else ""
        cost = f"{size(sent)} per site and round ({share}), {whole(method['trainable'])} trained parameters{time}"
        parts.append(f"{method_name(method)}: {cost}")
    if parts:
        yield Point("Cost", f"{'; '.join(parts)}.")
    if is_masked(results):
        yield Point("Masked", "Of updates, losses and results the server learned the sums over the sites only.")


def _limit_points(results: Results, shown: Sequence[Results]) -> Iterator[Point]:
    if shown:
        worse = list(_worse(results, shown[0]))
        yield Point("Where it is worse", f"{'; '.join(worse)}." if worse else "In no comparison of this study.")
    unknown = "; ".join(_unknown(results, shown))
    yield Point("Not known", f"{unknown[0].upper()}{unknown[1:]}.")


def _worse(results: Results, method: Results) -> Iterator[str]:
    """Comparisons in which a method is worse, or below the other one by an interval that is not corrected."""
    for comparison in results["comparisons"]:
        if method["id"] in (comparison["method"], comparison["reference"]):
            found = comparison if comparison["method"] == method["id"] else turned(comparison)
            high = found["metrics"]["dice"]["overall"]["high"]
            if high is not None and high < 0:
                other = method_named(results, found["reference"])
                name = found["reference"] if other is None else _in_text(other)
                yield f"than {name}: {difference_words(results, found)}"
    for gain in results["gains"]:
        if gain["method"] == method["id"] and gain["verdict"] == WORSE:
            yield f"at {gain['site']} than training alone there: {signed(gain['difference'])}"


def _unknown(results: Results, shown: Sequence[Results]) -> Iterator[str]:
    if any(site["source"].startswith("phantom") for site in results["sites"]):
        yield "accuracy in patients (the scans are simulated)"
    if doubtful := [site["site"] for site in results["sites"] if misplaced(site["findings"], site["n_volumes"])]:
        yield f"whether all annotations of {' and '.join(doubtful)} belong to their scans (see the hospitals' data)"
    once = [method for method in shown if method["failed"] is None and dice_of(method)["trainings"] == 1]
    if once:
        yield f"how another training of {' or '.join(map(method_name, once))} would differ (it {_once(once)})"
    yield "what another base network would change (there is one)"
    if not left_out(results):
        yield "accuracy at a hospital that took no part"
    if not results["gains"]:
        yield "whether a hospital does as well alone"
    if method_named(results, FULL) is None and shown:
        yield "whether full fine-tuning is better (the study does not have it)"
    n = sum(site["n_patients"] for site in results["sites"] if site["role"] == "finetune")
    yield f"cases too rare to be among {count(n, 'patient')}"
