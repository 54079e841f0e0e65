"""The cells of a study: each method on each fold is fine-tuned, evaluated and saved, or taken from an earlier run."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from sahfl.adapters import AdapterState, exchanged
from sahfl.adapters.exchanged import factored_layers
from sahfl.adapters.folder import CARD, TENSORS, describe, save_adapter
from sahfl.cell_names import cell_of
from sahfl.config import POOLED, POOLS, Method, TrainedMethod, ZeroShot
from sahfl.errors import PayloadError
from sahfl.events import CellEvaluated, CellResumed, CellStageBegun, Warned, emit
from sahfl.federation import protocol
from sahfl.federation.requests import Requests
from sahfl.federation.server.mailbox import Answers, Ask, content_of
from sahfl.federation.server.reuse import Reuse
from sahfl.federation.server.roster import Member, cell_sites, contributors, describe_pool, why_untrained
from sahfl.federation.server.rounds import Cell, Run, run_cell
from sahfl.federation.server.schedule import Job, Steps
from sahfl.federation.site_ranks import site_ranks
from sahfl.networks import fine_tuned_network, staying
from sahfl.results.collect import fold_metrics
from sahfl.statistics.sums import EvaluationSums


class StudyCells:
    """Every method on every fold of a study; committed work of the run is not done again."""

    def __init__(
        self, run: Run, requests: Requests, base: AdapterState, *, nodes: Mapping[str, int], reuse: Reuse
    ) -> None:
        self._run, self._folder, self._roster = run, run.folder, run.roster
        self._requests, self._study, self._base = requests, requests.study, base
        self._nodes, self._reuse = nodes, reuse

    def jobs(self) -> list[Job]:
        """The cells in the study's order."""
        study = self._study
        return [
            Job(study.training_sites(method), partial(self._run_cell, method, fold))
            for method in study.finetune.methods
            for fold in range(study.finetune.folds)
        ]

    def _run_cell(self, method: Method, fold: int) -> Steps[None]:
        if (known := self._reuse.take(method, fold, self._run.descriptions())) is not None:
            if not isinstance(method, ZeroShot):
                self._save_adapter(method, fold, known)
            return
        if self._is_done(method, fold):
            rounds = 0 if isinstance(method, ZeroShot) else self._study.finetune.rounds
            emit(CellResumed(cell_of(method, fold), rounds, rounds))
            emit(CellEvaluated(cell_of(method, fold)))
            return
        final: AdapterState | None = {}
        if not isinstance(method, ZeroShot):
            final = yield from self._fine_tune(method, fold)
        if final is None:
            return
        seconds = yield from self._evaluate(method, fold, final)
        if not isinstance(method, ZeroShot):
            self._save_adapter(method, fold, final)
        self._reuse.keep(method, fold, final, self._run.descriptions(), seconds)

    def _is_done(self, method: Method, fold: int) -> bool:
        """Whether an earlier session finished a cell; the adapter's card is written last."""
        cell = cell_of(method, fold)
        known, adapter = self._folder.evaluation(cell)["sums"], self._folder.adapter(cell)
        evaluated = all(site in known for site in self._study.finetune.sites)
        saved = all((adapter / name).exists() for name in (TENSORS, CARD))
        return evaluated and (isinstance(method, ZeroShot) or saved)

    def _fine_tune(self, method: TrainedMethod, fold: int) -> Steps[AdapterState | None]:
        study, folder, key = self._study, self._folder, cell_of(method, fold)
        emit(CellStageBegun("fine-tuning", key, method.id, fold, study.finetune.folds))
        sites = self._trainers(method, fold)
        last = folder.last_checkpoint(key)
        if method.trained_at and not sites and (last is None or last.round < study.finetune.rounds):
            self._leave_untrained(method, fold)
            return None
        net = fine_tuned_network(study.views, study.model, self._base, method, study.seed)
        task = self._requests.fine_tuning(method, fold)
        cell = Cell(
            key,
            task,
            self._requests.header("finetune", method.id, fold),
            sites,
            rule=method.aggregation,
            layers=factored_layers(net, method),
            staying=staying(net, task),
            ranks=site_ranks(study, self._base, method, sites),
        )
        return (yield from run_cell(cell, exchanged.read(net), self._run))

    def _trainers(self, method: TrainedMethod, fold: int) -> tuple[str, ...]:
        self._run.invite(self._study.training_sites(method))
        if method.trained_at in POOLS and (pool := describe_pool(self._study, self._run.descriptions())):
            self._roster[POOLED] = Member(self._nodes[POOLED], pool)
        return cell_sites(self._study, method, fold, self._run.descriptions())

    def _leave_untrained(self, method: TrainedMethod, fold: int) -> None:
        """Note that a training at one site is left out, because the site is absent or has no patients for it."""
        reason = why_untrained(method, self._run.descriptions())
        self._folder.note({"event": "not_trained", "method": method.id, "fold": fold, "reason": reason})
        emit(Warned(f"{method.id}, fold {fold + 1}: {reason}"))
        missing = dict.fromkeys(self._study.finetune.sites, reason)
        self._folder.write_evaluation(cell_of(method, fold), {"sums": {}, "missing": missing})
        emit(CellEvaluated(cell_of(method, fold)))

    def _save_adapter(self, method: TrainedMethod, fold: int, final: AdapterState) -> None:
        study, requests = self._study, self._requests
        net = fine_tuned_network(study.views, study.model, self._base, method, study.seed)
        exchanged.load(net, final)
        note = describe(net, method, requests.base_hash).model_copy(
            update={
                "study": study.name,
                "fingerprint": requests.fingerprint,
                "fold": fold,
                "rounds": study.finetune.rounds,
                "sites": contributors(study, method, self._run.descriptions()),
                "metrics": fold_metrics(self._folder, study, method, fold),
            }
        )
        save_adapter(self._folder.adapter(cell_of(method, fold)), net, note)

    def _evaluate(self, method: Method, fold: int, final: AdapterState) -> Steps[float]:
        """Ask the sites that have not evaluated a fold to do so; returns the seconds that they took together."""
        cell, stage = cell_of(method, fold), self._study.finetune
        known = self._folder.evaluation(cell)
        sites = [site for site in stage.sites if site in self._roster and site not in known["sums"]]
        emit(CellStageBegun("evaluating", cell, method.id, fold, stage.folds))
        header = self._requests.header("finetune", method.id, fold)
        request = protocol.request(self._requests.evaluation(method, fold), header, final)
        nodes = {site: self._roster[site].node_id for site in sites}
        deadline_s, missing = self._study.rounds.deadline_s, dict[str, str]()
        answers: Answers = yield Ask(dict.fromkeys(sites, request), protocol.EVALUATE, nodes, deadline_s, cell=cell)
        answers.write_oddities(self._folder.note, protocol.EVALUATE)
        for site in sites:
            try:
                content = content_of(answers.replies.get(site), deadline_s)
                array = protocol.read_evaluation_reply(content, header=header)
                EvaluationSums.from_array(array, self._study.evaluation)
                known["sums"][site] = [float(value) for value in array]
            except PayloadError as error:
                missing[site] = str(error)
                lacking = {"method": method.id, "fold": fold, "site": site, "reason": str(error)}
                self._folder.note({"event": "not_evaluated"} | lacking)
        self._folder.write_evaluation(cell, {"sums": known["sums"], "missing": missing})
        emit(CellEvaluated(cell, len(sites), len(stage.sites)))
        return sum(answers.seconds.values())
