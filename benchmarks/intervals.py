"""How often do the 95 % intervals contain the true value? Made-up cohorts, thousands of them, with a known truth.

    python benchmarks/intervals.py                      # tables; about five minutes on one core
    python benchmarks/intervals.py --cohorts 200 --json # fewer cohorts, for machines
    python benchmarks/intervals.py --run RUN            # cohorts drawn from the patients of a finished simulation

*Trainings*: a method is compared with another one on the same patients. The difference of patient i in training r is
``a_i + b_r + e_ir``, normal, with mean 0 and the standard deviations of the row. Each cohort has new patients and new
trainings. "Patients only" is the interval of a study that takes its trainings for all that there could be.

*Means*: Dice of a beta distribution, and 0 in a share of the patients, who are missed. "Student" is the t interval.

*Differences*: a method against another one that differs from it by 0.03 (standard deviation) in each patient, and
misses or finds a share of the patients (``flips``) that the first one finds or misses.

*Distances*: means of log-normal values in mm.

*Run*: a cohort is drawn, with replacement, from the patients of a run and from the trainings of each two compared
methods, so that the difference over all of them is the truth. Of the verdicts by one comparison's own p values, "wrong"
is the share that calls a method better or worse on the wrong side of the truth, or not worse where it is worse by the
margin or more.

The randomness of a coverage from 2000 cohorts is half a percentage point (standard deviation).
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from machine import machine
from scipy import stats

from sahfl.errors import SahflError
from sahfl.federation.site.case_results import read_results
from sahfl.results.verdicts import BETTER, MARGIN, NOT_WORSE, UNDECIDED, WORSE, verdict_of
from sahfl.run.folder import RunFolder
from sahfl.statistics.cases import CaseResult
from sahfl.statistics.estimates import difference, estimate
from sahfl.statistics.groups import GroupSums
from sahfl.statistics.variances import Sample

REPLICATES = 300
SPREADS = ((0.10, 0.01, 0.05), (0.05, 0.01, 0.05), (0.05, 0.03, 0.05), (0.02, 0.03, 0.02), (0.05, 0.0, 0.05))
"""Standard deviations of Dice differences: between patients, between trainings, and of both together."""
DICE = ((2, 3, 0.0), (8, 2, 0.0), (8, 2, 0.05), (8, 2, 0.1), (8, 2, 0.2), (2, 3, 0.3), (2, 3, 0.9))
"""Parameters of the beta distribution, and the share of missed patients."""
FLIPS = ((2, 3, 0.1, 0.0), (2, 3, 0.1, 0.03), (2, 3, 0.3, 0.1), (8, 2, 0.0, 0.03), (8, 2, 0.1, 0.0), (8, 2, 0.1, 0.03))
"""The same, and the share of patients whom one method alone misses."""
LOG_SD = (0.5, 0.8, 1.2)
PATIENTS = (8, 15, 30)


@dataclass(frozen=True)
class Trainings:
    """Coverage with one number of patients and of trainings."""

    patients: int
    trainings: int
    sd_patients: float
    sd_trainings: float
    sd_both: float
    patients_only: float
    patients_and_trainings: float
    width: float
    """Median width of the intervals over patients and trainings, in Dice."""


@dataclass(frozen=True)
class Covered:
    """Coverage of one kind of values with one number of patients."""

    values: str
    patients: int
    student: float
    ours: float
    student_width: float
    """Median width of the t interval."""
    width: float


@dataclass(frozen=True)
class Drawn:
    """Coverage of one comparison of a run, in cohorts drawn from it."""

    comparison: str
    patients: int
    trainings: int
    truth: float
    patients_only: float
    patients_and_trainings: float
    decided: float
    """Share of cohorts with a verdict other than *undecided*."""
    wrong: float


Tables = dict[str, list[Trainings] | list[Covered] | list[Drawn]]


def main() -> None:
    """Measure and print."""
    options = parse()
    n = options.cohorts
    if options.run:
        try:
            rows = list(of_run(RunFolder(options.run), cohorts=n))
        except SahflError as error:
            sys.exit(f"error: {error}")
        if not rows:
            sys.exit(f"error: {options.run} compares no two methods that were each trained twice or more")
        return show({"run": rows}, options)
    found: Tables = {
        "trainings": [
            trainings(patients, number, spread, cohorts=n)
            for patients in (15, 30)
            for number in (2, 3, 5)
            for spread in SPREADS
        ],
        "means": [means(kind, patients, cohorts=n) for kind in DICE for patients in PATIENTS],
        "differences": [differences(kind, patients, cohorts=n) for kind in FLIPS for patients in PATIENTS],
        "distances": [distances(sd, patients, cohorts=n) for sd in LOG_SD for patients in PATIENTS],
    }
    show(found, options)


def show(found: Tables, options: argparse.Namespace) -> None:
    """Print tables of rows."""
    n = options.cohorts
    if options.json:
        tables = {name: [asdict(row) for row in rows] for name, rows in found.items()}
        print(json.dumps({"machine": machine(), "cohorts": n, **tables}))
        return
    for name, rows in found.items():
        print(f"\n{name}\n" + "  ".join(asdict(rows[0])))
        for row in rows:
            print(
                "  ".join(f"{value:.3f}" if isinstance(value, float) else str(value) for value in asdict(row).values())
            )
    print(machine())


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohorts", type=int, default=2000, help="cohorts for each row")
    parser.add_argument("--run", type=Path, help="folder of a finished simulation, instead of made-up cohorts")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def sums_of(dice: np.ndarray, *, seed: int, hd95_mm: np.ndarray | None = None) -> GroupSums:
    """The sums of one site's patients, (patients,) Dice, as the site computes them; a Dice of 0 is a miss."""
    far = np.full(dice.shape, 4.0) if hd95_mm is None else hd95_mm
    cases = [
        CaseResult(str(i), 20.0, 18.0 if value else 0.0, value, 0.5, mm if value else None, 0.5, 40.0)
        for i, (value, mm) in enumerate(zip(dice.clip(0, 1).tolist(), far.tolist(), strict=True))
    ]
    return GroupSums.of(cases, replicates=REPLICATES, seed=seed)


# ----------------------------------------------------------------------------------------------------------- trainings


def cohorts_of(
    patients: int, trainings: int, spread: tuple[float, float, float], *, cohorts: int
) -> Iterator[tuple[Sample, Sample]]:
    """Cohorts of a method that was trained several times and of a reference, whose true difference is 0."""
    over_patients, over_trainings, both = spread
    for seed in range(cohorts):
        random = np.random.default_rng(seed)
        reference = random.uniform(0.35, 0.65, patients)
        of_patient, of_training = random.normal(0, over_patients, patients), random.normal(0, over_trainings, trainings)
        dice = reference[:, None] + of_patient[:, None] + of_training + random.normal(0, both, (patients, trainings))
        dice = dice.clip(0.01, 1)
        each = {number: sums_of(column, seed=seed) for number, column in enumerate(dice.T, start=1)}
        yield Sample(sums_of(dice.mean(1), seed=seed), each), Sample(sums_of(reference, seed=seed), trained=False)


def trainings(patients: int, n: int, spread: tuple[float, float, float], *, cohorts: int) -> Trainings:
    """Coverage of the intervals of differences, over patients only, and over patients and trainings."""
    only, both, widths = 0, 0, []
    for method, reference in cohorts_of(patients, n, spread, cohorts=cohorts):
        once = difference(Sample(method.sums), reference, "dice")
        found = difference(method, reference, "dice")
        only += once.low <= 0 <= once.high
        both += found.low <= 0 <= found.high
        widths.append(found.high - found.low)
    return Trainings(patients, n, *spread, only / cohorts, both / cohorts, float(np.median(widths)))


# -------------------------------------------------------------------------------------------------- skewed values


def dice_of(random: np.random.Generator, patients: int, a: float, b: float, missed: float) -> np.ndarray:
    """Dice of made-up patients, of whom some are missed, shape (patients,)."""
    found = random.beta(a, b, patients).clip(0.001, 1)
    return np.where(random.random(patients) < missed, 0.0, found)


def means(kind: tuple[float, float, float], patients: int, *, cohorts: int) -> Covered:
    """Coverage of the interval of a mean Dice."""
    a, b, missed = kind
    truth, rows = (1 - missed) * a / (a + b), []
    for seed in range(cohorts):
        dice = dice_of(np.random.default_rng(seed), patients, *kind)
        found = estimate(Sample(sums_of(dice, seed=seed), trained=False), "dice")
        rows.append((*_student(dice), found.low, found.high))
    return _covered(f"beta({a}, {b}), {missed:.0%} missed", patients, truth, rows)


def differences(kind: tuple[float, float, float, float], patients: int, *, cohorts: int) -> Covered:
    """Coverage of the interval of a difference in Dice."""
    a, b, missed, flips = kind
    truth = (pair := _pair(np.random.default_rng(10**6), 10**6, kind))[0].mean() - pair[1].mean()
    rows = []
    for seed in range(cohorts):
        ours, theirs = _pair(np.random.default_rng(seed), patients, kind)
        samples = [Sample(sums_of(dice, seed=seed), trained=False) for dice in (ours, theirs)]
        found = difference(*samples, "dice")
        rows.append((*_student(ours - theirs), found.low, found.high))
    return _covered(f"beta({a}, {b}), {missed:.0%} missed, {flips:.0%} flips", patients, float(truth), rows)


def _pair(
    random: np.random.Generator, patients: int, kind: tuple[float, float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
    a, b, missed, flips = kind
    theirs, other = dice_of(random, patients, a, b, missed), dice_of(random, patients, a, b, 0.0)
    near = np.where(theirs > 0, (theirs + random.normal(0, 0.03, patients)).clip(0.001, 1), 0.0)
    return np.where(random.random(patients) < flips, np.where(theirs > 0, 0.0, other), near), theirs


def distances(sd: float, patients: int, *, cohorts: int) -> Covered:
    """Coverage of the interval of a mean HD95 without misses."""
    truth, rows = 10 * float(np.exp(sd**2 / 2)), []
    for seed in range(cohorts):
        far = 10 * np.exp(np.random.default_rng(seed).normal(0, sd, patients))
        found = estimate(Sample(sums_of(np.full(patients, 0.5), seed=seed, hd95_mm=far), trained=False), "hd95_mm")
        rows.append((*_student(far), found.low, found.high))
    return _covered(f"log-normal, {sd:g}", patients, truth, rows)


def _student(values: np.ndarray) -> tuple[float, float]:
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def _covered(name: str, patients: int, truth: float, rows: list[tuple[float, float, float, float]]) -> Covered:
    ends = np.array(rows)
    inside = [np.mean((ends[:, i] <= truth) & (truth <= ends[:, i + 1])) for i in (0, 2)]
    widths = [np.median(ends[:, i + 1] - ends[:, i]) for i in (0, 2)]
    return Covered(name, patients, *map(float, (*inside, *widths)))


# ---------------------------------------------------------------------------------------------------------------- run


def of_run(run: RunFolder, *, cohorts: int) -> Iterator[Drawn]:
    """The coverage of each comparison of a run of which each method was trained more than once."""
    known = dice_of_run(run)
    for row in run.results()["comparisons"]:
        ours, theirs = known.get(row["method"]), known.get(row["reference"])
        if ours is not None and theirs is not None and min(ours.shape[1], theirs.shape[1]) > 1:
            for patients in (30, len(ours)):
                name = f"{row['method']} against {row['reference']}"
                yield drawn(name, ours, theirs, patients, cohorts=cohorts)


def dice_of_run(run: RunFolder) -> dict[str, np.ndarray]:
    """Dice of the patients with blood, (patients, trainings), by the id of a row; each patient's own part at a site."""
    study = run.study()
    found: dict[str, dict[int, dict[str, float]]] = {}
    for site in study.finetune.sites:
        for line in read_results(run.path / "sites" / site):
            if line.result.volume_ml > 0 and line.part in (None, "personal"):
                row = re.sub(r"-repeat\d+", "", line.method).replace(f"-at-{site}", "-each")
                found.setdefault(row, {}).setdefault(line.repeat, {})[f"{site} {line.case}"] = line.result.dice or 0.0
    patients = sorted({case for row in found.values() for training in row.values() for case in training})
    return {
        row: np.array([[training[case] for training in trainings.values()] for case in patients])
        for row, trainings in found.items()
        if all(len(training) == len(patients) for training in trainings.values())
    }


def drawn(name: str, ours: np.ndarray, theirs: np.ndarray, patients: int, *, cohorts: int) -> Drawn:
    """Coverage of a difference in cohorts of patients and trainings, drawn with replacement; (all patients, trainings).

    Trainings of one number are drawn together, because they train on the same batches.
    """
    truth = float(ours.mean() - theirs.mean())
    n = min(ours.shape[1], theirs.shape[1])
    ours, theirs = ours[:, :n], theirs[:, :n]
    only = both = decided = wrong = 0
    for seed in range(cohorts):
        random = np.random.default_rng(seed)
        rows, columns = random.integers(len(ours), size=patients), random.integers(n, size=n)
        samples = [_sample(dice[rows][:, columns], seed=seed) for dice in (ours, theirs)]
        once = difference(*(Sample(sample.sums) for sample in samples), "dice")
        gap = difference(*samples, "dice", margin=MARGIN)
        only += once.low <= truth <= once.high
        both += gap.low <= truth <= gap.high
        row = {"difference": gap.value, "high": gap.high, "p_holm": gap.p, "trainings": n}
        verdict = verdict_of(row, gap.p_margin)
        decided += verdict != UNDECIDED
        wrong += (verdict == BETTER and truth <= 0) or (verdict == WORSE and truth >= 0)
        wrong += verdict == NOT_WORSE and truth <= -MARGIN
    shares = [float(count) / cohorts for count in (only, both, decided, wrong)]
    return Drawn(name, patients, n, truth, *shares)


def _sample(dice: np.ndarray, *, seed: int) -> Sample:
    """A method's sample from Dice (patients, trainings)."""
    each = {number: sums_of(column, seed=seed) for number, column in enumerate(dice.T, start=1)}
    return Sample(sums_of(dice.mean(1), seed=seed), each)


if __name__ == "__main__":
    main()
