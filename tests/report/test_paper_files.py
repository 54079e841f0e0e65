"""Tables for papers: CSV that a spreadsheet reads back, LaTeX that compiles."""

import csv
import re
import shutil
import subprocess

import pytest
from harness.grid_results import grid
from test_report_sample import failed, once, sample

from sahfl.report.paper_files import escape_latex, latex_table, write_paper_files
from sahfl.report.tables import Row, Table

NAMES = ["comparisons.csv", "comparisons.tex", "findings.csv", "methods.csv", "methods.tex", "strata.csv"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    results = grid()
    for comparison in results["comparisons"]:
        if comparison["reference"] == "cp_lora-r8-pooled":
            comparison["differs"] = ["learning_rate", "alpha"]
    write_paper_files(results, folder)
    return folder


def rows(path):
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_there_are_four_csv_files_and_two_latex_files(written):
    assert sorted(path.name for path in written.iterdir()) == NAMES


def test_the_methods_hold_every_number_in_full(written):
    by_id = {row["id"]: row for row in rows(written / "methods.csv")}
    results = {method["id"]: method for method in grid()["methods"]}
    assert list(by_id) != list(results)  # family by family
    assert set(by_id) == set(results)
    row, method = by_id["cp_lora-r8"], results["cp_lora-r8"]
    assert float(row["missed_mean"]) == method["metrics"]["missed"]["overall"]["mean"]
    assert float(row["hd95_mm_median"]) == method["metrics"]["hd95_mm"]["overall"]["median"]
    assert float(row["dice_low"]) == method["metrics"]["dice"]["overall"]["low"]
    assert (row["rank"], row["aggregation"], row["repeats"], row["sd_repeats"]) == ("8", "mean", "3", "0.0104")
    assert (row["icc"], row["no_blood_false_positive"]) == ("0.791", "1")
    assert by_id["cp_lora-r8-pooled"]["trained_at"] == "pooled"
    lost = by_id["dora_c-r8"]
    assert (lost["failed"], lost["dice_mean"]) == ("fold 2, round 3: 1 of 2 sites replied, quorum is 2", "")


def test_comparisons_hold_every_metric_and_group(written):
    found = rows(written / "comparisons.csv")
    assert len(found) == len(grid()["comparisons"]) * 6 * (1 + 3 + 3)
    chosen = [row for row in found if (row["method"], row["reference"]) == ("cp_lora-r8", "cp_lora-r8-pooled")]
    (row,) = [row for row in chosen if (row["metric"], row["group"]) == ("dice", "overall")]
    assert (float(row["p_holm"]), row["verdict"]) == (0.0016, "undecided")
    assert row["differs"] == "learning_rate, alpha"
    assert {row["verdict"] for row in chosen if (row["metric"], row["group"]) != ("dice", "overall")} == {""}
    assert {row["stratum"] for row in chosen if row["group"] == "extent"} == {
        "one cistern",
        "several cisterns",
        "diffuse",
    }


def test_findings_have_a_row_for_each_of_their_comparisons(written):
    found = rows(written / "findings.csv")
    assert [row["id"] for row in found] == ["fine_tuning", "adapters", "volume", "cp_lora", "ranks", "ranks", "pooled"]
    assert [row["verdict"] for row in found[3:]] == ["worse", "better", "better", "not tested"]
    assert (found[4]["comparison"], found[4]["supported"]) == ("cp_lora-r8 against cp_lora-r1", "True")
    assert (found[-1]["paper"], found[-1]["supported"], found[-1]["difference"]) == ("", "", "")


def test_an_interval_over_patients_only_is_marked(tmp_path):
    write_paper_files(once(), tmp_path)
    assert {row["dice_trainings"] for row in rows(tmp_path / "methods.csv")} == {"1", "3"}
    assert {row["trainings"] for row in rows(tmp_path / "comparisons.csv")} == {"1"}
    assert r"0.503 (0.441 to 0.560 $\ddagger$) & 0.171 & +0.091" in (tmp_path / "methods.tex").read_text()
    assert r"+0.050 to +0.132 $\ddagger$ & -- & --" in (tmp_path / "comparisons.tex").read_text()


def test_a_withheld_group_is_marked_in_the_strata(written):
    found = rows(written / "strata.csv")
    (row,) = [
        row for row in found if (row["id"], row["metric"], row["stratum"]) == ("conv_lora-r64", "dice", "< 10 mL")
    ]
    assert (row["withheld"], row["n"], row["mean"]) == ("True", "", "")


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t=", "\r=", "\r\n=", "  =", "\0=", "\uff1d"])
def test_a_text_that_a_spreadsheet_would_run_is_quoted(tmp_path, first):
    results = sample()
    results["methods"][1]["aggregation"] = f"{first}HYPERLINK(1)"
    write_paper_files(results, tmp_path)
    (text,) = {row["aggregation"] for row in rows(tmp_path / "methods.csv")} - {""}
    assert (text[0], text[1:].strip()) == ("'", f"{first.strip()[-1]}HYPERLINK(1)")


def test_no_text_begins_a_row_of_its_own(tmp_path):
    results = sample()
    write_paper_files(results, tmp_path / "plain")
    results["methods"][1]["aggregation"] = "mean\r=1,2\n=3\x0b\x0c\x85"
    write_paper_files(results, tmp_path / "odd")
    plain, odd = (rows(tmp_path / name / "methods.csv") for name in ("plain", "odd"))
    assert len(plain) == len(odd)
    assert "mean =1,2 =3 " in {row["aggregation"] for row in odd}


HOSTILE = r"\input{/etc/passwd} $x$ & 100% #1 {a_b} ~ ^ < > “é” − ≥"


def test_nothing_in_a_text_is_a_command_of_latex():
    escaped = escape_latex(HOSTILE)
    assert "\\input" not in escaped
    assert escaped.startswith(r"\textbackslash{}input\{/etc/passwd\} \$x\$ \& 100\% \#1 \{a\_b\}")
    assert escape_latex("one\n\ntwo\0three") == "one two three"


@pytest.mark.parametrize("name", ["[2cm]", "*[2cm]", "[\\input{x}]"])
def test_no_name_is_an_option_of_the_end_of_the_row_before(name):
    text = latex_table(Table("caption", ("a", "b"), (Row(("x", "1")), Row((name, "2")))), "tab:names")
    assert not re.search(r"\\\\\s*[*\[]", text)


@pytest.mark.parametrize("name", ["methods.tex", "comparisons.tex"])
def test_every_row_of_a_latex_table_fills_its_columns(written, name):
    text = (written / name).read_text()
    (columns,) = re.findall(r"\\begin\{tabular\}\{([lr]+)\}", text)
    for rule in ("toprule", "midrule", "bottomrule"):
        assert text.count(f"\\{rule}") == 1
    body = text.split("\\toprule\n")[1].split("\\bottomrule")[0]
    for line in body.splitlines():
        if line.endswith(r"\\"):
            cells = re.split(r"(?<!\\)&", line)
            spanned = sum(int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", line))
            assert len(cells) + spanned == len(columns), line
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    assert not re.search("[−≥±†‡–]", text)


def test_the_latex_tables_hold_the_numbers_of_the_page(written):
    assert r"CP-LoRA (rank 8) & 30 & 0.505 (0.443 to 0.562) & 0.171 & +0.093" in (written / "methods.tex").read_text()
    assert r"\multicolumn{7}{l}{\textbf{Against Full fine-tuning}}" in (written / "comparisons.tex").read_text()
    assert r"$-$0.041 to +0.041" in (written / "comparisons.tex").read_text()


PDFLATEX = shutil.which("pdflatex")


@pytest.mark.skipif(PDFLATEX is None, reason="pdflatex is not installed (apt-get install texlive-latex-extra)")
def test_the_latex_tables_compile(written, tmp_path):
    hostile = latex_table(Table(HOSTILE, ("a", "b"), (Row((HOSTILE, "1")),)), "tab:hostile")
    tables = "".join((written / name).read_text() for name in ("methods.tex", "comparisons.tex")) + hostile
    head = r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs}\begin{document}"
    (tmp_path / "a.tex").write_text(f"{head}\n{tables}\n\\end{{document}}\n")
    command = [PDFLATEX, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "a.tex"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60, capture_output=True)
    assert (tmp_path / "a.pdf").stat().st_size > 1000


def test_a_failed_method_and_one_without_comparisons_have_tables_too(tmp_path):
    write_paper_files(failed() | {"comparisons": []}, tmp_path)
    assert (tmp_path / "comparisons.csv").read_text() == ""
    assert "Failed: fold 2, round 3" in (tmp_path / "methods.tex").read_text()
