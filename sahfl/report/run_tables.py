"""Tables of the run: traffic, bounds, hospitals and their gains, failures, settings, versions, findings."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from operator import add
from typing import Any

from sahfl.data.rules import BY_ID
from sahfl.report.compared import n_folds, short_verdict
from sahfl.report.names import POOLED, method_name, name_methods, names, row_of_training
from sahfl.report.tables import Row, Table, shown_difference, with_headings
from sahfl.report.text import DASH, Results, count, duration, number, p_value, percent, size, whole


def traffic_table(results: Results) -> Table:
    """Bytes of every site in every stage, over all attempts, because uncommitted attempts were sent too."""
    titles = names(results)
    rows = tuple(
        Row((_sender(site), titles.get(method, method) or "", whole(replies), size(up), size(down)))
        for (site, method), (replies, up, down) in _traffic(results).items()
    )
    columns = ("Hospital", "Stage", "Replies", "Sent", "Received")
    return Table("Bytes by hospital and stage, all rounds and folds together", columns, rows, n_text=2)


def ledger_table(results: Results) -> Table:
    """Total bytes that each site sent and received, and what it would have sent with whole networks.

    A training at one site alone sends no network, so that its replies have nothing in the place of which one would be.
    """
    full, totals = results["base"]["bytes"], defaultdict[str, list[int]](lambda: [0, 0, 0, 0])
    for (site, method), (replies, up, down) in _traffic(results).items():
        networks = 0 if _is_alone(results, method) else replies
        totals[_sender(site)] = list(map(add, totals[_sender(site)], (replies, up, down, networks * full)))
    whole_run = [sum(column) for column in zip(*totals.values(), strict=True)] or [0, 0, 0, 0]
    rows = tuple(
        Row((name, whole(replies), size(up), size(down), size(instead), percent(up, instead)))
        for name, (replies, up, down, instead) in (*totals.items(), ("All", whole_run))
    )
    columns = ("Hospital", "Replies", "Sent", "Received", "Whole networks instead", "Sent of that")
    return Table("Bytes ledger of training", columns, rows)


def _is_alone(results: Results, training: str | None) -> bool:
    """Whether one site trains it by itself, so that no network leaves this site."""
    method = None if training is None else row_of_training(results, training)
    return method is not None and method["trained_at"] in {site["site"] for site in results["sites"]}


def _traffic(results: Results) -> dict[tuple[str, str | None], list[int]]:
    """Site and stage -> replies, bytes sent, bytes received."""
    totals: dict[tuple[str, str | None], list[int]] = defaultdict(lambda: [0, 0, 0])
    for entry in results["rounds"]:
        for used in entry["used"]:
            place = used["site"], entry["method"]
            totals[place] = list(map(add, totals[place], (1, used["bytes_up"], used["bytes_down"])))
    return totals


def _sender(site: str) -> str:
    return "pooled (no hospital)" if site == POOLED else site


def aggregation_table(results: Results) -> Table:
    """Per training: sites whose updates the bounds changed, and the error of averaging factors; empty without data."""
    titles = names(results)
    rounds: dict[str | None, list[Mapping[str, Any]]] = defaultdict(list)
    for entry in results["rounds"]:
        if entry["committed"] and all(isinstance(entry.get(bound), dict) for bound in ("shortened", "lightened")):
            rounds[entry["method"]].append(entry)
    rows = []
    for method, entries in rounds.items():
        errors = sorted(e["aggregation_error"] for e in entries if isinstance(e.get("aggregation_error"), float))
        error = f"{percent(errors[len(errors) // 2], 1)}, {percent(errors[-1], 1)}" if errors else DASH
        seen = [entry for entry in entries if not entry.get("masked")]
        bounded = [
            _named_counts(entry[bound] for entry in seen) if seen else "masked" for bound in ("shortened", "lightened")
        ]
        rows.append(Row((titles.get(method, method) or DASH, *bounded, str(len(entries)), error)))
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
                *(site["site"], roles.get(site["role"], site["role"]), site["source"] or DASH),
                f"out: {site['out']}" if site["out"] else _findings(site["findings"]),
                *(str(site[key]) for key in ("n_patients", "n_volumes", "n_positive")),
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


def cells_sentence(results: Results) -> str:
    """Number of cells taken from an earlier run; empty if the run has no reusable cells."""
    if (cells := results.get("cells")) is None:
        return ""
    reused = cells["reused"] or "none"
    were = "was" if reused == 1 else "were"
    taken = f"{reused} {were} taken from an earlier run with the same content"
    return f"Cells of the grid (a method in a fold): {cells['total']}, of which {taken}."


def run_sentence(results: Results) -> str:
    """Patients, sites, folds, rounds and duration of a run, in one line."""
    tuned = [site for site in results["sites"] if site["role"] == "finetune"]
    rounds, folds, patients = results["rounds"], n_folds(results), sum(site["n_patients"] for site in tuned)
    asked = {(r["stage"], r["method"], r["fold"], r["round"]) for r in rounds}
    parts = [f"{count(patients, 'patient')} for fine-tuning at {count(len(tuned), 'site')}"]
    refused = sum(site["n_refused"] for site in results["sites"])
    parts += [f"{count(refused, 'scan')} refused by the data check"] if refused else []
    parts += [count(folds, "fold")] if folds else []
    done = sum(entry["committed"] for entry in rounds)
    cells = results.get("cells")
    saved = f", {cells['reused']} of {cells['total']} cells reused" if cells and cells["reused"] else ""
    committed = f"{done} of {count(len(asked), 'round')} committed in {duration(results['seconds'])}"
    return f"{', '.join(parts)}; {committed}{saved}."


def support_sentences(results: Results) -> tuple[str, ...]:
    """Folds and hospitals with few patients, and the rule that applies to them; none in older results."""
    sentences = []
    for note in results.get("support", {"notes": []})["notes"]:
        place = [note["site"]] if "site" in note else []
        place += [f"fold {note['fold']}"] if "fold" in note else []
        n = f" ({count(note['n_patients'], 'patient')})" if "n_patients" in note else ""
        n = f" ({note['n'] or 'few'} scans)" if "n" in note else n
        sentences.append(f"{', '.join(place)}{n}: {note['policy']}.")
    return tuple(sentences)


def _findings(findings: Mapping[str, int | None]) -> str:
    return ", ".join(f"{rule}: {'few' if n is None else n}" for rule, n in findings.items()) or "none"


def _errors(findings: Mapping[str, int | None]) -> dict[str, int | None]:
    return {rule: n for rule, n in findings.items() if rule in BY_ID and BY_ID[rule].severity == "error"}


def refused_table(results: Results) -> Table:
    """Hospitals whose data check refused scans, with the rules that did."""
    rows = tuple(
        Row((site["site"], _findings(_errors(site["findings"])), str(site["n_refused"])))
        for site in results["sites"]
        if site["n_refused"]
    )
    return Table("Scans that the data check refused", ("Hospital", "Rules", "Refused scans"), rows, n_text=2)


def failure_table(results: Results) -> Table:
    """Rounds in which a site was refused or missing, or that were not committed."""
    titles = names(results)
    rows = []
    for entry in results["rounds"]:
        troubles = [f"{lost['site']} refused: {lost['reason']}" for lost in entry["refused"]]
        troubles += [f"{lost['site']} missing: {lost['reason']}" for lost in entry["missing"]]
        if not troubles and entry["committed"]:
            continue
        fold = DASH if entry["fold"] is None else str(entry["fold"] + 1)
        outcome = "committed with the other sites" if entry["committed"] else "not committed, state unchanged"
        stage = titles.get(entry["method"], entry["method"]) or DASH
        what = "; ".join(troubles) or "too few sites"
        rows.append(Row((stage, what, outcome, fold, str(entry["round"]), str(entry["attempt"]))))
    columns = ("Stage", "What happened", "Outcome", "Fold", "Round", "Attempt")
    return Table("Rounds with failures", columns, tuple(rows), n_text=3)


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
    """Software, times and fingerprints; a second run must have the same software and fingerprints."""
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


def gain_table(results: Results) -> Table:
    """What each hospital gains by taking part, against training alone, on its own patients."""
    titles = {method["id"]: method_name(method) for method in results["methods"]}
    rows = [
        Row(
            (
                *(gain["site"], titles.get(gain["method"], gain["method"]), number(gain["dice"])),
                *(number(gain["dice_alone"]), *shown_difference(gain), short_verdict(gain["verdict"])),
            )
        )
        for gain in sorted(results["gains"], key=lambda gain: str(gain["site"]))
    ]
    columns = ("Hospital", "Method", "Dice together", "Dice alone", "n", "Gain", "95 % interval", "Verdict")
    caption = "Gain of each hospital by taking part, on its own patients"
    return Table(caption, columns, with_headings(rows, [row.cells[0] for row in rows]), n_text=2)


def finding_table(finding: Results, results: Results) -> Table:
    """All comparisons that test a claim."""
    rows = [
        Row(
            (
                name_methods(pair["name"], results),
                *shown_difference(pair),
                p_value(pair["p_holm"]),
                short_verdict(pair["verdict"]),
            )
        )
        for pair in finding["pairs"]
    ]
    columns = ("Comparison", "n", "Difference in Dice", "95 % interval", "p (Holm)", "Verdict")
    return Table(f"Comparisons: {finding['claim']}", columns, tuple(rows))
