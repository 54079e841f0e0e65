"""Rows of the report's tables, as text; the template only lays them out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sahfl.report.summary import ZERO_SHOT, gain_over_zero_shot, method_colours, method_name
from sahfl.report.text import (
    DASH,
    Results,
    count,
    duration,
    estimate,
    interval,
    number,
    percent,
    signed,
    size,
    stratum_name,
    whole,
)

WITHHELD = {
    "strata": "Split by volume",
    "blood": "All with blood",
    "no_blood": "Counts without blood",
    "replicates": "Intervals",
}
"""What a site may withhold of a fold."""


@dataclass(frozen=True)
class Row:
    """One line; the first cell is its heading."""

    cells: tuple[str, ...]
    colour: str | None = None
    """Colour of the method in the figures."""
    span: str | None = None
    """Text that takes the place of all further cells."""


@dataclass(frozen=True)
class Table:
    """A caption, column headings and rows; ``n_text`` leading columns are words, the others numbers."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    n_text: int = 1


def method_table(results: Results) -> Table:
    """Every method: Dice, difference from zero-shot, parameters and bytes."""
    columns = (
        *("Method", "Dice, mean", "SD", "95 % interval", "n", "Difference from zero-shot", "95 % interval"),
        *("Trainable parameters", "Sent per site and round", "Of the full model"),
    )
    return Table("Methods compared on the same held-out scans with blood", columns, tuple(_method_rows(results)))


def _method_rows(results: Results) -> Iterator[Row]:
    base = results["base"]
    for method, row in _named_rows(results):
        if row.span is not None:
            yield row
            continue
        overall, gain = method["overall"], gain_over_zero_shot(results, method["id"])
        dice = number(overall["dice"]), number(overall["sd"]), interval(overall), str(overall["n"])
        change = signed(gain["difference"]) if gain else DASH, interval(gain, plus=True)
        sent = method["bytes_up_per_round"]
        cost = whole(method["trainable"]), size(sent), percent(sent, base["bytes"])
        yield Row((*row.cells, *dice, *change, *cost), row.colour)


def _named_rows(results: Results) -> Iterator[tuple[Results, Row]]:
    """Each method with the start of its row, which for a failed one says why it has no result."""
    colours = method_colours(results["methods"])
    for method in results["methods"]:
        failed = method["failed"]
        span = None if failed is None else f"Failed: {failed}"
        yield method, Row((method_name(method),), colours[method["id"]], span)


def other_comparisons_table(results: Results) -> Table:
    """Comparisons with a reference other than zero-shot."""
    names = {method["id"]: method_name(method) for method in results["methods"]}
    rows = tuple(
        Row(
            (
                f"{names.get(c['method'], c['method'])} against {names.get(c['reference'], c['reference'])}",
                str(c["n"]),
                signed(c["difference"]),
                interval(c, plus=True),
            )
        )
        for c in results["comparisons"]
        if c["reference"] != ZERO_SHOT
    )
    return Table("Methods against each other, paired by patient", ("Pair", "n", "Difference", "95 % interval"), rows)


def stratum_table(results: Results) -> Table:
    """Dice of every method in every volume stratum."""
    working = [(m, row) for m, row in _named_rows(results) if row.span is None]
    labels = [stratum_name(s["stratum"]) for s in working[0][0]["strata"]] if working else []
    rows = tuple(Row((*row.cells, *(estimate(s["dice"], s) for s in m["strata"])), row.colour) for m, row in working)
    return Table("Mean Dice (95 % interval) by annotated volume", ("Method", *labels), rows)


def site_dice_table(results: Results) -> Table:
    """Dice of every method at every site that evaluated."""
    working = [(m, row) for m, row in _named_rows(results) if row.span is None]
    sites = sorted({part["site"] for m, _ in working for part in m["by_site"]})
    rows = []
    for method, row in working:
        at = {part["site"]: f"{number(part['dice'])} (n = {part['n']})" for part in method["by_site"]}
        rows.append(Row((*row.cells, *(at.get(site, DASH) for site in sites)), row.colour))
    return Table("Mean Dice by hospital", ("Method", *sites), tuple(rows))


def volume_table(results: Results) -> Table:
    """Predicted against annotated volume, and the scans without blood."""
    columns = (
        *("Method", "n", "Pearson r", "Bias (mL)", "95 % limits of agreement (mL)"),
        *("Scans without blood", "of those, false positive"),
    )
    rows = []
    for method, row in _named_rows(results):
        if row.span is not None:
            rows.append(row)
            continue
        volume, empty = method["volume"], method["no_blood"]
        limits = {"low": volume["loa_low_ml"], "high": volume["loa_high_ml"]}
        agreement = number(volume["pearson_r"], 2), signed(volume["bias_ml"], 1), interval(limits, 1, plus=True)
        counts = str(empty["n"]), str(empty["n_false_positive"])
        rows.append(Row((*row.cells, str(volume["n"]), *agreement, *counts), row.colour))
    return Table("Volume: predicted minus annotated", columns, tuple(rows))


def traffic_table(results: Results) -> Table:
    """Bytes of every site in every stage, over all attempts: what did not count had left as well."""
    totals: dict[tuple[str, str | None], list[int]] = defaultdict(lambda: [0, 0, 0])
    for entry in results["rounds"]:
        for used in entry["used"]:
            total = totals[used["site"], entry["method"]]
            for i, value in enumerate((1, used["bytes_up"], used["bytes_down"])):
                total[i] += value
    names = {None: "Pretraining"} | {m["id"]: method_name(m) for m in results["methods"]}
    rows = tuple(
        Row((site, names.get(method, method) or "", whole(replies), size(up), size(down)))
        for (site, method), (replies, up, down) in totals.items()
    )
    columns = ("Hospital", "Stage", "Replies", "Sent", "Received")
    return Table("Network traffic of training, all rounds and folds together", columns, rows, n_text=2)


def aggregation_table(results: Results) -> Table:
    """Per training: sites that the bounds acted on, and what averaging factors cost; empty where no round says it."""
    names = {None: "Pretraining"} | {m["id"]: method_name(m) for m in results["methods"]}
    rounds: dict[str | None, list[Mapping[str, Any]]] = defaultdict(list)
    for entry in results["rounds"]:
        if entry["committed"] and all(isinstance(entry.get(bound), dict) for bound in ("shortened", "lightened")):
            rounds[entry["method"]].append(entry)
    rows = []
    for method, entries in rounds.items():
        errors = sorted(e["aggregation_error"] for e in entries if isinstance(e.get("aggregation_error"), float))
        error = f"{percent(errors[len(errors) // 2], 1)}, {percent(errors[-1], 1)}" if errors else DASH
        bounded = (_named_counts(e[bound] for e in entries) for bound in ("shortened", "lightened"))
        rows.append(Row((names.get(method, method) or DASH, *bounded, str(len(entries)), error)))
    columns = ("Stage", "Changes shortened", "Weights reduced", "Rounds", "Aggregation error, median and largest")
    return Table("Bounds and aggregation error, all folds together", columns, tuple(rows), n_text=3)


def _named_counts(sites: Iterable[Iterable[str]]) -> str:
    counts = Counter(site for each in sites for site in each)
    return ", ".join(f"{site}: {n}" for site, n in sorted(counts.items())) or "none"


def site_table(results: Results) -> Table:
    """Patients, volumes, folds and findings of every site."""
    roles = {"pretrain": "pretraining", "finetune": "fine-tuning"}
    rows = tuple(
        Row(
            (
                *(site["site"], roles.get(site["role"], site["role"])),
                *(site["source"] or DASH, f"out: {site['out']}" if site["out"] else _findings(site["findings"])),
                *(str(site["n_patients"]), str(site["n_volumes"]), str(site["n_positive"])),
                *(number(site["volume_ml"], 1), " + ".join(map(str, site["fold_sizes"])) or DASH),
                str(site["n_refused"]),
            )
        )
        for site in results["sites"]
    )
    columns = (
        *("Hospital", "Role", "Source", "Findings", "Patients", "Scans", "with blood", "Blood, total (mL)"),
        *("Patients per fold", "Refused scans"),
    )
    return Table("Hospitals and their data", columns, rows, n_text=4)


def support_sentences(results: Results) -> tuple[str, ...]:
    """Folds and hospitals that rest on little, and what was done about them; none in results of before."""
    sentences = []
    for note in results.get("support", {"notes": []})["notes"]:
        place = [note["site"]] if "site" in note else []
        place += [f"fold {note['fold'] + 1}"] if "fold" in note else []
        n = f" ({count(note['n_patients'], 'patient')})" if "n_patients" in note else ""
        sentences.append(f"{', '.join(place)}{n}: {note['policy']}.")
    return tuple(sentences)


def withheld_table(results: Results) -> Table:
    """Results that hospitals kept to themselves because their groups are small; no rows in results of before."""
    rows = tuple(
        Row((*row.cells, part["site"], *(f"{part[what]} of {part['n_folds']}" for what in WITHHELD)), row.colour)
        for method, row in _named_rows(results)
        for part in method.get("withheld", [])
    )
    n = len({row.cells[1] for row in rows})
    caption = f"Suppressed at {count(n, 'site')}: folds whose groups of patients are too small to tell of"
    return Table(caption, ("Method", "Hospital", *WITHHELD.values()), rows, n_text=2)


def _findings(findings: Mapping[str, int | None]) -> str:
    return ", ".join(f"{rule}: {'few' if n is None else n}" for rule, n in findings.items()) or "none"


def failure_table(results: Results) -> Table:
    """Rounds in which a site was refused or missing, or that were not committed."""
    names = {None: "Pretraining"} | {method["id"]: method_name(method) for method in results["methods"]}
    rows = []
    for entry in results["rounds"]:
        troubles = [f"{lost['site']} refused: {lost['reason']}" for lost in entry["refused"]]
        troubles += [f"{lost['site']} missing: {lost['reason']}" for lost in entry["missing"]]
        if not troubles and entry["committed"]:
            continue
        fold = DASH if entry["fold"] is None else str(entry["fold"] + 1)
        outcome = "committed with the other sites" if entry["committed"] else "not committed, state unchanged"
        stage = names.get(entry["method"], entry["method"]) or DASH
        what = "; ".join(troubles) or "too few sites"
        rows.append(Row((stage, what, outcome, fold, str(entry["round"]), str(entry["attempt"]))))
    columns = ("Stage", "What happened", "Outcome", "Fold", "Round", "Attempt")
    return Table("Rounds with failures", columns, tuple(rows), n_text=3)


def not_evaluated_table(results: Results) -> Table:
    """Sites whose held-out patients are missing from a method's numbers."""
    rows = tuple(
        Row((*row.cells, str(lost["fold"] + 1), lost["site"], lost["reason"]), row.colour)
        for method, row in _named_rows(results)
        for lost in method["not_evaluated"]
    )
    return Table("Folds that a site did not evaluate", ("Method", "Fold", "Hospital", "Reason"), rows, n_text=4)


def settings_table(results: Results) -> Table:
    """Every setting of the study with its key path."""
    rows = tuple(Row((key, value)) for key, value in _flat(results["study"]))
    return Table("All settings, defaults included", ("Key", "Value"), rows, n_text=2)


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, part in value.items():
            yield from _flat(part, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple) and any(isinstance(part, Mapping) for part in value):
        for i, part in enumerate(value):
            yield from _flat(part, f"{path}.{i}")
    elif isinstance(value, list | tuple):
        yield path, ", ".join(map(str, value)) or DASH
    else:
        yield path, DASH if value in (None, {}) else str(value)


def version_table(results: Results) -> Table:
    """Software, times and fingerprints that a second run must match."""
    base = results["base"]
    facts = {
        "sahfl": results["sahfl"],
        **results["environment"],
        "study fingerprint": results["fingerprint"],
        "base network SHA-256": base["sha256"],
        "base network": f"{whole(base['parameters'])} parameters, {size(base['bytes'])}, {base['mode']}",
        "duration": duration(results["seconds"]),
        "interruptions": results["interruptions"],
        "unreadable journal lines": results.get("unreadable_journal_lines"),
    }
    rows = tuple(Row((key, DASH if value is None else str(value))) for key, value in facts.items())
    return Table("Versions and fingerprints", ("What", "Value"), rows, n_text=2)
