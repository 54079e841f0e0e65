"""Tables for papers: CSV with all digits, and LaTeX (booktabs) with rounded numbers."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sahfl.atomic import write_atomic
from sahfl.report import tables
from sahfl.report.names import ZERO_SHOT, by_family, family_of, method_name
from sahfl.report.outcome_tables import paper_method_table
from sahfl.report.tables import METRICS, Table
from sahfl.report.text import DASH, Results

ESTIMATE = ("n", "mean", "sd", "median", "low", "high", "trainings")
GAP = ("n", "difference", "low", "high", "p", "p_holm", "trainings")
LATEX = {
    **{"\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_"},
    **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}"},
    **{DASH: "--", "−": "$-$", "≥": r"$\geq$", "±": r"$\pm$", "†": r"$\dagger$", "‡": r"$\ddagger$"},
    **{'"': r"\textquotedbl{}", "[": "{[}", "]": "{]}", "*": "{*}"},
}
"""Characters with a meaning in LaTeX, or missing in some fonts; after the end of a row also [ and *."""
FORMULA = frozenset("=+-@\uff1d\uff0b\uff0d\uff20")
"""First characters of a text that a spreadsheet reads as a formula; the last four are wide ones."""
PREAMBLE = "% Needs \\usepackage{booktabs} and \\usepackage[T1]{fontenc}. Written by sahfl from results.json."


def write_paper_files(results: Results, folder: Path) -> None:
    """Write four CSV files (methods, comparisons, strata, findings), ``methods.tex`` and ``comparisons.tex``.

    Guarantees: an unknown number is an empty cell in CSV and a dash in LaTeX; a text that a spreadsheet would read as a
    formula starts with an apostrophe.
    """
    for name, rows in (
        ("methods", method_rows(results)),
        ("comparisons", comparison_rows(results)),
        ("strata", _stratum_rows(results)),
        ("findings", _finding_rows(results)),
    ):
        write_atomic(folder / f"{name}.csv", _csv(rows))
    write_atomic(folder / "methods.tex", latex_table(paper_method_table(results), "tab:methods"))
    gaps = [tables.comparison_table(results, with_zero_shot=known) for known in (True, False)]
    whole = Table("Paired differences in Dice", gaps[0].columns, (*gaps[0].rows, *gaps[1].rows))
    write_atomic(folder / "comparisons.tex", latex_table(whole, "tab:comparisons"))


def _identity(method: Results) -> dict[str, Any]:
    keys = ("id", "method", "rank", "aggregation", "trained_at")
    return {key: method[key] for key in keys} | {"name": method_name(method), "family": family_of(method).name}


def method_rows(results: Results) -> Iterator[dict[str, Any]]:
    """The rows of ``methods.csv``; the columns ``against_zero_shot`` and ``verdict`` are about mean Dice."""
    judged = {pair["method"]: pair for pair in results["comparisons"] if pair["reference"] == ZERO_SHOT}
    for method in by_family(results["methods"]):
        row = _identity(method) | {key: method[key] for key in ("trainable", "bytes_up_per_round", "failed")}
        row |= {"repeats": len(method["repeats"]), "sd_repeats": method["sd_repeats"]}
        failed = method["failed"] is not None
        for metric in METRICS:
            of = {} if failed else method["metrics"][metric]["overall"]
            row |= {f"{metric}_{key}": of.get(key) for key in ESTIMATE}
            row |= {f"{metric}_interval": _interval_over(of)}
        volume = {} if failed else method["volume"]
        row |= {key: volume.get(key) for key in ("pearson_r", "icc", "bias_ml", "loa_low_ml", "loa_high_ml")}
        empty = {} if failed else method["no_blood"]
        row |= {"no_blood_n": empty.get("n"), "no_blood_false_positive": empty.get("n_false_positive")}
        pair = judged.get(method["id"])
        row |= {"against_zero_shot": pair and pair["metrics"]["dice"]["overall"]["difference"]}
        yield row | {"verdict": pair and pair["verdict"]}


def _interval_over(of: Results) -> str | None:
    """The randomness that an interval contains; None without an interval."""
    if of.get("low") is None:
        return None
    return "patients and trainings" if of["trainings"] > 1 else "patients"


def comparison_rows(results: Results) -> Iterator[dict[str, Any]]:
    """The rows of ``comparisons.csv``: one for each pair of methods, metric and group of patients."""
    for comparison in results["comparisons"]:
        differs = ", ".join(comparison["differs"])
        for metric, part in comparison["metrics"].items():
            for kind, gap in _groups(part):
                pair = {"method": comparison["method"], "reference": comparison["reference"], "metric": metric}
                row = pair | {"group": kind, "stratum": gap["stratum"]} | {key: gap[key] for key in GAP}
                judged = (metric, kind) == ("dice", "overall")
                yield row | {"verdict": comparison["verdict"] if judged else None, "differs": differs}


def _finding_rows(results: Results) -> Iterator[dict[str, Any]]:
    for finding in results["findings"]:
        claim = {key: finding[key] for key in ("id", "claim", "wanted", "paper", "supported")}
        for pair in finding["pairs"] or ({"verdict": finding["verdict"]},):
            keys = ("name", "verdict", "n", "difference", "low", "high", "p_holm", "trainings")
            yield claim | {{"name": "comparison"}.get(key, key): pair.get(key) for key in keys}


def _stratum_rows(results: Results) -> Iterator[dict[str, Any]]:
    for method in by_family(results["methods"]):
        for metric, part in (method["metrics"] or {}).items() if method["failed"] is None else ():
            for kind, of in _groups(part):
                row = _identity(method) | {"metric": metric, "group": kind, "stratum": of["stratum"]}
                yield row | {key: of[key] for key in (*ESTIMATE, "withheld")}


def _groups(part: Results) -> Iterator[tuple[str, Results]]:
    yield "overall", part["overall"]
    for kind in ("by_volume", "by_extent"):
        for of in part[kind]:
            yield kind.removeprefix("by_"), of


def _csv(rows: Iterable[dict[str, Any]]) -> str:
    rows, stream = list(rows), io.StringIO()
    if rows:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows([{key: _cell(value) for key, value in row.items()} for row in rows])
    return stream.getvalue()


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return "" if value is None else value
    text = _in_one_line(value)
    return f"'{text}" if text.lstrip()[:1] in FORMULA else text


def _in_one_line(text: str) -> str:
    """The text without control characters; a carriage return alone would begin a new row of a CSV file."""
    return re.sub(r"[\s\x00-\x1f\x7f]+", " ", text)


def latex_table(table: Table, label: str) -> str:
    """A table in LaTeX; family headings span its columns."""
    n = len(table.columns)
    lines = [PREAMBLE, r"\begin{table}", r"\centering", rf"\caption{{{escape_latex(table.caption)}}}"]
    columns = "l" * table.n_text + "r" * (n - table.n_text)
    lines += [rf"\label{{{label}}}", r"\scriptsize", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    lines += [_latex_row(table.columns), r"\midrule"]
    for row in table.rows:
        if row.heading:
            lines.append(rf"\multicolumn{{{n}}}{{l}}{{\textbf{{{escape_latex(row.cells[0])}}}}} \\")
        elif row.span is not None:
            cell = rf"\multicolumn{{{n - len(row.cells)}}}{{l}}{{{escape_latex(row.span)}}}"
            lines.append(f"{' & '.join([*map(escape_latex, row.cells), cell])} \\\\")
        else:
            lines.append(_latex_row(row.cells))
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    return "\n".join(lines)


def _latex_row(cells: Sequence[str]) -> str:
    return f"{' & '.join(map(escape_latex, cells))} \\\\"


def escape_latex(text: str) -> str:
    """Escape a text for LaTeX: no command, no mathematics, no option of the row before, one line."""
    return "".join(LATEX.get(sign, sign) for sign in _in_one_line(text))
