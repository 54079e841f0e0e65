"""``checks.html``: the results of a site's data checks, for the people responsible for the data."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sahfl.atomic import write_atomic
from sahfl.report.page import make_environment
from sahfl.report.scan_pictures import ScanPicture, histogram_place, histogram_points
from sahfl.report.text import Results, count, moment, number, percent

WIDTH, HEIGHT = 260.0, 64.0
"""Size of a histogram, in CSS pixels."""
TICKS_HU = (-1000, 0, 1000)
ORDER = {"error": 0, "warning": 1, "note": 2, "fine": 3}
WORDS = {"error": "refused", "warning": "look", "note": "note", "fine": "fine"}


def write_checks_page(checks: Results, pictures: Mapping[str, ScanPicture], folder: Path) -> Path:
    """Write ``checks.html`` from the content of ``checks.json`` into a site's folder and return its path.

    ``pictures`` are by case id; a case without one is listed without a picture.

    Guarantees: the page loads nothing from the network and runs no script; text is escaped; it is complete or absent.
    """
    path = folder / "checks.html"
    write_atomic(path, render_checks(checks, pictures))
    return path


def render_checks(checks: Results, pictures: Mapping[str, ScanPicture]) -> str:
    """Fill the template."""
    cases = [_case(case, pictures.get(case["case"])) for case in checks["cases"]]
    ticks = [{"x": histogram_place(hu, WIDTH), "label": number(hu, 0)} for hu in TICKS_HU]
    return (
        make_environment()
        .get_template("checks.html.j2")
        .render(
            checks=checks,
            sentence=verdict_sentence(checks),
            checked=moment(checks["checked"]),
            tiles=_tiles(checks),
            cases=sorted(cases, key=lambda case: ORDER[case["severity"]]),
            rules=sorted(checks["rules"], key=lambda rule: ORDER[rule["severity"]]),
            remedies={rule["rule"]: rule["remedy"] for rule in checks["rules"]},
            width=WIDTH,
            height=HEIGHT,
            ticks=ticks,
        )
    )


def verdict_sentence(checks: Results) -> str:
    """One sentence: whether the site may train, and why."""
    n, refused = checks["n_cases"], checks["n_refused"]
    allowed = f"its policy allows {percent(checks['max_refused_share'], 1)}"
    if not checks["n_usable"]:
        return f"This site cannot train: none of {count(n, 'case')} can be used."
    share = f"{refused} of {count(n, 'case')} cannot be used ({percent(refused, n)}; {allowed})"
    if not checks["may_train"]:
        return f"This site may not train: {share}."
    whole = "its only case" if n == 1 else f"all {n} cases"
    used = share if refused else f"{whole} can be used"
    if few := checks["too_few_patients"]:
        return f"This site has too few patients to train; {used}. {few[0].upper()}{few[1:]}."
    return f"This site may train: {used}."


def _tiles(checks: Results) -> list[tuple[str, str, str]]:
    volumes = [case["volume_ml"] for case in checks["cases"] if case["usable"]]
    warned = sum(any(found["severity"] == "warning" for found in case["findings"]) for case in checks["cases"])
    empty = sum(volume == 0 for volume in volumes)
    return [
        ("Cases", str(checks["n_cases"]), count(checks["n_patients"], "patient")),
        ("Usable", str(checks["n_usable"]), f"{checks['n_refused']} refused"),
        ("With warnings", str(warned), "used nevertheless"),
        ("Without blood", str(empty), "legal, counted apart"),
        ("Blood in all", f"{number(sum(volumes), 0)} mL", "in usable cases"),
    ]


def _case(case: Results, picture: ScanPicture | None) -> dict[str, Any]:
    severities = [found["severity"] for found in case["findings"]] or ["fine"]
    severity = min(severities, key=lambda name: ORDER[name])
    shown: dict[str, Any] = {"strip": None, "points": None, "slices": ""}
    if picture is not None:
        shown = {
            "strip": base64.b64encode(picture.strip).decode(),
            "points": histogram_points(picture.histogram, WIDTH, HEIGHT),
            "slices": ", ".join(str(index + 1) for index in picture.slices),
        }
    prefix = f"case {case['case']}: "
    findings = [dict(found, text=found["text"].removeprefix(prefix)) for found in case["findings"]]
    words = {"id": case["case"], "severity": severity, "word": WORDS[severity]}
    return words | shown | {"findings": findings, "facts": _facts(case)}


def _facts(case: Results) -> list[str]:
    if case["measures"] is None:
        return []
    x, y, z = case["spacing_mm"]
    measures = case["measures"]
    brain = "" if measures["brain_hu"] is None else f"brain {number(measures['brain_hu'], 0)} HU"
    voxels = " × ".join(map(str, case["shape"]))
    facts = [f"{number(case['volume_ml'], 1)} mL", f"{voxels} voxels", f"{x:.2f} × {y:.2f} × {z:.2f} mm", brain]
    return [fact for fact in facts if fact]
