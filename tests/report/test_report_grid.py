"""A whole grid on one page: readable, told apart, with what is missing said, in a real browser, light and dark."""

import json
import re
import shutil
import subprocess

import matplotlib.image
import numpy as np
import pytest
from harness.grid_results import grid
from test_report_page import Page, without_figures
from test_report_sample import comparison, sample
from test_report_sample import method as one_method

from sahfl.report.accuracy_figures import draw_places, draw_ranks, draw_strata
from sahfl.report.claim import AUTHORS, claim_table, n_filled
from sahfl.report.cost_figures import draw_bytes, draw_costs
from sahfl.report.form import form_problems
from sahfl.report.names import families, looks, method_name, names
from sahfl.report.page import write_report
from sahfl.report.paper import paper_table
from sahfl.report.run_tables import ledger_table
from sahfl.report.training_figures import draw_losses
from sahfl.report.volume_figures import bin_edges, draw_bland_altman, draw_histograms

MOST_BYTES = 6_000_000
PNG = matplotlib.image.imsave


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    (folder / "overlays").mkdir()
    PNG(folder / "overlays" / "best.png", np.linspace(0, 1, 10_000).reshape(100, 100))
    return folder, Page(write_report(grid(), folder))


@pytest.fixture(scope="module")
def page(written):
    return written[1]


def test_the_made_up_grid_has_the_form_and_every_arm():
    results = grid()
    assert list(form_problems(json.loads(json.dumps(results, allow_nan=False)))) == []
    assert len(results["methods"]) >= 25
    assert {m["trained_at"] for m in results["methods"]} >= {None, "pooled", "each", "sah_a"}


def test_two_federated_methods_never_look_alike():
    results = grid()
    shown = [m for m in results["methods"] if m["trained_at"] is None]
    seen = [looks(results["methods"])[m["id"]] for m in shown]
    assert len({(look.family.key, look.marker, look.line) for look in seen}) == len(shown)
    assert len({family.colour for family in families()}) == len(families())


def test_a_name_says_rank_rule_and_place_and_no_two_are_the_same():
    names = {m["id"]: method_name(m) for m in grid()["methods"]}
    assert names["cp_lora-r8-project"] == "CP-LoRA (rank 8, project)"
    assert names["cp_lora-r8-pooled"] == "CP-LoRA (rank 8, pooled)"
    assert names["cp_lora-r8-pooled_steps"] == "CP-LoRA (rank 8, pooled, one site's steps)"
    assert names["cp_lora-r8-each"] == "CP-LoRA (rank 8, each site alone)"
    assert names["cp_lora-r8-at-sah_b"] == "CP-LoRA (rank 8, sah_b alone)"
    assert names["full-pooled"] == "Full fine-tuning (pooled)"
    assert len(set(names.values())) == len(names)


@pytest.mark.parametrize(
    ("id_", "at", "name"),
    [
        ("cp_lora-r8-others", "others", "CP-LoRA (rank 8, all other sites)"),
        ("cp_lora-r8-without-sah_a", "without-sah_a", "CP-LoRA (rank 8, without sah_a)"),
        ("cp_lora-r8-from-each", "from-each", "CP-LoRA (rank 8, each trauma centre's own base)"),
        ("zero_shot-from-tbi_a", "from-tbi_a", "Zero-shot (base of tbi_a)"),
        ("cp_lora-r8-stays-out", None, "CP-LoRA (rank 8, output factors stay)"),
        ("cp_lora-r8-stays-inner", None, "CP-LoRA (rank 8, inner factors stay)"),
        ("cp_lora-r8-stays-norm-decoder1-local1", None, "CP-LoRA (rank 8, norms and decoder1 stay, 1 local step)"),
        ("full-stays-head-rounds1", None, "Full fine-tuning (head stays, 1 round)"),
        ("cp_lora-r8-private1", None, "CP-LoRA (rank 8, 1 private term)"),
        ("cp_lora-r8-private4", None, "CP-LoRA (rank 8, 4 private terms)"),
        ("full-scratch-rounds25", None, "Full fine-tuning (from scratch, 25 rounds)"),
    ],
)
def test_a_name_says_who_was_left_out_and_where_the_training_starts(id_, at, name):
    rank = 8 if "-r8" in id_ else None
    assert method_name(one_method(id_, id_.partition("-")[0], 0.5, rank=rank, at=at)) == name


@pytest.mark.slow
def test_every_link_of_the_contents_leads_to_a_heading(page):
    links = dict.fromkeys(value for tag, name, value in page.attributes if (tag, name) == ("a", "href"))
    anchors = {value for tag, name, value in page.attributes if (tag, name) == ("h2", "id")}
    assert [link for link in links if link.removeprefix("#") not in anchors] == []
    assert len(links) == len(anchors) == 16


def test_long_tables_are_folded_and_grouped_by_family(page):
    folded = re.findall(r"<summary>(.+?) <span", page.source)
    assert "All metrics over all cases with blood" in folded
    assert "Methods on held-out scans with blood, whose number is n" not in folded
    headings = re.findall(r'<tr class="group"><th[^>]*><span>(.+?)</span>', page.source)
    assert [heading for heading in headings if heading == "CP-LoRA"]
    assert "Against Full fine-tuning" in headings


def test_the_page_stays_small_enough_to_be_sent_around(page):
    assert len(page.source) < MOST_BYTES


def test_findings_are_shown_with_verdict_and_interval(page):
    assert "worse CP-LoRA is not worse than convLoRA, with a third" in page.text
    assert (
        "CP-LoRA (rank 8) against convLoRA (rank 8), rank ≥ 8: −0.034 (95 % interval −0.064 to −0.004), n = 39."
        in page.text
    )
    assert "because the study has no methods for it: Federated is not worse than pooled. " in page.text
    assert "not tested Federated" not in page.text
    row = ["39", "+0.070", "+0.040 to +0.100", "0.002", "better"]
    names = [f"CP-LoRA (rank {rank}) against CP-LoRA (rank 1)" for rank in (8, 64)]
    assert [found for found in page.rows if found[1:] == row] == [[name, *row] for name in names]


def test_settings_in_which_a_pair_differs_besides_are_named_in_its_row(tmp_path):
    results = sample()
    results["comparisons"].append(comparison("cp_lora-r8", -0.1, reference="full") | {"differs": ["learning_rate"]})
    page = without_figures(results, tmp_path)
    assert "CP-LoRA (rank 8) against Full fine-tuning (differ in learning rate too)" in [row[0] for row in page.rows]


def test_every_hospital_sees_what_it_gains_by_taking_part(page):
    found = [
        row for row in page.rows if row[1:2] == ["CP-LoRA (rank 8)"] and row[0].startswith("sah_") and len(row) == 8
    ]
    assert found == [
        ["sah_a", "CP-LoRA (rank 8)", "0.490", "0.450", "13", "+0.040", "+0.020 to +0.060", "better"],
        ["sah_b", "CP-LoRA (rank 8)", "0.450", "0.450", "13", "0.000", "−0.020 to +0.020", "undecided"],
        ["sah_c", "CP-LoRA (rank 8)", "0.410", "0.450", "13", "−0.040", "−0.060 to −0.020", "worse"],
    ]


def row_of(page, *start):
    (row,) = [row for row in page.rows if row[: len(start)] == list(start)]
    return row


def test_a_withheld_group_is_called_withheld_and_a_part_of_one_is_marked(page):
    rows = [row for row in page.rows if row[0] == "convLoRA (rank 64)" and len(row) == 4]
    assert [row[1] for row in rows[:2]] == ["withheld, n = –", "0.363 (0.301 to 0.420), n = 9"]
    assert rows[1][3].startswith("0.623 (0.561 to 0.680) †")
    assert ["convLoRA (rank 64)", "sah_c", "2 of 3", "0 of 3", "1 of 3", "0 of 3", "2 of 3"] in page.rows


def test_repeats_exclusions_and_reused_cells_are_told(page):
    assert "3, SD 0.010" in row_of(page, "CP-LoRA (rank 8)", "30", "0.505 (0.443 to 0.562)")
    assert "Cells of the grid (a method in a fold): 87, of which 12 were taken from an earlier run" in page.text
    assert ["DoRA-C (rank 8)", "Failed: fold 2, round 3: 1 of 2 sites replied, quorum is 2"] in page.rows
    assert ["Fine-tuning of norms and biases", "2", "sah_b", "no reply within 300 s"] in page.rows


def test_the_paper_s_table_has_the_words_of_its_abstract_and_no_row_without_a_result_of_this_run(page):
    rows = {row.cells[0]: row.cells for row in paper_table(grid()).rows if not row.heading}
    assert rows["Zero-shot"][1:] == ("0.410 ± 0.26", "0.412 ± 0.17", "–")
    assert rows["Patients, pretraining"][1] == "124 with traumatic brain injury, several institutions"
    assert rows["Patients, fine-tuning"][2:] == ("39 at 3 sites", "–")
    assert rows["Not in this run"][1] == "DoRA-C"
    assert "DoRA-C" not in rows
    assert rows["CP-LoRA"][1] == "above standard fine-tuning; comparable with far fewer parameters"
    assert rows["CP-LoRA"][2].startswith("rank 1: 0.461 ± 0.17; rank 8: ")
    assert rows["CP-LoRA"][3].startswith("rank 1: worse; rank 8: undecided; ")
    assert "not known here" not in page.text
    assert "arXiv:2508.01772" in page.text


def test_the_paper_s_table_has_plain_federated_methods_only_each_by_another_name():
    results = grid()
    rank = {"rank": 8, "sent": 100}
    personal = one_method("cp_lora-r8-private4", "cp_lora", 0.6, **rank) | {"part": "personal"}
    others = [personal, personal | {"id": "cp_lora-r8-private4-shared", "part": "shared"}]
    others += [one_method("cp_lora-r8-joint", "cp_lora", 0.61, **rank), one_method("full-rounds9", "full", 0.62)]
    results["methods"] += [*others, one_method("full-scratch", "full", 0.3)]
    rows = {row.cells[0]: row.cells[2] for row in paper_table(results).rows if not row.heading}
    labels = {name: [part.partition(":")[0] for part in rows[name].split("; ")] for name in rows}
    rules = [f"rank {rank}, project" for rank in (1, 8, 64)]
    assert labels["CP-LoRA"] == ["rank 1", "rank 8", "rank 64", *rules, "rank 8, joint"]
    parts = ["full", "encoder", "decoder", "bottleneck", "last layer", "norm bias", "full (9 rounds)"]
    assert labels["Standard fine-tuning"] == parts


def test_the_checklist_has_all_items_and_leaves_to_the_authors_what_the_results_do_not_say():
    table = claim_table(grid())
    rows = {row.cells[0]: row.cells[2] for row in table.rows if not row.heading}
    assert list(rows) == [str(n) for n in range(1, 45)]
    assert rows["44"] == rows["5"] == AUTHORS
    assert "tbi_c: 0 patients, 0 scans refused, out (error at the site: DataRefused)" in rows["35"]
    assert n_filled(table) == sum(AUTHORS not in text for text in rows.values())
    assert 15 < n_filled(table) < 30


def test_an_overlay_is_on_the_page_and_one_that_is_not_there_is_said(page):
    assert "Best case. CP-LoRA (rank 8), sah_a, fold 0: Dice 0.830, 41.2 mL annotated, 38.2 mL predicted." in page.text
    assert page.text.count("No picture: its file is not there.") == 2


ASIDE = {
    "outside": ("../secret.png", "its path leads out of the run's folder"),
    "absolute": ("/etc/hostname", "its path leads out of the run's folder"),
    "link": ("overlays/link.png", "its path leads out of the run's folder"),
    "no-png": ("overlays/text.png", "its file is no PNG"),
    "large": ("overlays/large.png", "its file is larger than 2 MB"),
}


@pytest.mark.parametrize(("png", "why"), ASIDE.values(), ids=ASIDE.keys())
def test_an_overlay_from_elsewhere_or_of_another_kind_is_never_read(tmp_path, png, why):
    run = tmp_path / "run"
    (run / "overlays").mkdir(parents=True)
    PNG(tmp_path / "secret.png", np.eye(9))
    (run / "overlays" / "link.png").symlink_to(tmp_path / "secret.png")
    (run / "overlays" / "text.png").write_text("secret")
    (run / "overlays" / "large.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(2_000_000))
    results = sample() | {"overlays": grid()["overlays"][:1]}
    results["overlays"][0]["png"] = png
    page = without_figures(results, run)
    assert f"No picture: {why}." in page.text


def test_a_run_without_overlays_says_that_no_image_left(page, tmp_path):
    assert "The pictures of single cases above, whose release the hospitals allow." in page.text
    lone = without_figures(sample(), tmp_path)
    assert "No image, no annotation, no prediction" in lone.text
    assert "Single cases" not in lone.text


# --- figures ----------------------------------------------------------------------------------------------------------


def test_the_strata_figure_says_withheld_where_it_is():
    drawing = draw_strata(grid(), "by_volume")
    first, *_ = drawing.figure.axes
    assert [text.get_text() for text in first.texts] == ["withheld"] * 2
    assert first.get_title(loc="left") == "< 10 mL\nn = 7"
    assert "convLoRA (rank 64), < 10 mL: – (no interval), n = –" in drawing.alt


def test_rank_curves_join_the_ranks_of_a_family_under_one_rule():
    drawing = draw_ranks(grid())
    lines = {line.get_label(): line for line in drawing.figure.axes[0].lines if not line.get_label().startswith("_")}
    assert {"CP-LoRA", "CP-LoRA, project", "LoRA-C", "Zero-shot", "Full fine-tuning"} <= set(lines)
    assert len(lines["CP-LoRA"].get_xdata()) == 3
    assert lines["CP-LoRA, project"].get_linestyle() == "--"
    assert draw_ranks(sample()) is None  # one rank is no curve


def test_costs_lie_on_log_axes_at_their_place():
    drawing = draw_costs(grid())
    parameters, sent = drawing.figure.axes
    assert parameters.get_xscale() == sent.get_xscale() == "log"
    marks = {(line.get_xdata()[0], line.get_ydata()[0]) for line in parameters.lines if len(line.get_xdata()) == 1}
    assert (6_495_868, 0.521) in marks
    assert "CP-LoRA (rank 8), 55,672 parameters, 0.11 MB: 0.505" in drawing.alt
    assert draw_costs(sample()) is None  # two methods are two rows of the table


def test_pooled_federated_and_single_site_stand_side_by_side():
    drawing = draw_places(grid())
    labels = [label.get_text() for label in drawing.figure.axes[0].get_yticklabels()]
    assert labels[:4] == [
        "CP-LoRA (rank 8, pooled)",
        "CP-LoRA (rank 8, pooled, one site's steps)",
        "CP-LoRA (rank 8): federated",
        "CP-LoRA (rank 8, each site alone)",
    ]
    assert labels[-2:] == ["Full fine-tuning (pooled)", "Full fine-tuning: federated"]
    assert draw_places(sample()) is None


def test_volume_figures_show_the_counts_with_annotated_volume_across():
    results = sample()
    counts = [[0] * 6 for _ in range(6)]
    counts[4][1] = 30  # annotated 30 to 100 mL, predicted 1 to 3 mL
    for method in results["methods"]:
        method["volume"]["histogram"]["counts"] = counts
    axes = draw_histograms(results).figure.axes[0]
    assert [(text.get_position(), text.get_text()) for text in axes.texts] == [((4.5, 1.5), "30")]
    (points,) = draw_bland_altman(results).figure.axes[0].collections
    assert points.get_offsets().tolist() == [[(65 + 2) / 2, 2 - 65]]


def test_panels_of_volume_have_equal_axes_and_colours():
    results = sample()
    results["methods"][0]["volume"]["histogram"]["counts"][4][1] += 40
    figure = draw_histograms(results).figure
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert len(panels) == 3
    assert len({axes.collections[0].get_clim() for axes in panels}) == 1
    assert [axes.get_ylabel() for axes in figure.axes if axes not in panels] == ["Cases, in all panels"]
    every = draw_bland_altman(results).figure.axes
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in every}) == 1
    assert {axes.get_xscale() for axes in every} == {"log"}


def test_losses_fill_their_axes_and_the_panels_of_fine_tuning_share_one():
    pretraining, *panels = draw_losses(grid()).figure.axes
    panels = [axes for axes in panels if axes.lines]
    assert len({axes.get_ylim() for axes in panels}) == 1
    for axes in (pretraining, panels[0]):
        low, high = axes.get_ylim()
        drawn = axes.dataLim.ymax - axes.dataLim.ymin
        assert low > 0
        assert drawn > 0.5 * (high - low)


def test_bins_may_be_given_by_the_edges_between_them():
    histogram = {"edges_ml": [1.0, 10.0], "counts": [[0] * 3] * 3}
    assert bin_edges(histogram) == [0.0, 1.0, 10.0, float("inf")]
    results = sample()
    for method in results["methods"]:
        method["volume"]["histogram"] = {"edges_ml": [1.0, 10.0], "counts": [[1, 0, 0], [2, 3, 0], [0, 4, 5]]}
    assert list(form_problems(results)) == []
    assert "≥ 10 mL: 9; 6 predicted in another bin" in draw_histograms(results).alt
    assert draw_bland_altman(results) is not None


def test_a_histogram_of_another_form_is_a_problem():
    results = sample()
    results["methods"][0]["volume"]["histogram"]["counts"].pop()
    (problem,) = form_problems(results)
    assert problem.startswith("methods.0.volume.histogram: expected edges_ml, and counts with as many rows as columns")


def test_the_bytes_figure_names_every_stage_and_its_share():
    alt = draw_bytes(grid()).alt
    assert "Pretraining: 3.25 MB, 100 %" in alt
    assert "CP-LoRA (rank 8): 0.11 MB, 3.4 %" in alt


# --- in a browser -----------------------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BROWSER = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")


def browse(tmp_path, *arguments):
    command = [CHROMIUM, *BROWSER, f"--user-data-dir={tmp_path / 'profile'}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def shown_at(tmp_path, source, width, script):
    """The text that a script posts from a page in a frame of this width; a window is never as narrow as a phone."""
    # The page's own policy forbids scripts; the probe needs a copy without it.
    source = re.sub(r"<meta[^>]*Content-Security-Policy[^>]*>", "", source)
    probe = f"<script>onload = () => {{ {script} }}</script></body>"
    (tmp_path / "probe.html").write_text(source.replace("</body>", probe))
    listen = "<script>onmessage = event => { document.title = event.data }</script>"
    frame = f'{listen}<iframe src="probe.html" style="border:0;width:{width}px;height:900px"></iframe>'
    (tmp_path / "frame.html").write_text(frame)
    arguments = "--virtual-time-budget=5000", "--window-size=1400,900", "--dump-dom"
    shown = browse(tmp_path, *arguments, (tmp_path / "frame.html").as_uri())
    return re.search("<title>(.*)</title>", shown)[1]


SILENT = """
  const boxes = [...document.querySelectorAll('.box')].filter(e => innerWidth < 500 || !e.closest('details'))
  const wide = boxes.filter(e => e.scrollWidth > e.clientWidth)
  const cued = e => e.previousElementSibling.matches('.cue') &&
    getComputedStyle(e.previousElementSibling).display != 'none'
  const silent = wide.filter(e => !cued(e)).map(e => e.getAttribute('aria-label'))
"""
"""Names the tables that are wider than their box without a cue: on a wide screen of those that are not folded."""


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_the_page_with_its_pictures_and_nothing_that_is_cut(page, tmp_path, width):
    """At 1280 pixels no table of the results is wider than its box, but the wide ones that are folded."""
    script = f"""
      const cut = [...document.querySelectorAll('body *')].filter(e => {{
        const box = e.getBoundingClientRect()
        return box.width > 1 && box.right > innerWidth + 1 && !e.closest('.box')
      }})
      document.querySelectorAll('details').forEach(e => e.open = true)
      {SILENT}
      const images = [...document.images]
      images[0].closest('label').querySelector('input').click()
      const large = images[0].getBoundingClientRect().width
      parent.postMessage([innerWidth, document.documentElement.scrollWidth <= innerWidth, cut.length, silent.length,
        images.every(i => i.naturalWidth >= 100), images.length, large >= Math.min(1000, innerWidth - 50)].join(), '*')
    """
    assert shown_at(tmp_path, page.source, width, script) == f"{width},true,0,0,true,11,true"


def test_a_method_s_name_in_a_table_is_broken_after_a_comma_alone(page):
    heads = re.findall(r'<th scope="row" class="text">(.*?)</th>', page.source)
    named = [
        re.findall(r'<span class="whole">(.*?)</span>(?=<| |$)', re.sub(r'<span class="swatch.*?</span>', "", h))
        for h in heads
    ]
    found = {" ".join(pieces) for pieces in named if pieces}
    assert "CP-LoRA (rank 8)" in found
    assert all(piece.endswith(",") for pieces in named for piece in pieces[:-1])
    assert {name for name in names(grid()).values() if name in page.text} & found


@needs_chromium
def test_a_table_of_few_columns_fits_a_phone(tmp_path):
    results = sample()
    for part in (*results["methods"], *results["comparisons"]):
        for metric in part["metrics"].values():
            for kind in ("by_volume", "by_extent"):
                del metric[kind][2:]
    source = write_report(results, tmp_path).read_text()
    assert source.count('class="box few"') > 2
    script = f"document.querySelectorAll('details').forEach(e => e.open = true); {SILENT}"
    assert shown_at(tmp_path, source, 390, f"{script}; parent.postMessage(silent.join('; ') || 'none', '*')") == "none"


@needs_chromium
def test_a_dark_page_is_dark_also_in_its_figures(written, tmp_path):
    folder, _ = written
    means = []
    for scheme in (0, 1):
        look = f"--blink-settings=preferredColorScheme={scheme}"
        page = (folder / "report.html").as_uri()
        browse(tmp_path, look, "--window-size=1200,3000", f"--screenshot={tmp_path / 'shot.png'}", page)
        picture = matplotlib.image.imread(tmp_path / "shot.png")[..., :3]
        means.append(float(picture.mean()))
        assert (picture.mean(axis=2) > 0.5).mean() < 0.1 or scheme  # a figure on white would be a bright patch
    dark, light = means
    assert dark < 0.25
    assert light > 0.85


def test_repeats_are_named_one_by_one_in_the_rounds_and_drawn_with_their_method(tmp_path):
    results = sample()
    for entry in [entry for entry in results["rounds"] if entry["method"] == "cp_lora-r8"]:
        results["rounds"].append(entry | {"method": "cp_lora-r8-repeat2"})
    assert names(results)["cp_lora-r8-repeat2"] == "CP-LoRA (rank 8), repeat 2"
    titles = [axes.get_title(loc="left") for axes in draw_losses(results).figure.axes]
    assert titles == ["Pretraining", "Standard fine-tuning", "CP-LoRA"]
    page = without_figures(results, tmp_path)
    assert ["sah_a", "CP-LoRA (rank 8), repeat 2", "15", "6.08 MB", "6.08 MB"] in page.rows
    assert draw_bytes(results).alt.count("CP-LoRA (rank 8): 0.41 MB, 12 %") == 1


def test_the_pool_is_no_hospital_in_the_ledger(tmp_path):
    results = sample()
    used = results["rounds"][-1]["used"]
    used[:] = [used[0] | {"site": "pooled"}]
    page = without_figures(results, tmp_path)
    assert [row[0] for row in page.rows if "pooled" in row[0]] == ["pooled (no hospital)"] * 2


def test_a_training_at_one_site_alone_stands_for_no_whole_network_in_the_ledger(tmp_path):
    results = sample()
    alone = one_method("cp_lora-r8-at-sah_a", "cp_lora", 0.4, rank=8, at="sah_a")
    results["methods"].append(alone)
    before = {row.cells[0]: row.cells for row in ledger_table(results).rows}
    entry = next(entry for entry in results["rounds"] if entry["method"] == "cp_lora-r8")
    used = [entry["used"][0] | {"site": "sah_a", "bytes_up": 238, "bytes_down": 1206}]
    for name in ("cp_lora-r8-at-sah_a", "cp_lora-r8-at-sah_a-repeat2"):
        results["rounds"].append(entry | {"method": name, "used": used})
    after = {row.cells[0]: row.cells for row in ledger_table(results).rows}
    assert (before["sah_a"][1], after["sah_a"][1]) == ("30", "32")
    assert [after[name][2:] for name in after] == [before[name][2:] for name in before]


def test_results_without_cells_and_overlays_have_a_page(tmp_path):
    results = sample()
    del results["cells"], results["overlays"]
    assert list(form_problems(results)) == []
    page = without_figures(results, tmp_path)
    assert "Cells of the grid" not in page.text
    assert "Interruptions of the run: none." in page.text


def test_the_page_explains_its_words(page):
    for sentence in (
        "We do not expect to reach its numbers",
        "Better, worse: a difference of 0 is excluded. Not worse: a loss of 0.02 or more is excluded.",
        "p is below 0.05, before correction, exactly if the interval excludes 0",
        "Bytes include replies of rounds that had to be repeated.",
        "one that does not cross may still be undecided after the correction",
        "Few patients may contain no rare bad case.",
    ):
        assert sentence in page.text, sentence
