"""The five steps of a masked sum at the server: keys, shares, the sites' work, survivors, reveal.

Each step is an ``Ask`` to those who answered the step before; who does not answer has dropped out. What a step decided
is on disk before the next one begins (``masked_progress``). An attempt that fails before the work begins anew with
other keys. One that fails later is gone on with: the same questions once more, because a site masks its vector once. If
it fails for good, the sum is lost (``Outcome.spent``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from sahfl.errors import MaskingFailed, PayloadError
from sahfl.events import SiteLeftOut, Warned, emit
from sahfl.federation import masked_messages as messages
from sahfl.federation import protocol
from sahfl.federation.masked_messages import with_record
from sahfl.federation.masked_signatures import is_consistent
from sahfl.federation.masked_terms import Terms, purpose_of
from sahfl.federation.server.cell import Outcome, Run
from sahfl.federation.server.mailbox import Answers, Ask
from sahfl.federation.server.masked_progress import Answered, Progress, read_progress, write_progress
from sahfl.federation.server.replies import is_held_back, reason_of, refuses_mask
from sahfl.federation.server.schedule import Steps
from sahfl.federation.tensors import hash_of_tensors
from sahfl.masking.collector import Collector, Total
from sahfl.masking.graph import terms_of
from sahfl.masking.masks import Numbers
from sahfl.masking.party import Shares
from sahfl.masking.ring import DTYPES
from sahfl.payload import Header
from sahfl.task import SiteDescription, Task

MOST_S = 300.0
"""Seconds to wait for a step without the sites' work, at most."""


class MaskedSteps(ABC):
    """One attempt at a masked sum.

    Args:
        cell: key of the training that the sum belongs to.
        task: what every site is asked for, as far as it is the same for all.
        header: names the training and the round.
        contents: the request for the work to each site that is there.
        path: of the file with the progress.
        run: the study's sites, and its deadline.
        quorum: fewest sites whose vectors, or held back updates, make the sum count.
        length: how many numbers a vector has.
    """

    KIND: ClassVar[str]
    """Message type of the third step, the sites' work."""
    WORK: ClassVar[str]
    """The third step in a word."""
    BITS: ClassVar[int]
    """Of the ring."""
    AGAIN: ClassVar[bool] = False
    """Whether a sum for which too many sites refused the work begins anew with other keys; a round is lost instead."""

    def __init__(
        self,
        cell: str,
        task: Task,
        header: Header,
        contents: Mapping[str, RecordDict],
        *,
        path: Path,
        run: Run,
        quorum: int,
        length: int,
    ) -> None:
        assert task.masking is not None
        self._cell, self._header, self._run, self._quorum, self._length = cell, header, run, quorum, length
        self._task, self._masking, self._contents, self._path = task, task.masking, contents, path
        starts = sorted({hash_of_tensors(content) for content in contents.values()})
        volumes = {site: self._size_of(run.roster[site].description) for site in contents}
        terms = Terms(1, volumes, starts[0] if starts else "")
        self.progress = read_progress(path, terms, header.round, bits=self.BITS)
        self.outcome = Outcome(oddities={"stale": [], "duplicate": [], "retried": []})
        self.failure = ""
        """Why nothing came out."""
        self._refusing = set[str]()
        """Sites that refused the work, for example because another site spoilt its shares for them."""
        self.silent: dict[str, list[str]] = {}
        """Sites in the sum that did not answer a step after it, by step."""
        self.n_bytes_down = dict.fromkeys(contents, 0)
        self.n_bytes_up = dict.fromkeys(contents, 0)

    @abstractmethod
    def _read(self, site: str, content: RecordDict) -> tuple[Numbers, Answered]:
        """Read a site's masked vector, and what else it sent; PayloadError if it cannot be right."""

    @abstractmethod
    def _decode(self, total: Total) -> None:
        """Note the sum in the outcome; PayloadError if honest sites cannot have sent it."""

    def _size_of(self, site: SiteDescription) -> int:
        """What a site has in the sum, in the terms: by default, its volumes."""
        return site.n_volumes

    @abstractmethod
    def _settle(self, sites: Collection[str]) -> None:
        """Note whose vectors are in the sum before any site is told; MaskingFailed if they must not be."""

    def run(self) -> Steps[None]:
        """Take the steps that are left; ``outcome`` has what came out, or why nothing did."""
        if not self._contents:  # what an earlier session closed stays as it is
            self.failure = "no site is there"
            return
        try:
            if not self.progress.listed:
                yield from self._list_sites()
            if not self.progress.shares:
                yield from self._share()
            if not self.progress.answered:
                yield from self._work()
            total = yield from self._open()
            for site, of in total.wrong.items():
                emit(Warned(f"{site}: revealed wrong shares of {', '.join(of)}; the sum is right all the same"))
            try:
                self._decode(total)
            except PayloadError as error:
                raise MaskingFailed(f"{self._what}: {error}") from error
        except MaskingFailed as error:
            self.failure = str(error)
            self.outcome.spent = bool(self.progress.shares) and not self._is_spoilt()
            if not self.outcome.spent:
                self._save(self.progress.next_attempt())
            emit(Warned(f"{self._cell}: {error}"))

    def _is_spoilt(self) -> bool:
        """Whether so many sites refuse the work under these keys that no sum can come out; they masked nothing."""
        left = len(self.progress.shares) - len(self._refusing)
        return self.AGAIN and not self.progress.answered and left < self._threshold

    @property
    def _threshold(self) -> int:
        return terms_of(len(self.progress.listed), self._masking.threshold).threshold

    @property
    def _noun(self) -> str:
        return "round" if self._header.round else "evaluation"

    @property
    def _what(self) -> str:
        """The sum in words, for messages."""
        return f"round {self._header.round}" if self._header.round else purpose_of(self._task)

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

    def _work(self) -> Steps[None]:
        collector, terms, answered = self._collector(), self.progress.terms, dict[str, Answered]()
        records = {
            site: messages.delivery_record(terms, one.sharers, one.received)
            for site, one in collector.deliver().items()
        }
        total = np.zeros(self._length, DTYPES[self.BITS])

        def take(site: str, content: RecordDict) -> None:
            vector, more = self._read(site, content)
            collector.masked(site, vector)
            np.add(total, vector, out=total)
            answered[site] = more

        yield from self._ask(self.KIND, self.WORK, records, take)
        self._require_quorum(answered, "sent a masked vector")
        collector.survivors()
        self._settle(answered)
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
        if reason := terms.lack_of_signers(survivors, signed, self._threshold):
            raise MaskingFailed(f"{self._what}: {reason}")
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
        works, run, cell = kind == self.KIND, self._run, self._cell
        asked = {site: record for site, record in records.items() if site in self._contents}
        contents = {site: with_record(self._contents[site], record, tensors=works) for site, record in asked.items()}
        nodes = {site: run.roster[site].node_id for site in contents}
        deadline_s = run.config.deadline_s if works else min(run.config.deadline_s, MOST_S)
        what = f"{cell}, {self._what}, masked: {step}"
        answers: Answers = yield Ask(contents, kind, nodes, deadline_s, what, cell)
        for name, more in answers.oddities().items():
            self.outcome.oddities[name] += more
        taken, reasons = set[str](), {site: run.why_out(site) for site in records if site not in asked}
        for site, content in contents.items():
            self.n_bytes_down[site] += protocol.n_bytes(content)
            reply = answers.replies.get(site)
            if reason := reason_of(reply, deadline_s):
                reasons[site] = reason
                self.outcome.held |= {site} if is_held_back(reply) else set()
                self._refusing |= {site} if works and refuses_mask(reply) else set()
                continue
            assert reply is not None
            self.n_bytes_up[site] += protocol.n_bytes(reply.content)
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
        text = f"masked {self._noun}, {step}: {reason}"
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
            raise MaskingFailed(f"{self._what}: {found} sites {what}, expected at least {self._quorum}")
        if reason := self.progress.terms.lack_of_patients(sites):
            raise MaskingFailed(f"{self._what}: {reason}")

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
