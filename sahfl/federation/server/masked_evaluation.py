"""One attempt at the masked evaluation of a method on a fold; what comes out is one sum over the sites."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.app import RecordDict

from sahfl.config import EvaluationConfig
from sahfl.federation import protocol
from sahfl.federation.masked_messages import purpose_of
from sahfl.federation.masked_vectors import read_masked_evaluation_reply
from sahfl.federation.server.cell import Run
from sahfl.federation.server.masked_progress import Answered, file_of
from sahfl.federation.server.masked_steps import MaskedSteps
from sahfl.masking.collector import Total
from sahfl.masking.masks import Numbers
from sahfl.masking.ring import decode_exact
from sahfl.payload import Header
from sahfl.run.folder import Record
from sahfl.statistics.consortium import Thresholds, total_length, withheld_total
from sahfl.task import Task


class MaskedEvaluation(MaskedSteps):
    """One attempt at a masked evaluation; ``found`` is its result.

    Args:
        cell: key of the training.
        task: of the evaluation, with its settings.
        header: names the training.
        contents: the request to each site that is there.
        run: the study's sites, and its deadline.
    """

    KIND, WORK, BITS = protocol.EVALUATE_MASKED, "evaluation", 64

    def __init__(self, cell: str, task: Task, header: Header, contents: Mapping[str, RecordDict], run: Run) -> None:
        assert task.evaluation is not None
        self._settings: EvaluationConfig = task.evaluation
        self.found: Record | None = None
        """``sites`` whose patients are in the sums, and the ``sums``, as in the file; None without a sum."""
        path, length = file_of(run.folder.path, cell, purpose_of(task)), 2 * total_length(self._settings)
        super().__init__(cell, task, header, contents, path=path, run=run, quorum=0, length=length)

    @property
    def notes(self) -> dict[str, Any]:
        """Fields of the evaluation's line in the journal."""
        listed = [one.advert.site for one in self.progress.listed]
        sites = [] if self.found is None else self.found["sites"]
        sent = {"bytes_up": self.n_bytes_up, "bytes_down": self.n_bytes_down}
        return {"attempt": self.progress.terms.attempt, "listed": listed, "used": sites, "silent": self.silent} | sent

    @property
    def seconds(self) -> float:
        """Work of the sites in the sum."""
        return sum(one.seconds for one in self.progress.answered.values())

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
