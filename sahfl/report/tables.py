"""Tables as text, which the template only lays out; the tables here have a row for each method."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from sahfl.report.compared import short_verdict
from sahfl.report.names import ZERO_SHOT, by_family, families, family_of, method_name
from sahfl.report.text import (
    DASH,
    Results,
    count,
    estimate,
    interval,
    marked_interval,
    number,
    p_value,
    signed,
    stratum_name,
)

METRICS = {
    "dice": ("Dice", 3),
    "surface_dice": ("Surface Dice", 3),
    "hd95_mm": ("HD95 (mm)", 1),
    "missed": ("Miss rate", 3),
    "volume_error_ml": ("Volume error (mL)", 1),
    "lesion_f1": ("Lesion F1", 3),
}
"""Name and decimals of each metric."""
KINDS = {"by_volume": "annotated volume", "by_extent": "extent of the hemorrhage"}
WITHHELD = {
    "strata": "Split by volume",
    "blood": "All with blood",
    "no_blood": "Counts without blood",
    "replicates": "Intervals",
    "misses": "Misses and HD95",
}
"""Results of a fold that a site may withhold."""
LONG = 12
"""Number of methods from which a table has a heading for each family."""


@dataclass(frozen=True)
class Row:
    """One row; its first cell names it."""

    cells: tuple[str, ...]
    family: str | None = None
    """Family of the method, for its colour."""
    span: str | None = None
    """Text in place of all further cells."""
    heading: bool = False
    """Whether this row is a heading of those below."""


@dataclass(frozen=True)
class Table:
    """A caption, column headings and rows; the first ``n_text`` columns contain words, the others numbers."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    n_text: int = 1

    def has(self, mark: str) -> bool:
        """Whether a cell has a mark, which a footnote then explains."""
        return any(mark in cell for row in self.rows for cell in row.cells)


def with_headings(rows: Sequence[Row], headings: Iterable[str]) -> tuple[Row, ...]:
    """Rows with a heading wherever the heading changes, if there are many rows."""
    found: list[Row] = []
    last = None
    for row, heading in zip(rows, headings, strict=True):
        if heading != last and len(rows) >= LONG:
            found.append(Row((heading,), heading=True))
        found.append(row)
        last = heading
    return tuple(found)


def group_by_family(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Rows with a heading for each family, if there are many rows."""
    names = {family.key: family.name for family in families()}
    return with_headings(rows, [names[row.family or ""] for row in rows])


def named_rows(results: Results) -> Iterator[tuple[Results, Row]]:
    """Each method, sorted by family, with the start of its row; for a failed one, with the reason."""
    for method in by_family(results["methods"]):
        reason = None if method["failed"] is None else f"Failed: {method['failed']}"
        yield method, Row((method_name(method),), family_of(method).key, reason)


def _measured_rows(results: Results) -> list[tuple[Results, Row]]:
    return [(method, row) for method, row in named_rows(results) if row.span is None]


def magnitude_sentences(results: Results) -> tuple[str, ...]:
    """In how many layers the magnitudes of DoRA forms train, where a norm cancels the others."""
    groups: dict[tuple[int, int], list[str]] = {}
    for method in by_family(results["methods"]):
        found = method["magnitudes"]
        if found is not None and found["trained"] < found["layers"]:
            groups.setdefault((found["trained"], found["layers"]), []).append(method_name(method))
    return tuple(
        f"{', '.join(names)}: magnitudes train in {trained} of {layers} layers; elsewhere a norm cancels them, so "
        f"{'this row hardly tests' if len(names) == 1 else 'these rows hardly test'} DoRA."
        for (trained, layers), names in groups.items()
    )


def rate_sentences(results: Results) -> tuple[str, ...]:
    """Which learning rates were chosen, for each method that had several."""
    found = []
    for method in by_family(results["methods"]):
        taken = [f"{one['rate']:g} ({one['n']})" for one in method["learning_rates"]]
        found += [f"{method_name(method)}: {' or '.join(taken)}."] if taken else []
    return tuple(found)


def cases(of: Results) -> str:
    """Number of cases of an estimate."""
    return DASH if of["n"] is None else str(of["n"])


def shown_estimate(part: Results, digits: int = 3) -> str:
    """Format the mean with its interval, or "withheld"; a dagger marks a mean that lacks the sites that withheld."""
    if part["withheld"] and part["mean"] is None:
        return "withheld"
    return estimate(part["mean"], part, digits) + (" †" if part["withheld"] else "")


def metric_table(results: Results) -> Table:
    """Table of all metrics of every method, over all cases with blood."""
    rows = []
    for method, row in _measured_rows(results):
        of = (shown_estimate(method["metrics"][key]["overall"], digits) for key, (_, digits) in METRICS.items())
        rows.append(Row((*row.cells, *of), row.family))
    columns = ("Method", *(f"{name}, mean (95 % interval)" for name, _ in METRICS.values()))
    return Table("All metrics over all cases with blood", columns, group_by_family(rows))


def stratum_table(results: Results, kind: str) -> Table:
    """Dice of every method in every stratum of volume or extent."""
    working = _measured_rows(results)
    labels = [stratum_name(s["stratum"]) for s in working[0][0]["metrics"]["dice"][kind]] if working else []
    rows = [
        Row((*row.cells, *(f"{shown_estimate(s)}, n = {cases(s)}" for s in m["metrics"]["dice"][kind])), row.family)
        for m, row in working
    ]
    title = f"Mean Dice (95 % interval) by {KINDS[kind]}"
    return Table(title, ("Method", *labels), group_by_family(rows) if labels else ())


def site_dice_table(results: Results) -> Table:
    """Dice of every method at every site that evaluated."""
    working = _measured_rows(results)
    sites = sorted({part["site"] for m, _ in working for part in m["by_site"]})
    rows = []
    for method, row in working:
        at = {part["site"]: f"{number(part['dice'])}, n = {part['n']}" for part in method["by_site"]}
        rows.append(Row((*row.cells, *(at.get(site, DASH) for site in sites)), row.family))
    return Table("Mean Dice by hospital", ("Method", *sites), group_by_family(rows))


def volume_table(results: Results) -> Table:
    """Predicted against annotated volume, and the scans without blood."""
    columns = (
        *("Method", "n", "Pearson r", "ICC", "Bias (mL)", "95 % limits of agreement (mL)"),
        *("Scans without blood", "of those, false positive"),
    )
    rows = []
    for method, row in named_rows(results):
        if row.span is None:
            volume, empty = method["volume"], method["no_blood"]
            limits = {"low": volume["loa_low_ml"], "high": volume["loa_high_ml"]}
            agreement = number(volume["pearson_r"], 2), number(volume["icc"], 2), signed(volume["bias_ml"], 1)
            counts = interval(limits, 1, plus=True), cases(empty), _count_of(empty["n_false_positive"])
            row = Row((*row.cells, cases(volume), *agreement, *counts), row.family)
        rows.append(row)
    return Table("Volume: predicted minus annotated", columns, group_by_family(rows))


def _count_of(value: float | None) -> str:
    """A count; with repeats, a mean of counts."""
    return DASH if value is None else f"{value:.3g}"


def comparison_table(results: Results, *, with_zero_shot: bool) -> Table:
    """Paired differences in Dice with intervals and p values, by reference."""
    titles = {method["id"]: method_name(method) for method in results["methods"]}
    shown = [c for c in results["comparisons"] if (c["reference"] == ZERO_SHOT) == with_zero_shot]
    references = list(dict.fromkeys(c["reference"] for c in shown))
    shown.sort(key=lambda c: references.index(c["reference"]))
    rows = [
        Row(
            (
                f"{titles.get(c['method'], c['method'])} against {titles.get(c['reference'], c['reference'])}{_too(c)}",
                *_gap(c),
            )
        )
        for c in shown
    ]
    headings = [f"Against {titles.get(c['reference'], c['reference'])}" for c in shown]
    columns = ("Pair", "n", "Difference in Dice", "95 % interval", "p", "p (Holm)", "Verdict")
    title = "Each method against zero-shot" if with_zero_shot else "Methods against each other"
    return Table(f"{title}, paired by patient", columns, with_headings(rows, headings))


def _too(comparison: Results) -> str:
    """Settings in which the two methods of a comparison differ besides what is compared."""
    differing = ", ".join(name.replace("_", " ") for name in comparison["differs"])
    return f" (differ in {differing} too)" if differing else ""


def _gap(comparison: Results) -> tuple[str, ...]:
    gap = comparison["metrics"]["dice"]["overall"]
    return (*shown_difference(gap), p_value(gap["p"]), p_value(gap["p_holm"]), short_verdict(comparison["verdict"]))


def shown_difference(gap: Results) -> tuple[str, ...]:
    """Number of cases, difference and interval."""
    return cases(gap), signed(gap["difference"]), marked_interval(gap, plus=True)


def withheld_table(results: Results) -> Table:
    """Results that hospitals withheld because their groups are small."""
    rows = tuple(
        Row((*row.cells, part["site"], *(f"{part[what]} of {part['n_folds']}" for what in WITHHELD)), row.family)
        for method, row in named_rows(results)
        for part in method["withheld"]
    )
    n = len({row.cells[1] for row in rows})
    caption = f"Suppressed at {count(n, 'site')}: folds with groups of patients too small to report"
    return Table(caption, ("Method", "Hospital", *WITHHELD.values()), rows, n_text=2)


def _fold_of(lost: Results) -> str:
    repeat = lost.get("repeat", 1)
    return f"{lost['fold']}" + (f", repeat {repeat}" if repeat > 1 else "")


def not_evaluated_table(results: Results) -> Table:
    """Table of folds that a site did not evaluate; their patients are missing from the method's numbers."""
    rows = tuple(
        Row((*row.cells, _fold_of(lost), lost["site"], lost["reason"]), row.family)
        for method, row in named_rows(results)
        for lost in method["not_evaluated"]
    )
    return Table("Folds that a site did not evaluate", ("Method", "Fold", "Hospital", "Reason"), rows, n_text=4)
