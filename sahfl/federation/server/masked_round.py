"""One attempt at a masked round: keys, shares, training, survivors, reveal; what comes out is the mean over the sites.

Each step is an ``Ask`` to those who answered the step before; who does not answer has dropped out, and the journal has
the step. What a step decided is on disk before the next one begins (``masked_progress``). An attempt that fails before
the training begins anew with other keys. One that fails later is gone on with: the same questions once more, because a
site masks its update of a round once. If it fails for good, the round is lost (``Outcome.spent``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, RecordDict
from numpy.typing import NDArray

from sahfl.adapters import AdapterState
from sahfl.errors import MaskingFailed, PayloadError
from sahfl.events import SiteLeftOut, Warned, emit
from sahfl.federation import masked_messages as messages
from sahfl.federation import protocol
from sahfl.federation.masked_messages import Terms, with_record
from sahfl.federation.masked_signatures import is_consistent
from sahfl.federation.protocol import TrainReply
from sahfl.federation.server.cell import Cell, MaskedSum, Outcome, Run
from sahfl.federation.server.mailbox import Answers, Ask
from sahfl.federation.server.masked_progress import Answered, Progress, file_of, read_progress, write_progress
from sahfl.federation.server.replies import is_held_back, reason_of
from sahfl.federation.server.schedule import Steps
from sahfl.federation.tensors import hash_of_tensors
from sahfl.masking.collector import Collector, Total
from sahfl.masking.party import Shares
from sahfl.payload import Header, layout
from sahfl.task import Task

MOST_S = 300.0
"""Seconds to wait for a step without training, at most."""


class MaskedAttempt:
    """One attempt at a masked round.

    Args:
        cell: the training.
        task: of the round.
        header: names the training and the round.
        contents: the training request to each site that is there.
        like: the tensors that train in this round, as they were sent.
        run: the study's sites, and its deadline.
        quorum: fewest sites whose vectors, or held back updates, make the round count.
    """

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
        assert task.masking is not None
        self._cell, self._header, self._like, self._run, self._quorum = cell, header, like, run, quorum
        self._task, self._masking, self._contents = task, task.masking, contents
        self._path = file_of(run.folder.path, cell.key)
        starts = sorted({hash_of_tensors(content) for content in contents.values()})
        volumes = {site: run.roster[site].description.n_volumes for site in contents}
        self.progress = read_progress(self._path, Terms(1, volumes, starts[0] if starts else ""), header.round)
        self.outcome = Outcome(oddities={"stale": [], "duplicate": [], "retried": []})
        self.silent: dict[str, list[str]] = {}
        """Sites in the sum that did not answer a step after it, by step."""
        self.n_bytes_down = dict.fromkeys(contents, 0)
        self._n_bytes_up = dict.fromkeys(contents, 0)
        self._length = 1 + sum(value.size for value in like.values())

    def run(self) -> Steps[None]:
        """Take the steps that are left; ``outcome`` has who is in the sum and the sum, or why there is none."""
        try:
            if not self.progress.listed:
                yield from self._list_sites()
            if not self.progress.shares:
                yield from self._share()
            if not self.progress.answered:
                yield from self._train()
            self._decode((yield from self._open()))
        except MaskingFailed as error:
            self.outcome.spent = bool(self.progress.shares)
            if not self.outcome.spent:
                self._save(self.progress.next_attempt())
            emit(Warned(f"{self._cell.key}: {error}"))

    @property
    def notes(self) -> dict[str, Any]:
        """Fields of the round's line in the journal."""
        terms, sites = self.progress.terms, [one.advert.site for one in self.progress.listed]
        found = {"attempt": terms.attempt, "clip": self._masking.clip, "listed": sites, "silent": self.silent}
        loss = None if self.outcome.masked is None else self.outcome.masked.loss
        return {"masked": found | {"shared": sorted(self.progress.shares)}, "loss": loss}

    # ------------------------------------------------------------------------------------------------- the steps

    def _list_sites(self) -> Steps[None]:
        collector, record = self._collector(), self.progress.terms.record()

        def take(site: str, content: RecordDict) -> None:
            collector.advertised(messages.read_keys_reply(content, self._header, site))

        answered = yield from self._ask(messages.KEYS, "keys", dict.fromkeys(self._contents, record), take)
        self._require_quorum(answered, "gave keys")
        self._save(replace(self.progress, listed=collector.list_sites()))

    def _share(self) -> Steps[None]:
        collector, shares = self._collector(), dict[str, Shares]()
        record = messages.listed_record(self.progress.terms, self.progress.listed)

        def take(site: str, content: RecordDict) -> None:
            found = messages.read_shares_reply(content, self._header)
            collector.shared(site, found)
            shares[site] = found

        listed = [one.advert.site for one in self.progress.listed]
        answered = yield from self._ask(messages.SHARES, "shares", dict.fromkeys(listed, record), take)
        self._require_quorum(answered, "shared")
        collector.deliver()
        self._save(replace(self.progress, shares=dict(sorted(shares.items()))))

    def _train(self) -> Steps[None]:
        collector, terms, answered = self._collector(), self.progress.terms, dict[str, Answered]()
        records = {
            site: messages.delivery_record(terms, one.sharers, one.received)
            for site, one in collector.deliver().items()
        }
        total = np.zeros(self._length, "<u4")

        def take(site: str, content: RecordDict) -> None:
            most, names = terms.volumes[site], layout(self._like)
            found = messages.read_masked_reply(content, header=self._header, layout=names, most_volumes=most)
            collector.masked(site, found.vector)
            np.add(total, found.vector, out=total)
            answered[site] = Answered(found.n_volumes, found.seconds)

        yield from self._ask(protocol.TRAIN, "training", records, take)
        self._require_quorum(answered, "sent a masked vector")
        collector.survivors()
        self._save(replace(self.progress, answered=dict(sorted(answered.items())), total=total))

    def _open(self) -> Steps[Total]:
        collector, terms = self._collector(), self.progress.terms
        survivors = list(self.progress.answered)

        def confirm(site: str, content: RecordDict) -> None:
            collector.confirmed(site, messages.read_survivors_reply(content, self._header))

        def reveal(site: str, content: RecordDict) -> None:
            collector.revealed(site, messages.read_reveal_reply(content, self._header))

        named = dict.fromkeys(survivors, messages.survivors_record(terms, survivors))
        yield from self._ask(messages.SURVIVORS, "survivors", named, confirm)
        signed = collector.confirmations()
        named = dict.fromkeys(signed, messages.survivors_record(terms, survivors, signed))
        yield from self._ask(messages.REVEAL, "reveal", named, reveal)
        return collector.total()

    def _ask(
        self,
        kind: str,
        step: str,
        records: Mapping[str, ConfigRecord],
        take: Callable[[str, RecordDict], None],
    ) -> Steps[set[str]]:
        """Ask sites for a step; returns those whose answer was taken, and notes the reasons of the others."""
        trains, run, cell = kind == protocol.TRAIN, self._run, self._cell
        asked = {site: record for site, record in records.items() if site in self._contents}
        contents = {site: with_record(self._contents[site], record, tensors=trains) for site, record in asked.items()}
        nodes = {site: run.roster[site].node_id for site in contents}
        deadline_s = run.config.deadline_s if trains else min(run.config.deadline_s, MOST_S)
        what = f"{cell.key}, round {self._header.round}, masked: {step}"
        answers: Answers = yield Ask(contents, kind, nodes, deadline_s, what, cell.key)
        for name, more in answers.oddities().items():
            self.outcome.oddities[name] += more
        taken, reasons = set[str](), {site: run.why_out(site) for site in records if site not in asked}
        for site, content in contents.items():
            self.n_bytes_down[site] += protocol.n_bytes(content)
            reply = answers.replies.get(site)
            if reason := reason_of(reply, deadline_s):
                reasons[site] = reason
                self.outcome.held |= {site} if is_held_back(reply) else set()
                continue
            assert reply is not None
            self._n_bytes_up[site] += protocol.n_bytes(reply.content)
            try:
                take(site, reply.content)
                taken.add(site)
            except PayloadError as error:
                self._note(site, step, str(error), refused=True)
        for site, reason in reasons.items():
            self._note(site, step, reason)
        return taken

    # ------------------------------------------------------------------------------------------------- the outcome

    def _note(self, site: str, step: str, reason: str, *, refused: bool = False) -> None:
        """Note why a site did not answer a step; one whose vector is in the sum stays in it."""
        text = f"masked round, {step}: {reason}"
        if site in self.progress.answered:
            self.silent.setdefault(step, []).append(site)
            emit(Warned(f"{site}: {text}; it is in the sum all the same"))
        elif refused:
            self.outcome.refused[site] = text
            emit(SiteLeftOut(site, f"refused: {text}"))
        else:
            self.outcome.missing[site] = text

    def _require_quorum(self, sites: Collection[str], what: str) -> None:
        found = len(sites) + len(self.outcome.held)
        if found < self._quorum:
            raise MaskingFailed(f"round {self._header.round}: {found} sites {what}, expected at least {self._quorum}")

    def _decode(self, total: Total) -> None:
        """Read the sum; a site that revealed wrong shares is named."""
        for site, of in total.wrong.items():
            emit(Warned(f"{site}: revealed wrong shares of {', '.join(of)}; the sum is right all the same"))
        terms, answered = self.progress.terms, self.progress.answered
        share = sum(answered[site].n_volumes for site in total.sites) / terms.total
        form, of_loss = terms.forms(self._masking.clip)
        try:
            flat = form.decode(total.numbers[:-1]) / share
            loss = float(of_loss.decode(total.numbers[-1:])[0] / share)
        except PayloadError as error:
            raise MaskingFailed(f"round {self._header.round}: {error}") from error
        change, start = dict[str, NDArray[np.float64]](), 0
        for name, value in self._like.items():
            change[name] = flat[start : start + value.size].reshape(value.shape)
            start += value.size
        self.outcome.masked = MaskedSum(change, loss)
        for site in total.sites:
            one, n_bytes = answered[site], self._n_bytes_up.get(site, 0)
            self.n_bytes_down.setdefault(site, 0)
            self.outcome.used[site] = TrainReply({}, one.n_volumes, None, one.seconds, n_bytes)

    def _collector(self) -> Collector:
        """The masked round at the server as far as it is on disk."""
        seed, terms = self._task.seed, self.progress.terms

        def verify(site: str, document: bytes, signed: bytes) -> bool:
            return is_consistent(seed, site, document, signed)

        context, threshold = terms.context(self._task, self._header), self._masking.threshold
        return self.progress.collector(context, verify, length=self._length, threshold=threshold)

    def _save(self, progress: Progress) -> None:
        write_progress(self._path, progress)
        self.progress = progress
