"""When is a federation better than each hospital alone? ``configs/map.yaml``, with one axis varied at a time.

    python benchmarks/when_it_pays.py                        # all points that are missing; a table, JSON, a picture
    python benchmarks/when_it_pays.py --points base patients-2
    python benchmarks/when_it_pays.py --table                # of the points in docs/map.json; runs nothing

Each point is a study in a folder of its own (``runs/map/POINT``): an interrupted call goes on where it ended. A point
that is finished stands in ``docs/map.json`` with the commit that ran it; only a change of its settings voids it. The
points change the number of training patients of a site, the rounds, or how unlike the sites are: in nothing, in their
scanners, in their raters, in both; and one is the corner of few patients and many rounds. The two of 60 rounds are also
evaluated after 4, 12 and 30 rounds. A point compares plain CP-LoRA, CP-LoRA with private terms, and CP-LoRA whose norms
stay at the site with each site alone and with pooled training, in five trainings of each arm. The held-out patients of
all points with the same scans are the same.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import yaml

from sahfl.config import SitePolicy, Study, parse
from sahfl.local_study import is_finished, open_run, run_study
from sahfl.report.theme import DPI, EDGE, STYLE, encode, new_figure
from sahfl.run.folder import RunFolder

HERE = Path(__file__).parents[1]
STUDY, NUMBERS = HERE / "configs" / "map.yaml", HERE / "docs" / "map.json"
PICTURE = HERE / "docs" / "pictures" / "map.png"
RATERS = {"sah_a": -0.04, "sah_b": 0.04, "sah_c": 0.0}
"""Shift of each site's rater where raters differ."""
POINTS: Mapping[str, Mapping[str, Any]] = {
    "base": {},
    **{f"patients-{n}": {"patients": n} for n in (2, 4, 16, 32)},
    "unlike-none": {"scanners": False},
    "unlike-rater": {"scanners": False, "raters": True},
    "unlike-both": {"raters": True},
    "rounds-60": {"rounds": 60},
    "corner": {"patients": 4, "rounds": 60},
}
"""What each point changes of the base point: 8 patients, 12 rounds, three scanners, one rater."""
EVALUATED_ROUNDS = (4, 12, 30)
"""Rounds after which the trainings of 60 rounds are evaluated, beside the last."""
LEAST_PATIENTS = SitePolicy().adapters.least_patients
"""Training patients below which a site's default policy lets no update of an adapter leave; grey in the picture."""
ARMS = {"plain": "", "private terms": "-private4", "norms stay": "-stays-norm"}
"""Part of an arm's id."""
Tick = tuple[str, int | None]
"""A point, and the round after which it was evaluated; None after the last."""
_ROUNDS = {**{str(n): n for n in EVALUATED_ROUNDS}, "60": None}
AXES: Mapping[str, Mapping[str, Tick]] = {
    "training patients of a site": {str(n): ("base" if n == 8 else f"patients-{n}", None) for n in (2, 4, 8, 16, 32)},
    "sites differ in": {
        "nothing": ("unlike-none", None),
        "scanner": ("base", None),
        "rater": ("unlike-rater", None),
        "both": ("unlike-both", None),
    },
    "after so many of 60 rounds": {tick: ("rounds-60", round_) for tick, round_ in _ROUNDS.items()},
    "the same, 4 patients a site": {tick: ("corner", round_) for tick, round_ in _ROUNDS.items()},
}
"""The points of each axis, by the tick."""


def main() -> None:
    """Run what is missing, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", nargs="+", choices=list(POINTS), default=list(POINTS), help="points (default all)")
    parser.add_argument("--table", action="store_true", help="run nothing; table and picture of docs/map.json")
    parser.add_argument("--runs", type=Path, default=Path("runs/map"), help="folder of the runs (default runs/map)")
    options = parser.parse_args()
    found = finished_points()
    for point in options.points:
        if point not in found and not options.table:
            found[point] = run_point(point, options.runs)
            ordered = {name: found[name] for name in POINTS if name in found}
            NUMBERS.write_text(json.dumps({"study": "configs/map.yaml", "points": ordered}, indent=1) + "\n")
        if point in found:
            print_point(point, found[point]["rows"])
    PICTURE.write_bytes(picture({point: entry["rows"] for point, entry in found.items()}))


def finished_points() -> dict[str, Any]:
    """The points of ``docs/map.json`` whose settings are still those of ``configs/map.yaml``."""
    points = json.loads(NUMBERS.read_text())["points"] if NUMBERS.exists() else {}
    return {point: entry for point, entry in points.items() if entry["study"] == study_of(point).fingerprint()}


def run_point(point: str, runs: Path) -> dict[str, Any]:
    """Run what is missing of a point, and give what ``docs/map.json`` keeps of it."""
    study = study_of(point)
    results = finished(study, runs / point).results()
    return {"study": study.fingerprint(), "commit": commit(), "rows": list(rows_of(study, results))}


def finished(study: Study, path: Path) -> RunFolder:
    """The finished run of a study, run now as far as it is missing."""
    folder = open_run(study, path)
    if not is_finished(folder):
        run_study(folder, workers=None, lanes=None, cells=path.parent / "cells")
    return folder


def commit() -> str:
    """The commit of this working tree, and whether the package differs from it."""
    changed, head = (
        subprocess.run(["git", *command], cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()
        for command in (["status", "--porcelain", "sahfl"], ["rev-parse", "HEAD"])
    )
    return head + (" with changes" if changed else "")


def study_of(point: str) -> Study:
    """The study of a point."""
    settings, changes = yaml.safe_load(STUDY.read_text()), POINTS[point]
    settings["name"] = f"map-{point}"
    finetune, sites = settings["finetune"], settings["data"]["sites"]
    if "rounds" in changes:
        finetune |= {"rounds": changes["rounds"], "evaluated_rounds": list(EVALUATED_ROUNDS)}
    for entry in finetune["grid"]:
        entry["most_patients"] = changes.get("patients", entry["most_patients"])
    for name, site in sites.items():
        if not changes.get("scanners", True):
            site["profile"] = "standard"
        if changes.get("raters", False):
            site["rater_shift"] = RATERS.get(name, 0.0)
    return parse(Study, settings, where=f"point {point}")


def rows_of(study: Study, results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The difference of each arm from each site alone and from pooled training, with its 95 % interval, by round.

    A row without a round is of the end of the training.
    """
    last = {row["id"]: row["metrics"]["dice"]["overall"] for row in results["methods"]}
    overall = [row | row["metrics"]["dice"]["overall"] for row in results["comparisons"]]
    yield from _differences(study, None, last, overall)
    for entry in results["by_round"]:
        yield from _differences(
            study, entry["round"], {row["id"]: row for row in entry["methods"]}, entry["comparisons"]
        )


def _differences(
    study: Study, round_: int | None, dice: Mapping[str, Any], comparisons: Iterable[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    by_pair = {(row["method"], row["reference"]): row for row in comparisons}
    plain = next(method.id for method in study.finetune.methods)
    for name, part in ARMS.items():
        arm = plain.replace("r8", f"r8{part}")
        for place in ("each", "pooled"):
            reference = f"{plain}-{place}"
            numbers = {key: by_pair[arm, reference][key] for key in ("difference", "low", "high", "n", "trainings")}
            means = {"dice": dice[arm]["mean"], "dice_reference": dice[reference]["mean"]}
            yield {"arm": name, "reference": place, "round": round_, **means, **numbers}


def print_point(point: str, rows: list[dict[str, Any]]) -> None:
    """A line for each difference of a point."""
    for row in rows:
        gap = f"{row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"
        where = point if row["round"] is None else f"{point}, round {row['round']}"
        print(f"| {where} | {row['arm']} | {row['reference']} | {row['dice']:.3f} | {gap} |", flush=True)


def picture(found: Mapping[str, list[dict[str, Any]]]) -> bytes:
    """The gain of each arm over each site alone along each axis, as PNG."""
    with matplotlib.rc_context(STYLE):
        figure = new_figure(3.6, 9.6)
        widths = [len(ticks) for ticks in AXES.values()]
        panels = figure.subplots(1, len(AXES), sharey=True, width_ratios=widths)
        for axes, (axis, ticks) in zip(panels, AXES.items(), strict=True):
            axes.axhline(0, color=EDGE, linewidth=1)
            for tick, (point, _) in enumerate(ticks.values()):
                if POINTS[point].get("patients", LEAST_PATIENTS) < LEAST_PATIENTS:
                    axes.axvspan(tick - 0.45, tick + 0.45, color=EDGE, alpha=0.18, linewidth=0)
            for place, (arm, colour) in enumerate(zip(ARMS, ("#00578A", "#C8553D", "#4F7F3B"), strict=True)):
                shown = [
                    (tick + 0.18 * (place - 1), row)
                    for tick, (point, round_) in enumerate(ticks.values())
                    for row in found.get(point, ())
                    if (row["arm"], row["reference"], row["round"]) == (arm, "each", round_)
                ]
                gaps = [row["difference"] for _, row in shown]
                ends = [[abs(row[end] - row["difference"]) for _, row in shown] for end in ("low", "high")]
                axes.errorbar([x for x, _ in shown], gaps, ends, fmt="o", color=colour, markersize=4, label=arm)
            axes.set_xticks(range(len(ticks)), list(ticks))
            axes.set_xlabel(axis)
        panels[0].set_ylabel("Dice above each site alone")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=len(ARMS), frameon=False)
        return encode(figure, dpi=DPI)


if __name__ == "__main__":
    main()
