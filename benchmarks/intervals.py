"""How often do the 95 % intervals contain the true value? Made-up cohorts, thousands of them, with a known truth.

    python benchmarks/intervals.py                      # tables; about three minutes on one core
    python benchmarks/intervals.py --cohorts 200 --json # fewer cohorts, for machines

*Trainings*: a method is compared with another one on the same patients. The difference of patient i in training r is
``a_i + b_r + e_ir``, normal, with mean 0 and the standard deviations of the row. Each cohort has new patients and new
trainings. "Patients only" is the interval of a study that takes its trainings for all that there could be.
The randomness of a coverage from 2000 cohorts is half a percentage point (standard deviation).
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from machine import machine

from sahfl.statistics.cases import CaseResult
from sahfl.statistics.estimates import difference
from sahfl.statistics.groups import GroupSums
from sahfl.statistics.variances import Sample

REPLICATES = 300
SPREADS = ((0.10, 0.01, 0.05), (0.05, 0.01, 0.05), (0.05, 0.03, 0.05), (0.02, 0.03, 0.02), (0.05, 0.0, 0.05))
"""Standard deviations of Dice differences: between patients, between trainings, and of both together."""


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


def main() -> None:
    """Measure and print."""
    options = parse()
    rows = [
        trainings(patients, n, spread, cohorts=options.cohorts)
        for patients in (15, 30)
        for n in (2, 3, 5)
        for spread in SPREADS
    ]
    if options.json:
        print(
            json.dumps({"machine": machine(), "cohorts": options.cohorts, "trainings": [asdict(row) for row in rows]})
        )
        return
    print("patients  trainings  SD patients  SD trainings  SD both  patients only  both  width")
    for row in rows:
        spread = f"{row.sd_patients:11.2f}  {row.sd_trainings:12.2f}  {row.sd_both:7.2f}"
        covered = f"{row.patients_only:13.1%}  {row.patients_and_trainings:4.1%}  {row.width:.3f}"
        print(f"{row.patients:8}  {row.trainings:9}  {spread}  {covered}")
    print(machine())


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohorts", type=int, default=2000, help="cohorts for each row")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def sums_of(dice: np.ndarray, *, seed: int) -> GroupSums:
    """The sums of one site's patients, (patients,) Dice, as the site computes them."""
    cases = [
        CaseResult(str(i), 20.0, 18.0, float(value), 0.5, 4.0, 0.5, 40.0) for i, value in enumerate(dice.clip(0, 1))
    ]
    return GroupSums.of(cases, replicates=REPLICATES, seed=seed)


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
        each = {number: sums_of(column, seed=seed) for number, column in enumerate(dice.T, start=1)}
        average = sums_of(dice.clip(0, 1).mean(1), seed=seed)
        yield Sample(average, each), Sample(sums_of(reference, seed=seed), trained=False)


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


if __name__ == "__main__":
    main()
