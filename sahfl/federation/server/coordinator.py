"""The coordinator of a study: describe the sites, pretrain, fine-tune fold by fold, evaluate, report.

Every step asks the run folder first what is done already, so that starting again is resuming.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from sahfl.adapters import AdapterState, digest, state
from sahfl.adapters.factored import factored_layers
from sahfl.adapters.files import save_tensors
from sahfl.adapters.folder import describe, save_adapter
from sahfl.config import POOLED, AdapterTuning, Method, Study, TrainedMethod, ZeroShot
from sahfl.errors import PayloadError
from sahfl.federation import protocol
from sahfl.federation.events import Event, emit
from sahfl.federation.local_norms import staying
from sahfl.federation.networks import fine_tuned_network, read_base, whole_network
from sahfl.federation.protocol import SiteDescription, Task
from sahfl.federation.server.arms import cell_sites, contributors, describe_pool, why_untrained
from sahfl.federation.server.attendance import check_description, require_quorum
from sahfl.federation.server.latecomers import Latecomers, is_away
from sahfl.federation.server.mailbox import Mailbox, reason_of
from sahfl.federation.server.results import collect, fold_metrics
from sahfl.federation.server.rounds import Cell, Member, run_cell
from sahfl.federation.server.run_folder import RunFolder, storing
from sahfl.federation.server.session import now, open_session
from sahfl.federation.server.shared_scans import refuse_shared_scans
from sahfl.federation.server.support import support_notes
from sahfl.federation.site_ranks import site_ranks
from sahfl.payload import Header
from sahfl.report import write_report
from sahfl.statistics import EvaluationSums
from sahfl.trust.signing import Signer

BASE_FILE = Path("base") / "base.safetensors"


class Coordinator:
    """One run of one study.

    Args:
        grid: how messages reach the sites.
        folder: the run on disk.
        nodes: site name of each node.
        signer: signs what sites are asked.
    """

    def __init__(self, grid: Grid, folder: RunFolder, nodes: Mapping[int, str], signer: Signer | None = None) -> None:
        self._mail, self._folder = Mailbox(grid, signer), folder
        self._node_of = {site: node for node, site in nodes.items()}
        self._study: Study = folder.study()
        self._fingerprint = self._study.fingerprint()
        self._roster: dict[str, Member] = {}
        self._late = Latecomers(self._mail, grid, self._node_of, self._read_description)
        self._base: AdapterState = {}
        self._base_hash = ""

    def run(self) -> None:
        """Do all stages; each continues at what is committed.

        Raises:
            RunFailed: a stage stayed below its quorum of sites.
            StorageError: the disk is full; what was committed is whole.
        """
        with storing(self._folder.path):
            self._run()

    def _run(self) -> None:
        open_session(self._folder)
        if self._study.base:
            self._base = read_base(self._study, copy=self._folder.path / BASE_FILE)
        hostile = {"event": "hostile", "sites": self._study.hostile}
        if self._study.hostile and hostile not in self._folder.journal():
            self._folder.note(hostile)
        self._describe_sites()
        if not self._base:
            self._base = self._pretrained()
        self._base_hash = digest(self._base)
        save_tensors(self._folder.path / BASE_FILE, self._base, {"sha256": self._base_hash})
        self._install_base()
        for method in self._study.finetune.methods:
            for fold in range(self._study.finetune.folds):
                if isinstance(method, ZeroShot):
                    self._evaluate(method, fold, {})
                    continue
                final = self._fine_tune(method, fold)
                if final is None:
                    continue
                self._evaluate(method, fold, final)
                self._save_adapter(method, fold, final)
        self._folder.note({"event": "finished", "at": now()})
        results = collect(self._folder, self._study, self._descriptions(), self._base)
        self._folder.write_json("results.json", results)
        emit(Event("stage", "writing the report"))
        write_report(results, self._folder.path)

    # ------------------------------------------------------------------------------------------- sites

    def _describe_sites(self) -> None:
        emit(Event("stage", "preparing and checking the sites' data"))
        content, asked = self._question(), [site for site in self._node_of if site != POOLED]
        self._roster = dict[str, Member]()
        for site, reply in self._ask(dict.fromkeys(asked, content), protocol.DESCRIBE).items():
            try:
                description = self._read_description(site, reply)
            except PayloadError as error:
                self._leave_out(site, str(error))
                if is_away(reply) and not self._study.compare_sites:  # a latecomer's scans would not be compared
                    self._late.expect(site)
            else:
                self._enter(site, description)
        if self._study.compare_sites:
            self._compare_sites()
        if self._study.pretrain:
            require_quorum(self._study.rounds, "pretrain", self._study.pretrain.sites, self._roster)
        require_quorum(self._study.rounds, "finetune", self._study.finetune.sites, self._roster)
        known = self._folder.journal()
        for note in support_notes(self._study, self._descriptions()):
            if note not in known:
                self._folder.note(note)

    def _question(self) -> RecordDict:
        return protocol.request(self._task("finetune"), self._header("finetune", "describe", -1), {})

    def _enter(self, site: str, description: SiteDescription) -> None:
        self._roster[site] = Member(self._node_of[site], description)
        self._folder.note({"event": "described", "site": site, "data": description.data})

    def _invite(self, sites: tuple[str, ...]) -> None:
        """Let in those of a cell's sites that were not there before; nobody waits for them."""
        if not self._late.awaited:
            return
        base = self._base_request() if self._base_hash else None
        for site, description in self._late.welcome(sites, self._question(), base).items():
            self._enter(site, description)
            emit(Event("warning", f"{site}: takes part from now on"))

    def _descriptions(self) -> dict[str, SiteDescription]:
        return {site: member.description for site, member in self._roster.items()}

    def _compare_sites(self) -> None:
        """Drop sites that do not show their scan keys; refuse the study if two sites hold the same scan."""
        header = self._header("finetune", "scan_keys", -1)
        content = protocol.request(self._task("finetune"), header, {})
        keys: dict[str, frozenset[str]] = {}
        for site, reply in self._ask(dict.fromkeys(self._roster, content), protocol.SCAN_KEYS).items():
            n_volumes = self._roster[site].description.n_volumes
            try:
                keys[site] = protocol.read_scan_keys(self._content(reply), header=header, n_volumes=n_volumes)
            except PayloadError as error:
                self._leave_out(site, str(error))
        self._roster = {site: member for site, member in self._roster.items() if site in keys}
        refuse_shared_scans(keys, self._folder)

    def _leave_out(self, site: str, reason: str) -> None:
        self._folder.note({"event": "site_out", "site": site, "reason": reason})
        emit(Event("failed", reason, site))

    def _content(self, reply: Message | None) -> RecordDict:
        if reason := reason_of(reply, self._study.rounds.deadline_s):
            raise PayloadError(reason)
        assert reply is not None
        return reply.content

    def _read_description(self, site: str, reply: Message | None) -> SiteDescription:
        description = protocol.read_description(self._content(reply))
        check_description(description, site, folds=self._study.finetune.folds, journal=self._folder.journal())
        return description

    def _ask(self, contents: Mapping[str, RecordDict], message_type: str) -> dict[str, Message | None]:
        nodes = {site: self._node_of[site] for site in contents}
        answers = self._mail.exchange(contents, message_type, nodes=nodes, deadline_s=self._study.rounds.deadline_s)
        if any((oddities := answers.oddities()).values()):
            self._folder.note({"event": "replies", "what": message_type} | oddities)
        return {site: answers.replies.get(site) for site in contents}

    # ------------------------------------------------------------------------------------------- stages

    def _pretrained(self) -> AdapterState:
        emit(Event("stage", "pretraining"))
        study, config = self._study, self._study.pretrain
        assert config is not None
        task = self._task("pretrain").model_copy(
            update={
                "rounds": config.rounds,
                "learning_rate": config.learning_rate,
                "local": config.local,
                "payload": study.rounds.payload,
            }
        )
        net = whole_network(study.views, study.model, study.seed)
        header = self._header("pretrain", "pretrain", -1)
        cell = Cell("pretrain", task, header, config.sites, staying=staying(net, task))
        return self._run_cell(cell, state.read(net))

    def _install_base(self) -> None:
        content = self._base_request()
        sites = [site for site in self._study.finetune.sites if site in self._roster]
        sites += [POOLED] if self._study.pools else []
        for site, reply in self._ask(dict.fromkeys(sites, content), protocol.INSTALL_BASE).items():
            if reason := reason_of(reply, self._study.rounds.deadline_s):
                self._folder.note({"event": "base_not_installed", "site": site, "reason": reason})
            if is_away(reply) and site != POOLED:
                del self._roster[site]
                self._late.expect(site)

    def _base_request(self) -> RecordDict:
        return protocol.request(self._task("finetune"), self._header("finetune", "base", -1), self._base)

    def _fine_tune(self, method: TrainedMethod, fold: int) -> AdapterState | None:
        emit(Event("stage", f"fine-tuning, {method.id}, fold {fold + 1} of {self._study.finetune.folds}"))
        study, config = self._study, self._study.finetune
        net = fine_tuned_network(study.views, study.model, self._base, method, study.seed)
        task = self._task("finetune", method, fold).model_copy(
            update={
                "rounds": config.rounds,
                "learning_rate": method.learning_rate,
                "local": study.local_training(method),
                "payload": study.rounds.payload,
            }
        )
        key, sites = f"{method.id}/fold-{fold}", self._trainers(method, fold)
        last = self._folder.last_checkpoint(key)
        if method.trained_at and not sites and (last is None or last.round < config.rounds):
            self._leave_untrained(method, fold)
            return None
        cell = Cell(
            key,
            task,
            self._header("finetune", method.id, fold),
            sites,
            rule=method.aggregation,
            layers=factored_layers(net, method),
            staying=staying(net, task),
            ranks=site_ranks(study, self._base, method, sites),
        )
        return self._run_cell(cell, state.read(net))

    def _trainers(self, method: TrainedMethod, fold: int) -> tuple[str, ...]:
        self._invite(self._study.training_sites(method))
        if method.trained_at == POOLED and (pool := describe_pool(self._study, self._descriptions())):
            self._roster[POOLED] = Member(self._node_of[POOLED], pool)
        return cell_sites(self._study, method, fold, self._descriptions())

    def _leave_untrained(self, method: TrainedMethod, fold: int) -> None:
        """A training at one site that is not there, or has nobody to train on, is told; the others go on."""
        reason = why_untrained(method, self._descriptions())
        self._folder.note({"event": "not_trained", "method": method.id, "fold": fold, "reason": reason})
        emit(Event("warning", f"{method.id}, fold {fold + 1}: {reason}"))
        missing = dict.fromkeys(self._study.finetune.sites, reason)
        self._folder.write_json(f"evaluation/{method.id}/fold-{fold}.json", {"sums": {}, "missing": missing})

    def _run_cell(self, cell: Cell, start: AdapterState) -> AdapterState:
        config = self._study.rounds
        return run_cell(
            self._mail, cell, start, roster=self._roster, config=config, folder=self._folder, invite=self._invite
        )

    def _save_adapter(self, method: TrainedMethod, fold: int, final: AdapterState) -> None:
        study = self._study
        net = fine_tuned_network(study.views, study.model, self._base, method, study.seed)
        state.load(net, final)
        note = describe(net, method, self._base_hash).model_copy(
            update={
                "study": study.name,
                "fingerprint": self._fingerprint,
                "fold": fold,
                "rounds": study.finetune.rounds,
                "sites": contributors(study, method, self._descriptions()),
                "metrics": fold_metrics(self._folder, study, method, fold),
            }
        )
        save_adapter(self._folder.path / "adapters" / method.id / f"fold-{fold}", net, note)

    def _evaluate(self, method: Method, fold: int, final: AdapterState) -> None:
        name = f"evaluation/{method.id}/fold-{fold}.json"
        known = self._folder.read_json(name) or {"sums": {}, "missing": {}}
        sites = [site for site in self._study.finetune.sites if site in self._roster and site not in known["sums"]]
        emit(Event("stage", f"evaluating, {method.id}, fold {fold + 1} of {self._study.finetune.folds}"))
        header = self._header("finetune", method.id, fold)
        task = self._task("finetune", method, fold).model_copy(update={"evaluation": self._study.evaluation})
        if self._study.finetune.local.local_norms:
            stage = self._study.finetune
            task = task.model_copy(update={"rounds": stage.rounds, "local": stage.local})
        content = protocol.request(task, header, final)
        missing: dict[str, str] = {}
        for site, reply in self._ask(dict.fromkeys(sites, content), protocol.EVALUATE).items():
            try:
                known["sums"][site] = self._read_sums(reply, header)
            except PayloadError as error:
                missing[site] = str(error)
        for site, reason in missing.items():
            self._folder.note(
                {"event": "not_evaluated", "method": method.id, "fold": fold, "site": site, "reason": reason}
            )
        self._folder.write_json(name, {"sums": known["sums"], "missing": missing})
        emit(Event("evaluated", f"{method.id}/fold-{fold}"))

    def _read_sums(self, reply: Message | None, header: Header) -> list[float]:
        array = protocol.read_evaluation_reply(self._content(reply), header=header)
        config = self._study.evaluation
        EvaluationSums.from_array(array, n_strata=len(config.volume_edges_ml) + 1, replicates=config.replicates)
        return [float(value) for value in array]

    # ------------------------------------------------------------------------------------------- requests

    def _task(self, stage: str, method: Method | None = None, fold: int = -1) -> Task:
        study = self._study
        if isinstance(method, AdapterTuning):
            method = method.at_rank(method.rank)
        settings = {"stage": stage, "seed": study.seed, "views": study.views, "model": study.model}
        return Task.model_validate(settings | {"folds": study.finetune.folds, "fold": fold, "method": method})

    def _header(self, stage: str, method: str, fold: int) -> Header:
        return Header(self._fingerprint, stage=stage, method=method, fold=fold, round=0, base=self._base_hash)
