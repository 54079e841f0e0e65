"""The evidence: ``configs/evidence.yaml`` run to its end, with its claims and rows as tables.

    python benchmarks/evidence.py            # what is missing of the study; docs/evidence.json; the page
    python benchmarks/evidence.py --table    # runs nothing: the page of docs/evidence.json and docs/map.json

On the same patients, some methods are also trained on axial slices alone, and in three rounds alone. An interrupted
call goes on where it ended (``runs/evidence``). The JSON keeps each claim with its verdict, each row of the results,
the commit and the machine. From it come the tables of ``docs/evidence.md``, between its marks, and the picture.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import yaml
from machine import machine
from when_it_pays import NUMBERS as MAP
from when_it_pays import commit, finished

from sahfl.config import Study, parse
from sahfl.report.names import method_name
from sahfl.report.theme import DPI, STYLE, encode, new_figure
from sahfl.results.between_runs import compare_runs
from sahfl.run.folder import RunFolder

HERE = Path(__file__).parents[1]
STUDY, NUMBERS = HERE / "configs" / "evidence.yaml", HERE / "docs" / "evidence.json"
PAGE, PICTURE = HERE / "docs" / "evidence.md", HERE / "docs" / "pictures" / "evidence.png"
FINDING = ("id", "claim", "paper", "wanted", "verdict", "supported", "text")
FEW_ROUNDS = 3
GAP = ("difference", "low", "high", "n", "trainings")


def main() -> None:
    """Run what is missing, and write the JSON and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="run nothing; only write the page")
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence"), help="folder of the runs")
    options = parser.parse_args()
    if not options.table:
        found: list[RunFolder] = []
        for name, study in studies().items():
            found.append(finished(study, options.runs / name))
            NUMBERS.write_text(json.dumps(numbers(*found), indent=1) + "\n")
    text = PAGE.read_text()
    for table in (conditions, claims, methods, few_rounds, views, *([when_it_pays] if MAP.exists() else [])):
        begin, end = f"<!-- table: {table.__name__} -->", "<!-- end -->"
        before, _, after = text.partition(begin)
        text = "\n".join([before + begin, *table(), end + after.partition(end)[2]])
    PAGE.write_text(text)
    PICTURE.write_bytes(picture())
    print(f"{PAGE}\n{PICTURE}")


def studies() -> dict[str, Study]:
    """The study, and with some of its methods the same in three rounds, and the same on axial slices alone."""
    settings = yaml.safe_load(STUDY.read_text())
    found = {"three-views": parse(Study, settings, where=str(STUDY))}
    finetune, views = settings["finetune"], settings["views"]
    whole = [entry for entry in finetune["grid"] if entry["method"] == "full"]
    from_base = [entry for entry in whole if "start" not in entry] + [{"method": "cp_lora", "rank": 8, "repeats": 5}]
    scratch = [entry for entry in whole if "start" in entry]
    changes = {
        "few-rounds": {"finetune": finetune | {"methods": [], "grid": from_base + scratch, "rounds": FEW_ROUNDS}},
        "one-view": {
            "finetune": finetune | {"methods": [], "grid": from_base},
            "views": views | {"weights": {"axial": 1.0}},
        },
    }
    for name, change in changes.items():
        found[name] = parse(Study, settings | {"name": f"evidence-{name}"} | change, where=f"{STUDY}, {name}")
    return found


def numbers(run: RunFolder, few_rounds: RunFolder | None = None, one_view: RunFolder | None = None) -> dict[str, Any]:
    """What the JSON keeps; the first run's numbers do not wait for the others."""
    results = run.results()
    views = compare_runs(run, one_view)["comparisons"] if one_view else []
    few = few_rounds.results() if few_rounds else {"methods": [], "comparisons": []}
    from_base = [row for row in few["comparisons"] if row["reference"] == "full-scratch"]
    return {
        "study": "configs/evidence.yaml",
        "fingerprint": results["fingerprint"],
        "commit": commit(),
        "machine": machine(),
        "minutes": round(results["seconds"] / 60),
        "findings": [{key: finding[key] for key in FINDING} for finding in results["findings"]],
        "views": [
            {"method": row["id"]} | {key: row["metrics"]["dice"]["overall"][key] for key in GAP} for row in views
        ],
        "few_rounds": {
            "methods": [row_of(method) for method in few["methods"]],
            "comparisons": [
                {"method": row["method"]} | {key: row["metrics"]["dice"]["overall"][key] for key in GAP}
                for row in from_base
            ],
        },
        "methods": [row_of(method) for method in results["methods"] if method["failed"] is None],
    }


def row_of(method: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the results: numbers that train, bytes, Dice with its interval, and the spread between trainings."""
    dice = method["metrics"]["dice"]["overall"]
    kept = {key: method[key] for key in ("id", "trainable", "bytes_up_per_round", "sd_repeats")}
    return kept | {"name": method_name(method)} | {key: dice[key] for key in ("mean", "low", "high", "n", "trainings")}


def claims() -> Iterator[str]:
    """A row for each claim that the study tests."""
    yield "| claim | in the paper | outcome | comparisons |\n|---|---|---|---|"
    for finding in read(NUMBERS)["findings"]:
        if finding["verdict"] != "not tested":
            outcome = {True: "supported", False: "contradicted", None: "not decided"}[finding["supported"]]
            yield f"| {finding['claim']} | {finding['paper'] or '–'} | {outcome} | {finding['text']} |"


def methods() -> Iterator[str]:
    """A row for each row of the results."""
    yield "| method | trains | sends a round | Dice | trainings |\n|---|---|---|---|---|"
    for row in read(NUMBERS)["methods"]:
        dice = "none" if row["low"] is None else f"{row['mean']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
        size = f"{row['bytes_up_per_round'] / 1000:.1f} kB" if row["bytes_up_per_round"] else "nothing"
        yield f"| {row['name']} | {row['trainable']:,} | {size} | {dice} | {row['trainings']} |"


def views() -> Iterator[str]:
    """A row for each method that was trained on three views and on one."""
    yield "| method | Dice of three views above one |\n|---|---|"
    for row in read(NUMBERS)["views"]:
        yield f"| `{row['method']}` | {signed(row)} |"


def few_rounds() -> Iterator[str]:
    """A row for each method that starts from the base, and what it is above training from scratch in three rounds."""
    yield f"| method, {FEW_ROUNDS} rounds | Dice | above training from scratch |\n|---|---|---|"
    found = read(NUMBERS)["few_rounds"]
    gaps = {row["method"]: signed(row) for row in found["comparisons"]}
    for row in found["methods"]:
        dice = f"{row['mean']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
        yield f"| {row['name']} | {dice} | {gaps.get(row['id'], '–')} |"


def conditions() -> Iterator[str]:
    """What was run."""
    found = read(NUMBERS)
    yield f"Commit {found['commit'][:12]}, {found['minutes']} minutes; {found['machine']}."


def when_it_pays() -> Iterator[str]:
    """A row for each point of the map, with the gain of each arm over each site alone and over pooled training."""
    points = read(MAP)["points"]
    arms = list(dict.fromkeys(row["arm"] for row in next(iter(points.values()))["rows"]))
    yield f"| point | against | {' | '.join(arms)} |\n|---|---|{'---|' * len(arms)}"
    for point, entry in points.items():
        for round_ in dict.fromkeys(row["round"] for row in entry["rows"]):
            rows = [row for row in entry["rows"] if row["round"] == round_]
            where = point if round_ is None else f"{point}, after round {round_}"
            for reference, name in (("each", "each site alone"), ("pooled", "pooled")):
                gaps = [signed(row) for row in rows if row["reference"] == reference]
                yield f"| {where} | {name} | {' | '.join(gaps)} |"


def picture() -> bytes:
    """The Dice of each row with its interval against the bytes that a site sends in a round, as PNG."""
    shown = [row for row in read(NUMBERS)["methods"] if row["low"] is not None and "-at-" not in row["id"]]
    rows = sorted(shown, key=lambda row: row["mean"])
    with matplotlib.rc_context(STYLE):
        figure = new_figure(0.3 * len(rows) + 0.8, 9.6)
        axes = figure.subplots()
        means = [row["mean"] for row in rows]
        ends = [[abs(row[end] - row["mean"]) for row in rows] for end in ("low", "high")]
        axes.errorbar(means, range(len(rows)), xerr=ends, fmt="o", color="#00578A", markersize=5)
        names = [f"{row['id']}  ({row['bytes_up_per_round'] / 1000:,.0f} kB)" for row in rows]
        axes.set_yticks(range(len(rows)), names)
        axes.set_xlabel("Dice (interval of 95 %)")
        return encode(figure, dpi=DPI)


def signed(row: Mapping[str, Any]) -> str:
    """A difference with its interval, if it has one."""
    interval = "no interval" if row["low"] is None else f"{row['low']:+.3f} to {row['high']:+.3f}"
    return f"{row['difference']:+.3f} ({interval})"


def read(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text())


if __name__ == "__main__":
    main()
