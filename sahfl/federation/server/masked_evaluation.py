"""One attempt at the masked evaluation of a method on a fold; what comes out is one sum over the sites."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from flwr.app import RecordDict

from sahfl.config import EvaluationConfig
from sahfl.errors import MaskingFailed
from sahfl.federation import protocol
from sahfl.federation.masked_terms import purpose_of
from sahfl.federation.masked_vectors import read_masked_evaluation_reply
from sahfl.federation.server.cell import Run
from sahfl.federation.server.masked_progress import (
    Answered,
    file_of,
    path_of_fold,
    read_sites_of_fold,
    write_sites_of_fold,
)
from sahfl.federation.server.masked_steps import MaskedSteps
from sahfl.federation.server.schedule import Steps
from sahfl.masking.collector import Total
from sahfl.masking.masks import Numbers
from sahfl.masking.ring import decode_exact
from sahfl.payload import Header
from sahfl.run.folder import Record
from sahfl.statistics.consortium import Thresholds, total_length, withheld_total
from sahfl.task import SiteDescription, Task

ONE_SET = "all masked evaluations of a fold are over the same sites, because two could be subtracted"


class MaskedEvaluation(MaskedSteps):
    """One attempt at a masked evaluation; ``found`` is its result.

    Args:
        cell: key of the training.
        task: of the evaluation, with its settings.
        header: names the training.
        contents: the request to each site that is there; those that no sum over this fold has are left out.
        run: the study's sites, and its deadline.
        quorum: fewest sites in the first sum over a fold; each later one has the sites of the first.

    Raises:
        MaskingFailed: as ``read_sites_of_fold``.
    """

    KIND, WORK, BITS, AGAIN = protocol.EVALUATE_MASKED, "evaluation", 64, True

    def __init__(
        self, cell: str, task: Task, header: Header, contents: Mapping[str, RecordDict], run: Run, *, quorum: int = 0
    ) -> None:
        assert task.evaluation is not None
        self._settled = read_sites_of_fold(run.folder.path, task.evaluated_fold)
        if self._settled is not None:
            contents, quorum = {site: one for site, one in contents.items() if site in self._settled}, 0
        self._settings: EvaluationConfig = task.evaluation
        self.found: Record | None = None
        """``sites`` whose patients are in the sums, and the ``sums``, as in the file; None without a sum."""
        path, length = file_of(run.folder.path, cell, purpose_of(task)), 2 * total_length(self._settings)
        super().__init__(cell, task, header, contents, path=path, run=run, quorum=quorum, length=length)

    @property
    def notes(self) -> dict[str, Any]:
        """Fields of the evaluation's line in the journal."""
        listed = [one.advert.site for one in self.progress.listed]
        sites = [] if self.found is None else self.found["sites"]
        sent = {"bytes_up": self.n_bytes_up, "bytes_down": self.n_bytes_down}
        known = {"attempt": self.progress.terms.attempt, "listed": listed, "used": sites, "silent": self.silent}
        return known | sent | {"strictest": self._strictest(sites)}

    def _strictest(self, sites: Collection[str]) -> Record:
        """By threshold of the sites' policies, the largest, which the total met, and the sites that have it."""
        found: Record = {}
        for name in ("smallest_group", "smallest_bootstrap"):
            asked = {site: getattr(self.progress.answered[site], name) for site in sites}
            most = max(asked.values(), default=0)
            found[name] = {"patients": most, "sites": [site for site, n in asked.items() if n == most]}
        return found

    @property
    def seconds(self) -> float:
        """Work of the sites in the sum."""
        return sum(one.seconds for one in self.progress.answered.values())

    def run(self) -> Steps[None]:
        """As ``MaskedSteps.run``; not begun without a site that the sum must have."""
        if not self.progress.answered and self._contents:
            self.failure = self._hindrance()
        if not self.failure:
            yield from super().run()

    def _hindrance(self) -> str:
        """Why no sum can be begun or gone on with; empty if one can."""
        if lacking := sorted(set(self._settled or ()) - self._contents.keys()):
            path = path_of_fold(self._run.folder.path, self._task.evaluated_fold)
            left = f"each hospital calls sahfl-client forget-sums, and {path} is deleted here"
            return f"{', '.join(lacking)} is not there; {ONE_SET}. If it left for good, {left}"
        return self.progress.terms.lack_of_patients(self._contents) or ""

    def _size_of(self, site: SiteDescription) -> int:
        return site.fold_sizes[self._task.evaluated_fold]

    def _settle(self, sites: Collection[str]) -> None:
        folder, fold = self._run.folder.path, self._task.evaluated_fold
        settled = read_sites_of_fold(folder, fold)  # another evaluation may have ended since this one began
        if settled is None:
            write_sites_of_fold(folder, fold, sites)
        elif set(sites) != set(settled):
            raise MaskingFailed(f"{self._what}: {len(sites)} sites sent a masked vector; {ONE_SET}")

    def _read(self, site: str, content: RecordDict) -> tuple[Numbers, Answered]:
        n_numbers = total_length(self._settings)
        found = read_masked_evaluation_reply(content, header=self._header, n_numbers=n_numbers)
        return found.vector, Answered(self.progress.terms.volumes[site], found.seconds, **vars(found.thresholds))

    def _decode(self, total: Total) -> None:
        numbers = decode_exact(total.numbers, n_sites=len(self.progress.terms.volumes))
        answered = [self.progress.answered[site] for site in total.sites]
        thresholds = Thresholds.strictest(Thresholds(one.smallest_group, one.smallest_bootstrap) for one in answered)
        sums = withheld_total(numbers, self._settings, thresholds)
        self.found = {"sites": list(total.sites), "sums": [float(value) for value in sums.to_array()]}
