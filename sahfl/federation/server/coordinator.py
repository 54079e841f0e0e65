"""The coordinator of a study: describe the sites, pretrain, fine-tune fold by fold, evaluate, report.

Every step first looks up in the run folder what is done already, so that a new start resumes the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from sahfl.adapters import AdapterState, digest, exchanged
from sahfl.adapters.files import save_tensors
from sahfl.cell_names import Pretraining
from sahfl.config import POOLED, Study
from sahfl.errors import PayloadError, RunFailed
from sahfl.events import SiteLeftOut, StageBegun, Warned, emit
from sahfl.federation import protocol
from sahfl.federation.requests import Requests, question
from sahfl.federation.server.base import install, waits
from sahfl.federation.server.cell import Cell, Run
from sahfl.federation.server.cells import StudyCells
from sahfl.federation.server.mailbox import Ask, Mailbox
from sahfl.federation.server.replies import content_of, reason_of
from sahfl.federation.server.reuse import Reuse
from sahfl.federation.server.roster import (
    OTHER_SECRET,
    Latecomers,
    Member,
    check_description,
    did_not_answer,
    doubt_text,
    draws_from_another_secret,
    left_out_text,
    needed,
    refuse_shared_scans,
    require_patients_to_train_on,
    require_quorum,
    untested_text,
    what_computes,
)
from sahfl.federation.server.rounds import run_cell
from sahfl.federation.server.schedule import run_alone, run_jobs
from sahfl.networks import read_base, whole_network
from sahfl.process import now_text
from sahfl.report.page import write_report
from sahfl.results.collect import collect
from sahfl.results.support import support_notes
from sahfl.run.folder import RunFolder, base_file
from sahfl.run.session import open_session
from sahfl.run.storing import storing
from sahfl.task import SiteDescription
from sahfl.trust.signing import Signer


class Coordinator:
    """One run of one study.

    Args:
        grid: transports messages to the sites.
        folder: the run on disk.
        nodes: site name of each node.
        signer: signs requests.
        lanes: how many cells are worked on at a time; the result does not depend on it.
        cells: folder of finished cells that runs share; None if this run trains all cells itself.
        report: whether to write the report too.
    """

    def __init__(
        self,
        grid: Grid,
        folder: RunFolder,
        nodes: Mapping[int, str],
        signer: Signer | None = None,
        *,
        lanes: int = 1,
        cells: Path | None = None,
        report: bool = True,
    ) -> None:
        self._mail, self._folder = Mailbox(grid, signer), folder
        self._node_of = {site: node for node, site in nodes.items()}
        self._study: Study = folder.study()
        self._requests = Requests(self._study, self._study.fingerprint())
        self._lanes, self._cells, self._report = lanes, cells, report
        self._run = Run(folder, self._study.rounds, {}, self._invite)
        self._late = Latecomers(self._mail, grid, self._node_of, self._read_description)
        self._base: AdapterState = {}
        self._own_bases: dict[str, AdapterState] = {}

    def run(self) -> None:
        """Run all stages, each from its last committed state.

        Raises:
            RunFailed: a stage stayed below its quorum of sites.
            StorageError: the disk is full; committed work is whole.
        """
        with storing(self._folder.path):
            self._run_stages()

    def _run_stages(self) -> None:
        open_session(self._folder)
        if self._study.base:
            self._base = read_base(self._study, copy=self._folder.path / base_file())
        hostile = {"event": "hostile", "sites": self._study.hostile}
        if self._study.hostile and hostile not in self._folder.journal():
            self._folder.note(hostile)
        self._describe_sites()
        if not self._base:
            self._base = self._pretrained(Pretraining())
        self._own_bases = {site: self._pretrained(Pretraining(site)) for site in self._study.own_bases}
        hashes = {site: digest(base) for site, base in self._own_bases.items()}
        self._requests = replace(self._requests, base_hash=digest(self._base), own_bases=hashes)
        for site in (None, *self._study.own_bases):
            base = self._base_of(site)
            save_tensors(self._folder.path / base_file(site), base, {"sha256": digest(base)})
            self._install_base(site)
        reuse = Reuse(self._cells, self._requests, self._folder)
        cells = StudyCells(self._run, self._requests, self._base_of, nodes=self._node_of, reuse=reuse)
        run_jobs(cells.jobs(), self._mail, lanes=self._lanes)
        self._folder.note({"event": "finished", "at": now_text()})
        results = collect(self._folder, self._study, self._run.descriptions(), self._base)
        self._folder.write_json("results.json", results)
        if self._report:
            emit(StageBegun("writing the report"))
            write_report(results, self._folder.path)

    def _describe_sites(self) -> None:
        emit(StageBegun("preparing and checking the sites' data"))
        content, asked = self._question(), [site for site in self._node_of if site != POOLED]
        for site, reply in self._ask(dict.fromkeys(asked, content), protocol.DESCRIBE).items():
            try:
                description = self._read_description(site, reply)
            except PayloadError as error:
                self._leave_out(site, str(error))
                if did_not_answer(reply) and not self._study.compare_sites:  # a latecomer's scans would not be compared
                    self._late.expect(site)
            else:
                self._enter(site, description)
        if self._study.compare_sites:
            self._compare_sites()
        stages = {"finetune": self._study.finetune.sites}
        if self._study.pretrain and not (self._folder.path / base_file()).exists():
            stages = {"pretrain": self._study.pretrain.sites} | stages
        for stage, sites in stages.items():
            require_quorum(self._study.rounds, stage, sites, self._run.roster, out=self._run.out)
        require_patients_to_train_on(self._study, self._run.descriptions())
        self._warn_of_confirmations()
        known = self._folder.journal()
        for note in support_notes(self._study, self._run.descriptions()):
            if note not in known:
                self._folder.note(note)

    def _warn_of_confirmations(self) -> None:
        """Warn of sites whose policy asks for more confirming sites than a stage has, so that they will not train."""
        study, roster = self._study, self._run.roster
        for stage, sites in (
            ("pretrain", study.pretrain.sites if study.pretrain else ()),
            ("finetune", study.finetune.sites),
        ):
            present = [site for site in sites if site in roster]
            for site in present:
                least, others = roster[site].description.confirmations, len(present) - 1
                if least > others:
                    wanted = f"{least} other sites must confirm each later start there (policy.confirmations)"
                    emit(Warned(f"{site}: {wanted}; {stage} has {others}"))

    def _question(self) -> RecordDict:
        return protocol.request(question(self._requests), self._requests.header("finetune", "describe"), {})

    def _enter(self, site: str, description: SiteDescription) -> None:
        self._run.roster[site] = Member(self._node_of[site], description)
        self._run.out.pop(site, None)
        if draws_from_another_secret(description, self._folder.journal()):
            emit(Warned(f"{site}: {OTHER_SECRET}"))
        self._folder.note({"event": "described", "site": site} | what_computes(description))
        if description.n_refused:
            emit(Warned(f"{site}: {left_out_text(description)}"))
        untested = untested_text(description) if site in self._study.finetune.sites else ""
        for text in filter(None, (untested, doubt_text(description))):
            emit(Warned(f"{site}: {text}"))

    def _invite(self, sites: tuple[str, ...]) -> None:
        """Admit sites of a cell that came late, without waiting for others."""
        if not self._late.awaited:
            return
        base = self._base_request(None) if self._base else None
        for site, description in self._late.welcome(sites, self._question(), base).items():
            self._enter(site, description)
            emit(Warned(f"{site}: takes part from now on"))

    def _compare_sites(self) -> None:
        """Drop sites that send no scan keys; refuse the study if two sites hold the same scan."""
        header = self._requests.header("finetune", "scan_keys")
        content = protocol.request(question(self._requests), header, {})
        keys, deadline_s = dict[str, frozenset[str]](), self._study.rounds.deadline_s
        for site, reply in self._ask(dict.fromkeys(self._run.roster, content), protocol.SCAN_KEYS).items():
            n_volumes = self._run.roster[site].description.n_volumes
            try:
                keys[site] = protocol.read_scan_keys(content_of(reply, deadline_s), header=header, n_volumes=n_volumes)
            except PayloadError as error:
                self._leave_out(site, str(error))
        for site in self._run.roster.keys() - keys.keys():
            del self._run.roster[site]
        refuse_shared_scans(keys, self._folder)

    def _leave_out(self, site: str, reason: str) -> None:
        self._run.out[site] = reason
        self._folder.note({"event": "site_out", "site": site, "reason": reason})
        emit(SiteLeftOut(site, reason))

    def _read_description(self, site: str, reply: Message | None) -> SiteDescription:
        description = protocol.read_description(content_of(reply, self._study.rounds.deadline_s))
        check_description(description, site, folds=self._study.finetune.folds, journal=self._folder.journal())
        return description

    def _ask(self, contents: Mapping[str, RecordDict], message_type: str) -> dict[str, Message | None]:
        nodes = {site: self._node_of[site] for site in contents}
        answers = self._mail.exchange(Ask(contents, message_type, nodes, self._study.rounds.deadline_s))
        answers.write_oddities(self._folder.note, message_type)
        return {site: answers.replies.get(site) for site in contents}

    def _base_of(self, site: str | None) -> AdapterState:
        """The base of all pretraining sites together, or one site's own."""
        return self._base if site is None else self._own_bases[site]

    def _pretrained(self, which: Pretraining) -> AdapterState:
        emit(StageBegun("pretraining"))
        study, config = self._study, self._study.pretrain
        assert config is not None
        reuse, sites = Reuse(self._cells, self._requests, self._folder), self._run.descriptions()
        if (known := reuse.find(which, -1, sites)) is not None:
            return reuse.adopt(which, -1, sites, known)
        net, task = whole_network(study.views, study.model, study.seed), self._requests.pretraining(which.site)
        header = self._requests.header("pretrain", which.id)
        cell = Cell(which.id, task, header, config.sites if which.site is None else (which.site,))
        base = run_alone(run_cell(cell, exchanged.read(net), self._run), self._mail)
        reuse.keep(which, -1, base, self._run.descriptions())
        return base

    def _install_base(self, site: str | None) -> None:
        sites = [site for site in self._study.finetune.sites if site in self._run.roster]
        sites += [POOLED] if self._study.pools else []
        nodes, rounds = {name: self._node_of[name] for name in sites}, self._study.rounds
        limits = {"deadline_s": rounds.deadline_s, "accept_s": rounds.accept_s}
        steps = install(self._base_request(site), nodes, self._folder, base=digest(self._base_of(site)), **limits)
        replies = run_alone(steps, self._mail)
        for name, reply in replies.items():
            if reason := reason_of(reply, rounds.deadline_s):
                self._folder.note({"event": "base_not_installed", "site": name, "reason": reason})
            if (did_not_answer(reply) or waits(reply)) and name != POOLED:
                del self._run.roster[name]
                self._run.out[name] = reason_of(reply, rounds.deadline_s) or "did not answer"
                self._late.expect(name)
        accepted = [name for name, reply in replies.items() if reply is not None and not reply.has_error()]
        if any(map(waits, replies.values())) and len(accepted) < min(
            len(nodes), needed(rounds, len(self._study.finetune.sites))
        ):
            found = f"accepted at {len(accepted)} of {len(nodes)} sites within {rounds.accept_s:g} s"
            raise RunFailed(
                f"base network {digest(self._base_of(site))}: {found}; resume the run when more accepted it"
            )

    def _base_request(self, site: str | None) -> RecordDict:
        header = self._requests.header("finetune", "base", base_of=site)
        return protocol.request(question(self._requests), header, self._base_of(site))
