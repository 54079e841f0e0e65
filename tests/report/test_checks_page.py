"""The page of a data check: verdict first, every finding with its remedy, nothing from outside."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib import image as pictures

from sahfl.report.checks_page import render_checks, verdict_sentence, write_checks_page
from sahfl.report.scan_pictures import (
    BINS,
    ScanPicture,
    choose_slices,
    draw_scan,
    histogram_place,
    histogram_points,
)

MEASURES = {"brain_hu": 34.0}
RULE = {"rule": "windowed", "n": 1, "severity": "error", "meaning": "A picture.", "remedy": "Export again <now>."}


def case(name="bern-0000", findings=(), measures=MEASURES, volume_ml=12.34):
    known = {"measures": measures, "shape": [9, 8, 7], "spacing_mm": [0.5, 0.5, 5.0]}
    usable = not any(finding["severity"] == "error" for finding in findings)
    return {"case": name, "usable": usable, "volume_ml": volume_ml, "findings": list(findings), **known}


def finding(rule="windowed", severity="error", text="case bern-0001: values from 0 to 80"):
    return {"rule": rule, "severity": severity, "text": text}


def checks(*cases, share=0.0, rules=(RULE,)):
    refused = sum(not item["usable"] for item in cases)
    usable = len(cases) - refused
    return {
        "schema": 1, "sahfl": "0.1.0", "site": "bern", "checked": "2026-11-22T15:00:00+00:00",
        "may_train": bool(usable) and refused <= share * len(cases), "max_refused_share": share, "too_few_patients": "",
        "n_cases": len(cases), "n_usable": usable, "n_refused": refused, "n_patients": len(cases),
        "rules": list(rules), "cases": list(cases),
    }  # fmt: skip


BAD = case("bern-0001", [finding()])
PICTURE = ScanPicture(b"\xff\xd8jpeg", (1, 3), (5,) * BINS)

SENTENCES = {
    "all": (checks(case(), case()), "This site may train: all 2 cases can be used."),
    "only": (checks(case()), "This site may train: its only case can be used."),
    "some": (
        checks(case(), BAD, share=0.5),
        "This site may train: 1 of 2 cases cannot be used (50 %; its policy allows 50 %).",
    ),
    "too-few-patients": (
        checks(case()) | {"too_few_patients": "one patient; a study needs 2"},
        "This site has too few patients to train; its only case can be used. One patient; a study needs 2.",
    ),
    "too-many": (
        checks(case(), BAD),
        "This site may not train: 1 of 2 cases cannot be used (50 %; its policy allows 0 %).",
    ),
    "none": (checks(BAD, share=1.0), "This site cannot train: none of 1 case can be used."),
}


@pytest.mark.parametrize(("content", "sentence"), SENTENCES.values(), ids=SENTENCES.keys())
def test_the_verdict_is_one_sentence_with_the_reason(content, sentence):
    assert verdict_sentence(content) == sentence
    assert sentence in render_checks(content, {})


def test_refused_cases_come_first_and_each_finding_has_its_remedy_escaped():
    page = render_checks(checks(case(), BAD), {"bern-0000": PICTURE})
    assert page.index('id="bern-0001"') < page.index('id="bern-0000"')
    assert "<b>windowed</b>: values from 0 to 80. " in page
    assert "Export again &lt;now&gt;." in page
    assert "12.3 mL · 9 × 8 × 7 voxels · 0.50 × 0.50 × 5.00 mm · brain 34 HU" in page


def test_commands_in_a_meaning_or_remedy_are_code_and_the_rest_is_escaped():
    rule = RULE | {"meaning": "Not `sahfl <x>`.", "remedy": "Write `blood: [1]` <now>."}
    page = render_checks(checks(case(findings=[finding()]), rules=[rule]), {})
    assert page.startswith("<!doctype html>")
    assert "Not <code>sahfl &lt;x&gt;</code>." in page
    assert page.count("Write <code>blood: [1]</code> &lt;now&gt;.") == 2  # in the table and at the case


def test_a_case_that_could_not_be_read_has_neither_picture_nor_numbers():
    page = render_checks(checks(case("bern-0001", [finding()], measures=None)), {})
    assert "No picture." in page
    assert "None" not in page


class Outside(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found += [(tag, v) for k, v in attributes if k in ("src", "href") and not v.startswith("data:")]
        self.found += [(tag, k) for k, _ in attributes if k.startswith("on")] + [(tag, "")] * (tag == "script")


def test_the_page_loads_nothing_and_runs_nothing(tmp_path):
    path = write_checks_page(checks(case(), BAD), {"bern-0000": PICTURE}, tmp_path)
    assert path == tmp_path / "checks.html"
    parser = Outside()
    parser.feed(path.read_text())
    assert parser.found == []
    assert "default-src 'none'" in path.read_text()
    assert "url(" not in path.read_text()


def test_the_slice_with_most_blood_is_shown():
    label = np.zeros((4, 4, 40), bool)
    assert choose_slices(label) == tuple(sorted(choose_slices(label)))
    assert len(choose_slices(label)) == 8
    label[:, :, 7] = True
    assert 7 in choose_slices(label)
    assert choose_slices(label[:, :, :1]) == (0,)


def test_the_strip_is_a_picture_with_the_patients_right_on_the_left(tmp_path):
    image = np.full((32, 32, 9), -1000, np.float32)
    image[16:] = 80  # in RAS+ the upper half of x is the patient's right
    picture = draw_scan(image, np.zeros(image.shape, bool), 1.0)
    (tmp_path / "a.jpg").write_bytes(picture.strip)
    pixels = pictures.imread(tmp_path / "a.jpg").mean(axis=2)
    tile = pixels[:, : pixels.shape[1] // len(picture.slices)]
    assert tile[:, 20:60].mean() > 200
    assert tile[:, 80:120].mean() < 50
    assert sum(picture.histogram) == image.size


def test_a_histogram_is_drawn_within_its_box():
    points = [tuple(map(float, point.split(","))) for point in histogram_points((0, 10, 1000), 90.0, 30.0).split()]
    assert points[0] == (0.0, 30.0)
    assert points[-1] == (90.0, 30.0)
    assert min(y for _, y in points) == 0.0
    assert max(x for x, _ in points) == 90.0
    assert re.fullmatch(r"(\d+\.\d|0),\d+\.\d", histogram_points((0,) * 3, 90.0, 30.0).split()[0])
    assert histogram_place(-1100, 100.0) == 0.0
    assert histogram_place(1700, 100.0) == 100.0
