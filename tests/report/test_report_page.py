"""The page says what the results say, in words that follow the intervals, and can be opened anywhere."""

import copy
import json
import math
import re
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
from harness.grid_results import grid
from matplotlib.image import imread
from test_report_sample import DIED, VARIANTS, failed, gain, refusals, unclear
from test_report_sample import method as one_method

from sahfl.errors import DataError
from sahfl.report.claim import claim_table
from sahfl.report.form import form_problems
from sahfl.report.page import draw_figures, render_page, write_report
from sahfl.report.summary import conclude


class Page(HTMLParser):
    """Text, attributes and table rows of a page."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.text, self.attributes, self.rows, self._tag, self.tags = "", [], [], "", set()
        self._in_cell = False
        self.feed(self.source)
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._tag = tag
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag):
        self._tag = "" if tag == "style" else self._tag
        if tag in ("th", "td"):
            self.rows[-1][-1] = " ".join(self.rows[-1][-1].split())
            self._in_cell = False

    def handle_data(self, data):
        if self._tag == "style":
            return
        self.text += data + " "
        if self._in_cell:
            self.rows[-1][-1] += data


def without_figures(results, folder):
    """The page as it is written, which takes a tenth of the time where no figure is drawn."""
    folder.mkdir(exist_ok=True)
    (folder / "report.html").write_text(render_page(results, (), folder))
    return Page(folder / "report.html")


@pytest.fixture(scope="module", params=VARIANTS, ids=str)
def written(request, tmp_path_factory):
    results = VARIANTS[request.param]()
    folder = tmp_path_factory.mktemp(request.param)
    return results, folder, Page(write_report(results, folder))


def test_every_name_is_on_every_page(written):
    results, _, page = written
    tuned = {"cp_lora-r8": "CP-LoRA (rank 8)", "full": "Full fine-tuning", "zero_shot": "Zero-shot"}
    names = [tuned[m["id"]] for m in results["methods"]] + [s["site"] for s in results["sites"]]
    assert [name for name in [*names, results["name"], results["fingerprint"]] if name not in page.text] == []
    conclusion = conclude(results)
    texts = [*conclusion.notices, conclusion.use, *(point.text for point in conclusion.points)]
    assert [text for text in texts if text not in page.text] == []


def test_nothing_unknown_is_written_as_none_or_nan(written):
    _, _, page = written
    alternatives = " ".join(value for _, name, value in page.attributes if name in ("alt", "aria-label"))
    assert not re.search(
        r"\b(None(?!: every)|nan|NaN|inf|null)\b", (page.text + alternatives).replace("NaN or inf", "")
    )


def test_the_page_loads_nothing_and_runs_nothing(written):
    _, _, page = written
    links = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "action", "data")]
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)
    assert not re.search(r"https?://|@import|url\(|//cdn", page.source)
    assert not page.tags & {"script", "link", "iframe", "object", "form"}


def test_figures_are_png_files_that_are_not_blank_and_have_words(written):
    _, folder, page = written
    files = sorted((folder / "figures").iterdir())
    alternatives = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert {f.suffix for f in files} == {".png"}
    assert len(files) == len(alternatives) >= 5
    for file in files:
        assert np.ptp(imread(file)[..., :3]) > 0.5
    assert all(re.search(r"\d\.\d", text) for text in alternatives)


def test_every_table_has_a_caption_and_every_row_fits_it(written):
    _, _, page = written
    assert page.source.count("<table>") == page.source.count("<caption>")
    for table in re.findall(r"<table>.+?</table>", page.source, re.DOTALL):
        width = table.split("</thead>")[0].count("<th ")
        for row in re.findall(r"<tr>.+?</tr>", table.split("</thead>")[1], re.DOTALL):
            cells = re.findall(r"<t[hd][^>]*>", row)
            spans = [int(found) for cell in cells for found in re.findall(r'colspan="(\d+)"', cell)]
            assert len(cells) - len(spans) + sum(spans) == width


def row_of(page, first, length):
    return next(row for row in page.rows if row[0] == first and len(row) == length)


def test_numbers_in_the_method_table_are_those_of_the_results(written):
    results, _, page = written
    if results["methods"][0]["metrics"]["dice"]["overall"]["low"] is None:
        assert row_of(page, "Zero-shot", 9)[1:5] == ["4", "0.412", "0.171", "0.424"]
        return
    zero_shot = ["Zero-shot", "30", "0.412 (0.350 to 0.469)", "0.171", "0.424", "1", "–", "–", "–"]
    assert row_of(page, "Zero-shot", 9) == zero_shot
    if len(results["methods"]) > 1:
        once = results["comparisons"][-1]["metrics"]["dice"]["overall"]["trainings"] == 1
        mark, p, verdict = (" ‡", "–", "one training") if once else ("", "0.002", None)
        full = ["Full fine-tuning", "30", f"0.527 (0.465 to 0.584{mark})", "0.171", "0.539", "1"]
        found = row_of(page, "Full fine-tuning", 9)
        assert found[:8] == [*full, f"+0.115 (+0.074 to +0.156{mark})", p]
        assert verdict in (None, found[8])
        price = ["812,345", "100 %", "3.25 MB", "100 %", "9.9 s"]
        cost = [row for row in page.rows if row[0] == "Full fine-tuning" and row[2:] == price]
        assert [row[1] for row in cost] == ["0.527"]


def test_a_footnote_stands_on_the_page_exactly_if_its_mark_does(written):
    _, _, page = written
    for mark, footnote in (("‡", "‡ over patients only"), ("†", "† without the patients of hospitals")):
        marked = any(mark in cell for row in page.rows for cell in row)
        assert (footnote in page.text) == marked, mark


def test_other_tables_hold_the_numbers_of_the_results(tmp_path):
    page = without_figures(unclear(), tmp_path)
    assert row_of(page, "CP-LoRA (rank 8)", 8) == [
        *("CP-LoRA (rank 8)", "30", "0.81", "0.79", "−3.1", "−20.2 to +13.9", "4", "1"),
    ]
    assert [
        *("CP-LoRA (rank 8)", "0.431 (0.369 to 0.488)", "0.474 (0.406 to 0.537)", "22.8 (20.3 to 25.0)"),
        *("0.171 (0.109 to 0.228)", "8.5 (7.6 to 9.4)", "0.388 (0.326 to 0.445)"),
    ] in page.rows
    assert row_of(page, "sah_a", 10)[3:] == ["thick slices: 2", "15", "15", "15", "315.8", "5 + 5 + 5", "0"]
    assert row_of(page, "sah_a", 5) == ["sah_a", "CP-LoRA (rank 8)", "15", "6.08 MB", "6.08 MB"]
    assert row_of(page, "sah_a", 6) == ["sah_a", "30", "54.8 MB", "54.8 MB", "97.5 MB", "56 %"]
    pair = row_of(page, "CP-LoRA (rank 8) against Full fine-tuning", 7)
    assert pair[1:] == ["30", "−0.102", "−0.143 to −0.061", "< 0.001", "0.002", "worse"]
    assert row_of(page, "finetune.methods.1.rank", 2)[1] == "8"
    assert row_of(page, "CP-LoRA (rank 8)", 4)[1] == "0.261 (0.199 to 0.318), n = 7"


def test_a_failed_method_is_shown_with_its_reason(tmp_path):
    page = without_figures(failed(), tmp_path)
    reason = "Failed: fold 2, round 3: 1 of 2 sites replied, quorum is 2"
    assert [row for row in page.rows if row == ["CP-LoRA (rank 8)", reason]]


def test_the_page_states_where_magnitudes_do_not_train_and_how_to_place_them(tmp_path):
    results = grid()
    dora = [row for row in results["methods"] if row["magnitudes"]]
    page = without_figures(results, tmp_path)
    names = "DoRA-C (rank 8), convDoRA (rank 8), CP-DoRA (rank 8)"
    rest = "magnitudes train in 5 of 23 layers; elsewhere a norm cancels them, so these rows hardly test DoRA."
    assert f"{names}: {rest} A study with layers: [unnormed] adapts only" in page.text
    for row in dora[1:]:
        row["magnitudes"]["trained"] = 23
    page = without_figures(results, tmp_path)
    assert (
        "DoRA-C (rank 8): magnitudes train in 5 of 23 layers; elsewhere a norm cancels them, so this row" in page.text
    )
    dora[0]["magnitudes"] = None
    assert "magnitudes train in" not in without_figures(results, tmp_path).text


def test_the_page_names_the_learning_rates_that_were_chosen(tmp_path):
    results = grid()
    assert "Learning rates that were chosen" not in without_figures(results, tmp_path).text
    by_id = {row["id"]: row for row in results["methods"]}
    by_id["full"]["learning_rates"] = [{"rate": 0.0005, "n": 0}, {"rate": 0.002, "n": 15}]
    by_id["cp_lora-r8"]["learning_rates"] = [{"rate": 0.005, "n": 9}, {"rate": 0.01, "n": 6}]
    text = without_figures(results, tmp_path).text
    taken = "how often each was: Full fine-tuning: 0.0005 (0) or 0.002 (15). CP-LoRA (rank 8): 0.005 (9) or 0.01 (6)."
    assert f"whom the fold does not test, and {taken}" in " ".join(text.split())


def test_failures_of_rounds_are_listed_or_none(tmp_path):
    page = without_figures(refusals(), tmp_path / "a")
    first = ["CP-LoRA (rank 8)", "sah_b refused: contains NaN or inf", "committed with the other sites", "1", "1", "1"]
    died = f"sah_a missing: {DIED}; sah_b missing: {DIED}"
    second = ["CP-LoRA (rank 8)", died, "not committed, state unchanged", "1", "2", "1"]
    assert [row for row in page.rows if len(row) == 6][-2:] == [first, second]
    assert "Interruptions of the run: 2" in page.text
    assert "1 scan refused by the data check" in page.text
    assert "Nothing was trained or tested on these scans." in page.text
    clean = without_figures(gain(), tmp_path / "b")
    assert "None: every site's reply was used in every round." in clean.text.replace("&#39;", "'")
    assert "no scan was refused, and no group was suppressed" in clean.text


def test_bounds_and_aggregation_error_are_shown_where_the_rounds_say_them(tmp_path):
    assert "Bounds and aggregation error" not in without_figures(gain(), tmp_path / "a").text
    results = gain()
    tuned = [entry for entry in results["rounds"] if entry["method"] == "cp_lora-r8" and entry["committed"]]
    for n, entry in enumerate(tuned):
        shortened = {"sah_b": 0.4} if n < 2 else {}
        entry |= {"shortened": shortened, "lightened": {}, "aggregation_error": 0.01 if n else 0.2}
    page = without_figures(results, tmp_path / "b")
    row = ["CP-LoRA (rank 8)", "sah_b: 2", "none", str(len(tuned)), "1 %, 20 %"]
    assert row in page.rows


def test_simulated_is_above_the_conclusion_and_only_where_it_is_so(tmp_path):
    real = gain()
    for each in real["sites"]:
        each["source"] = "datalist"
    text = without_figures(gain(), tmp_path).text
    assert 0 < text.index("SIMULATED. All scans are made by a program.") < text.index(conclude(gain()).use)
    assert "made by a program" not in without_figures(real, tmp_path).text


def test_the_run_s_own_accuracy_and_each_hospital_s_gain_come_before_findings_and_the_paper(tmp_path):
    page = without_figures(grid(), tmp_path)
    places = [value for tag, name, value in page.attributes if (tag, name) == ("h2", "id")]
    assert places[:3] == ["accuracy", "gain", "findings"]
    assert places.index("paper") > places.index("hospitals")
    assert "Not measured: no hospital trained alone in this study" in without_figures(gain(), tmp_path).text


def test_every_picture_can_be_enlarged_without_a_script(tmp_path):
    page = Page(write_report(gain(), tmp_path))
    boxes = [value for tag, name, value in page.attributes if (tag, name) == ("input", "aria-label")]
    images = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert len(boxes) == len(images) == len({*boxes}) >= 5
    assert all(box.startswith("Enlarge: ") for box in boxes)


def test_hostile_names_are_escaped(tmp_path):
    hostile = "<script>alert(1)</script>\"'$\\frac$"
    results = json.loads(json.dumps(refusals()).replace("sah_a", "HOSTILE").replace("tbi_a", "HOSTILE"))
    text = json.dumps(results).replace("HOSTILE", json.dumps(hostile)[1:-1])
    results = json.loads(text) | {"name": hostile}
    results["methods"][1] |= {"failed": hostile}
    page = Page(write_report(results, tmp_path))
    assert "<script" not in page.source
    assert hostile in page.text
    assert "script" not in page.tags


def test_a_method_that_this_version_does_not_have_is_refused_before_anything_is_written(tmp_path):
    results = gain()
    results["methods"][1]["method"] = "toy_box"
    with pytest.raises(DataError, match=r"methods\.1\.method: got 'toy_box', expected a method of this version"):
        write_report(results, tmp_path)
    assert not list(tmp_path.iterdir())


SCHEMAS = {
    "older": (2, "got schema 2, expected 3; delete results.json and go on with the run"),
    "newer": (4, "got schema 4, expected 3; use the sahfl that wrote them"),
    "text": ("3", "got schema '3', expected 3; use the sahfl that wrote them"),
    "none": (None, "got schema None, expected 3; use the sahfl that wrote them"),
}


@pytest.mark.parametrize(("schema", "message"), SCHEMAS.values(), ids=SCHEMAS.keys())
def test_another_schema_is_refused_before_anything_is_written(tmp_path, schema, message):
    with pytest.raises(DataError, match=message):
        write_report(gain() | {"schema": schema}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_results_that_lack_keys_are_refused_with_all_of_them_before_anything_is_written(tmp_path):
    results = gain()
    del results["base"], results["methods"][1]["metrics"]["dice"]["overall"]["mean"]
    results["finished"], results["sites"], results["methods"][0]["rank"] = "yesterday", None, True
    with pytest.raises(DataError) as caught:
        write_report(results, tmp_path)
    assert str(caught.value).splitlines() == [
        "results: 4 problem(s); delete results.json and go on with the run, which makes it again",
        "  finished: got 'yesterday', expected a time (ISO 8601)",
        "  sites: got NoneType, expected list",
        "  base: is missing",
        "  methods.0.rank: got bool, expected int or NoneType",
    ]
    assert list(tmp_path.iterdir()) == []


DAMAGE = {
    "seconds": ({"seconds": 10**400}, "seconds: got a number that is not finite, or beyond 1e+18"),
    "base": ({"base": gain()["base"] | {"bytes": math.inf}}, "base.bytes: got a number that is not finite"),
    "support": ({"support": {"notes": [{"policy": "x", "n": []}]}}, "support.notes.0.n: got list, expected str or int"),
    "hostile": ({"hostile": {"sah_a": 1}}, "hostile.sah_a: got int, expected str"),
    "findings": (
        {"sites": [gain()["sites"][0] | {"findings": {"spacing": "3"}}]},
        "sites.0.findings.spacing: got str, expected int or NoneType",
    ),
    "part": (
        {"methods": [gain()["methods"][1] | {"part": "half", "trained_at": None}]},
        "methods.0.part: got 'half', expected null or personal, shared, mean",
    ),
}


@pytest.mark.parametrize(("changes", "problem"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_in_a_part_that_the_page_shows_is_named(changes, problem):
    (found,) = form_problems(gain() | changes)
    assert found.startswith(problem)


def test_very_many_problems_are_counted(tmp_path):
    with pytest.raises(DataError, match=r"(?s)results: 29 problem.*\n  and 9 more$"):
        write_report(gain() | {"sites": [{}] * 2, "base": {}, "study": [], "name": 1, "sahfl": None}, tmp_path)


def only_required(value):
    """A copy without the keys whose absence the form allows."""
    whole = copy.deepcopy(value)

    def prune(part):
        for key, below in list(part.items()) if isinstance(part, dict) else enumerate(part):
            if isinstance(part, dict):
                del part[key]
                if not list(form_problems(whole)):
                    continue
                part[key] = below
            if isinstance(below, dict | list):
                prune(below)

    prune(whole)
    return whole


@pytest.mark.parametrize("variant", [failed, *(pytest.param(v, marks=pytest.mark.slow) for v in (gain, refusals))])
def test_results_with_nothing_but_the_keys_of_the_form_have_a_page(variant, tmp_path):
    results = variant() | {"rounds": variant()["rounds"][:2] + variant()["rounds"][6:10]}
    least = only_required(results)
    assert "threshold" in least["evaluation"]
    assert "volume_edges_ml" not in least["evaluation"]
    assert render_page(least, draw_figures(least), tmp_path)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_the_samples_have_the_form(variant):
    assert list(form_problems(variant())) == []


@pytest.mark.slow
def test_writing_twice_gives_the_same_files_and_leaves_no_trace(tmp_path):
    results, before = gain(), copy.deepcopy(dict(matplotlib.rcParams))
    copied = copy.deepcopy(results)
    first = write_report(results, tmp_path).read_bytes()
    assert write_report(results, tmp_path).read_bytes() == first
    assert results == copied
    assert dict(matplotlib.rcParams) == before
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_hospital_that_is_out_and_a_fold_that_was_not_evaluated_are_named_with_their_reason(tmp_path):
    results = copy.deepcopy(gain())
    results["sites"][-1]["out"] = "error at the site: DataError"
    results["methods"][1]["not_evaluated"] = [{"fold": 1, "site": "sah_b", "reason": "no reply within 300 s"}]
    page = without_figures(results, tmp_path)
    (out,) = [row for row in page.rows if "out: error at the site: DataError" in row]
    assert out[0] == results["sites"][-1]["site"]
    assert ["CP-LoRA (rank 8)", "1", "sah_b", "no reply within 300 s"] in page.rows


def test_results_that_hospitals_withhold_are_named_and_intervals_that_are_missing_are_no_error(tmp_path):
    results = gain()
    for method in results["methods"]:
        part = {"site": "sah_b", "n_folds": 3, "strata": 2, "blood": 1, "no_blood": 0, "replicates": 2, "misses": 3}
        method["withheld"] = [part]
        method["metrics"]["dice"]["overall"] |= {"low": None, "high": None}
    results["sites"][0] |= {"volume_ml": None, "findings": {"not_hu": None, "spacing": 7}}
    page = without_figures(results, tmp_path)
    assert "Suppressed at 1 site: folds with groups of patients too small to report" in page.text
    assert ["sah_b", "2 of 3", "1 of 3", "0 of 3", "2 of 3", "3 of 3"] in [row[1:] for row in page.rows]
    assert "not_hu: few, spacing: 7" in page.text
    assert "Suppressed" not in without_figures(gain(), tmp_path).text


def answers(results):
    return {row.cells[0]: row.cells[2] for row in claim_table(results).rows if not row.heading}


def test_sentences_about_start_and_new_hospitals_follow_the_methods_of_the_study(tmp_path):
    """A page of plain methods says what one with bases of single centres, from scratch and without a site must not."""
    plain, more = gain(), gain()
    places = ("zero_shot-from-tbi_a", "from-tbi_a"), ("zero_shot-from-each", "from-each"), ("full-others", "others")
    for id_, at in (*places, ("full-without-sah_a", "without-sah_a"), ("full-scratch", None)):
        more["methods"].append(one_method(id_, id_.partition("-")[0], 0.4, at=at))
    more["overlays"] = grid()["overlays"][:1]
    pages = [without_figures(results, tmp_path).text for results in (plain, more)]
    for sentence, there in (
        ("contain the spread of these bases", (False, True)),
        ("For that see the methods that were trained without a hospital", (False, True)),
        ("All trainings start from one base network", (False, False)),
        ("Each patient was scored once", (False, False)),
        ("every other interval", (False, False)),
        ("Each training of a method scores a patient at most once", (True, True)),
    ):
        assert tuple(sentence in text for text in pages) == there, sentence
    claims = [answers(results) for results in (plain, more)]
    assert [claim["11"].partition(" left")[0] for claim in claims] == [
        "Only weights, sums and counts",
        "Only weights, sums, counts and pictures of single cases",
    ]
    assert [claim["24"].partition("; ")[2] for claim in claims] == [
        "adapters start at 0.",
        "some methods start from single trauma centres' own bases; some from random weights; adapters start at 0.",
    ]
    assert claims[0]["33"].startswith("Not done: ")
    assert claims[1]["33"].startswith("Each hospital by networks that were trained without it")
    without_adapters = gain()
    del without_adapters["methods"][1]
    assert answers(without_adapters)["24"] == f"Base network: federated, SHA-256 {'de' * 6}."
