"""One attempt at a masked round of training; what comes out is the mean of the sites' changes, and of their losses."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from sahfl.adapters import AdapterState
from sahfl.federation import protocol
from sahfl.federation.masked_terms import BITS
from sahfl.federation.masked_vectors import read_masked_reply
from sahfl.federation.protocol import TrainReply
from sahfl.federation.server.cell import Cell, MaskedSum, Run
from sahfl.federation.server.masked_progress import Answered, file_of
from sahfl.federation.server.masked_steps import MaskedSteps
from sahfl.masking.collector import Total
from sahfl.masking.masks import Numbers
from sahfl.payload import Header, layout
from sahfl.task import Task


class MaskedRound(MaskedSteps):
    """One attempt at a masked round; ``outcome`` has who is in the sum and the sum.

    Args:
        cell: the training.
        task: of the round.
        header: names the training and the round.
        contents: the training request to each site that is there.
        like: the tensors that train in this round, as they were sent.
        run: the study's sites, and its deadline.
        quorum: fewest sites whose vectors, or held back updates, make the round count.
    """

    KIND, WORK, BITS = protocol.TRAIN, "training", BITS

    def __init__(
        self,
        cell: Cell,
        task: Task,
        header: Header,
        contents: Mapping[str, RecordDict],
        like: AdapterState,
        run: Run,
        quorum: int,
    ) -> None:
        self._like = like
        path, length = file_of(run.folder.path, cell.key), 1 + sum(value.size for value in like.values())
        super().__init__(cell.key, task, header, contents, path=path, run=run, quorum=quorum, length=length)

    @property
    def notes(self) -> dict[str, Any]:
        """Fields of the round's line in the journal."""
        terms, sites = self.progress.terms, [one.advert.site for one in self.progress.listed]
        found = {"attempt": terms.attempt, "clip": self._masking.clip, "listed": sites, "silent": self.silent}
        loss = None if self.outcome.masked is None else self.outcome.masked.loss
        return {"masked": found | {"shared": sorted(self.progress.shares)}, "loss": loss}

    def _read(self, site: str, content: RecordDict) -> tuple[Numbers, Answered]:
        most, names = self.progress.terms.volumes[site], layout(self._like)
        found = read_masked_reply(content, header=self._header, layout=names, most_volumes=most)
        return found.vector, Answered(found.n_volumes, found.seconds)

    def _settle(self, sites: Collection[str]) -> None:
        """Each round may be of other sites."""

    def _decode(self, total: Total) -> None:
        terms, answered = self.progress.terms, self.progress.answered
        share = sum(answered[site].n_volumes for site in total.sites) / terms.total
        form, of_loss = terms.forms(self._masking.clip)
        flat = form.decode(total.numbers[:-1]) / share
        loss = float(of_loss.decode(total.numbers[-1:])[0] / share)
        change, start = dict[str, NDArray[np.float64]](), 0
        for name, value in self._like.items():
            change[name] = flat[start : start + value.size].reshape(value.shape)
            start += value.size
        self.outcome.masked = MaskedSum(change, loss)
        for site in total.sites:
            one, n_bytes = answered[site], self.n_bytes_up.get(site, 0)
            self.n_bytes_down.setdefault(site, 0)
            self.outcome.used[site] = TrainReply({}, one.n_volumes, None, one.seconds, n_bytes)
