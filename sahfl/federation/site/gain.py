"""The gain of taking part: mean Dice of the federation's networks minus that of this site's own, on its own patients.

A study that trains a method both at all sites and at this site alone (``trained_at``) measures it. A network of the
federation counts only if this site answered a round of its training. Of a method with a
part at each site, the federation's network is the one with this site's part, and training alone may be that of the same
method without parts. The site computes the gain from its results per case (``case_results``), so that no number of it
leaves. The two networks of a fold segmented the same patients, so the difference is paired, and its interval is that of
the comparisons in ``results.json``: over patients and, if both were trained more than once, over trainings.

``policy.require_gain`` refuses further training of a method whose interval lies below a margin. One training decides
nothing, here as everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sahfl.config import EvaluationConfig, SiteConfig, ZeroShot
from sahfl.errors import NoGain
from sahfl.federation.site.case_results import read_results
from sahfl.results.evidence import signed
from sahfl.statistics.cases import CaseResult
from sahfl.statistics.estimates import Estimate, difference
from sahfl.statistics.sums import EvaluationSums, average
from sahfl.statistics.variances import Sample
from sahfl.task import Task

SETTINGS = EvaluationConfig(volume_edges_ml=(), extent_edges_mm=(), replicates=2000)
"""All cases in one group."""
Cases = Mapping[str, CaseResult]
"""Results of one training, by case."""


@dataclass(frozen=True)
class Gain:
    """What one study measured about one method at this site."""

    study: str
    method: str
    """Id of the method, as the federation trains it."""
    together: float
    """Mean Dice of the federation's networks."""
    alone: float
    """Mean Dice of the networks that were trained at this site alone."""
    difference: Estimate

    def __str__(self) -> str:
        found, n = self.difference, self.difference.n
        dice = f"Dice {self.together:.3f} together, {self.alone:.3f} alone, n = {n}"
        if found.value is None or found.low is None or found.high is None:
            return f"{self.method}: {dice}; too few patients for an interval"
        within = f"{signed(found.value)} ({signed(found.low)} to {signed(found.high)}"
        if found.trainings == 1:
            return f"{self.method}: {within}, over patients only); one training: no verdict. {dice}"
        if found.low > 0:
            words = f"gains you {found.value:.3f} ({found.low:.3f} to {found.high:.3f})"
        elif found.high < 0:
            words = f"costs you {-found.value:.3f} ({-found.high:.3f} to {-found.low:.3f})"
        else:
            words = f"makes no clear difference to you, {within})"
        return f"{self.method}: taking part {words}. {dice}"

    def row(self) -> dict[str, Any]:
        """All numbers by name."""
        found = self.difference
        numbers = {"n": found.n, "difference": found.value, "low": found.low, "high": found.high, "p": found.p}
        about = {"study": self.study, "method": self.method, "dice": self.together, "dice_alone": self.alone}
        return about | numbers | {"trainings": found.trainings}


def measure_gains(folder: Path, site: str) -> list[Gain]:
    """The gain of every method of every study that trained it both at all sites and at this site alone.

    It is over the cases with blood that the first training of both has segmented; a further training counts once it has
    all of them. Studies are in the order of their last result.
    """
    together: dict[tuple[str, str], dict[int, dict[str, CaseResult]]] = {}
    alone: dict[tuple[str, str], dict[int, dict[str, CaseResult]]] = {}
    plain: dict[str, str] = {}
    last: dict[str, int] = {}
    for place, kept in enumerate(read_results(folder)):
        last[kept.study] = place
        ours = kept.took_part and kept.trained_at in (None, site) and kept.part in (None, "personal")
        if ours and kept.result.volume_ml > 0:
            plain[kept.federated] = kept.plain
            arm = together if kept.trained_at is None else alone
            trainings = arm.setdefault((kept.study, kept.federated), {})
            trainings.setdefault(kept.repeat, {})[f"{kept.fold} {kept.case}"] = kept.result
    found = []
    for study, method in sorted(together, key=lambda key: (last[key[0]], key[1])):
        own = alone.get((study, method)) or alone.get((study, plain[method]))
        if own and (gain := _gain(study, method, together[study, method], own)) is not None:
            found.append(gain)
    return found


def refuse_loss(config: SiteConfig, task: Task) -> None:
    """Refuse to train a method that makes this site lose, by the last study that measured it.

    Raises:
        NoGain: the whole interval of the gain lies below ``policy.require_gain``.
    """
    least, method = config.policy.require_gain, task.method
    if least is None or method is None or isinstance(method, ZeroShot) or method.trained_at is not None:
        return
    plain = method.model_copy(update={"repeat": 1}).id
    measured = [gain for gain in measure_gains(config.folder, config.name) if gain.method == plain]
    if not measured:
        return
    gain = measured[-1]
    if loses(gain.difference.high, gain.difference.trainings, least):
        found = f"measured in study {gain.study[:12]}: {gain}"
        text = f"policy.require_gain: expected a gain of {least:g} or more over training alone, {found}"
        raise NoGain(f"site {config.name}: is asked to train what makes it lose. {text}")


def loses(high: float | None, trainings: int, least: float) -> bool:
    """Whether the whole interval of a gain lies below the least gain; one training decides nothing."""
    return high is not None and trainings != 1 and high < least


def _gain(study: str, method: str, together: Mapping[int, Cases], alone: Mapping[int, Cases]) -> Gain | None:
    cases = sorted(together[min(together)].keys() & alone[min(alone)].keys())
    if not cases:
        return None
    first, second = _sample(together, cases), _sample(alone, cases)
    means = [float(sample.sums.totals[0]) / sample.sums.n for sample in (first, second)]
    return Gain(study, method, means[0], means[1], difference(first, second, "dice"))


def _sample(trainings: Mapping[int, Cases], cases: Sequence[str]) -> Sample:
    """The sums over some cases, of the trainings that segmented all of them."""
    each = {
        number: EvaluationSums.of([found[case] for case in cases], SETTINGS, seed=0)
        for number, found in sorted(trainings.items())
        if all(case in found for case in cases)
    }
    return Sample(average(list(each.values())).overall, {number: sums.overall for number, sums in each.items()})
