"""The cells of a study: each method on each fold is fine-tuned, evaluated and saved, or taken from an earlier run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from sahfl.adapters import AdapterState, exchanged
from sahfl.adapters.attach import staying
from sahfl.adapters.exchanged import factored_layers, private_layers
from sahfl.adapters.folder import CARD, TENSORS, describe, save_adapter
from sahfl.cell_names import cell_of
from sahfl.config import POOLED, POOLS, Method, TrainedMethod, ZeroShot
from sahfl.errors import PayloadError
from sahfl.events import CellEvaluated, CellResumed, CellStageBegun, SiteLeftOut, Warned, emit
from sahfl.federation import protocol
from sahfl.federation.requests import Requests
from sahfl.federation.server.cell import Cell, Run
from sahfl.federation.server.evaluation import Evaluations, without
from sahfl.federation.server.mailbox import Answers, Ask
from sahfl.federation.server.replies import content_of
from sahfl.federation.server.reuse import Reuse
from sahfl.federation.server.roster import Member, cell_sites, contributors, describe_pool, why_untrained
from sahfl.federation.server.rounds import run_cell, run_local_phase
from sahfl.federation.server.schedule import Job, Steps
from sahfl.federation.site_ranks import site_ranks
from sahfl.networks import fine_tuned_network
from sahfl.results.collect import fold_metrics
from sahfl.run.cell_store import Entry
from sahfl.run.folder import Record
from sahfl.task import Part, parts_of


class StudyCells:
    """Every method on every fold of a study; committed work of the run is not done again."""

    def __init__(
        self,
        run: Run,
        requests: Requests,
        base_of: Callable[[str | None], AdapterState],
        *,
        nodes: Mapping[str, int],
        reuse: Reuse,
    ) -> None:
        self._run, self._folder, self._roster = run, run.folder, run.roster
        self._requests, self._study, self._base_of = requests, requests.study, base_of
        self._nodes, self._reuse = nodes, reuse
        self._evaluations = Evaluations(run, requests, base_of)

    def jobs(self) -> list[Job]:
        """The cells in the study's order."""
        study = self._study
        return [
            Job(study.training_sites(method), partial(self._run_method, method, fold))
            for method in study.finetune.methods
            for fold in range(study.finetune.folds)
        ]

    def _run_method(self, method: Method, fold: int) -> Steps[None]:
        if isinstance(method, ZeroShot) or not method.trials:
            yield from self._run_cell(method, fold)
        elif (chosen := (yield from self._choose_rate(method, fold))) is not None:
            yield from self._run_cell(chosen, fold)

    def _choose_rate(self, method: TrainedMethod, fold: int) -> Steps[TrainedMethod | None]:
        """The method at the learning rate that is best on patients whom the fold does not test; the lower of equals.

        None if the trials were not evaluated at the same sites; a later session evaluates what is missing.
        """
        if (rate := self._folder.rates(method.id).get(fold)) is not None:
            for trial in method.trials:
                key, rounds = cell_of(trial, fold), self._study.rounds_of(trial)
                emit(CellResumed(key, rounds, rounds))
                emit(CellEvaluated(key))
            return method.at_rate(rate)
        found, places = list[tuple[float, float | None]](), list[set[str]]()
        for trial in method.trials:
            yield from self._run_cell(trial, fold)
            (part,) = parts_of(trial)
            metrics = fold_metrics(self._folder, self._study, trial, fold, part)
            found.append((trial.rates[0], metrics["dice"]))
            places.append(set(self._folder.evaluation(cell_of(trial, fold), part)["sums"]))
        if not places[0] or any(sites != places[0] for sites in places):
            self._leave_unchosen(method, fold, places)
            return None
        measured = [(dice, -rate) for rate, dice in found if dice is not None]
        rate = -max(measured)[1] if measured else method.rates[0]
        if not measured:
            why = f"no case with blood for the choice of learning_rate; {rate:g} is taken"
            emit(Warned(f"{cell_of(method, fold)}: {why}"))
        self._folder.note({"event": "rate_chosen", "method": method.id, "fold": fold, "rate": rate, "trials": found})
        return method.at_rate(rate)

    def _leave_unchosen(self, method: TrainedMethod, fold: int, places: Sequence[set[str]]) -> None:
        """Note that a method is not trained in a fold, because its trials were not all evaluated at the same sites."""
        missing = sorted(set(self._study.evaluating_sites(method.trials[0])) - set[str].intersection(*places))
        reason = f"not trained: the choice of learning_rate lacks the evaluation of a trial at {', '.join(missing)}"
        self._leave_untrained(method, fold, f"{reason}; resume the run")

    def _run_cell(self, method: Method, fold: int) -> Steps[None]:
        known = yield from self._find_finished(method, fold)
        if known is not None:
            final = self._reuse.adopt(method, fold, self._run.descriptions(), known)
            self._save_adapter(method, fold, final)
            return
        if self._is_done(method, fold):
            rounds = self._study.rounds_of(method)
            emit(CellResumed(cell_of(method, fold), rounds, rounds))
            emit(CellEvaluated(cell_of(method, fold)))
            return
        trained: AdapterState | None = {}
        if not isinstance(method, ZeroShot):
            trained = yield from self._fine_tune(method, fold)
        if trained is None:
            return
        seconds = 0.0
        for part in parts_of(method):
            seconds += yield from self._evaluations.evaluate(method, fold, trained, part)
        self._save_adapter(method, fold, trained)
        marks = None
        if "personal" in parts_of(method) and self._reuse.keeps(method, fold):
            marks = yield from self._ask_for_marks(method, fold)
        self._reuse.keep(method, fold, trained, self._run.descriptions(), seconds, marks)

    def _find_finished(self, method: Method, fold: int) -> Steps[Entry | None]:
        """The result of a cell in an earlier run, if what stayed at the sites is still there."""
        entry = self._reuse.find(method, fold, self._run.descriptions())
        if entry is None or entry.stays is None:
            return entry
        marks = yield from self._ask_for_marks(method, fold, entry.stays)
        if lacking := sorted(site for site, mark in entry.stays["marks"].items() if marks.get(site) != mark):
            named, cell = ", ".join(lacking), cell_of(method, fold)
            self._folder.note({"event": "not_reused", "cell": cell, "sites": lacking})
            emit(Warned(f"{cell}: the part that stayed at {named} is no longer there; the cell is run again"))
            return None
        return entry

    def _ask_for_marks(self, method: Method, fold: int, earlier: Record | None = None) -> Steps[dict[str, str]]:
        """The mark of the network that each site keeps of a cell; ``earlier`` names one that may count for it."""
        task, header = self._requests.task("finetune", method, fold), self._requests.header_of(method, fold)
        nodes = {
            site: self._roster[site].node_id for site in self._study.evaluating_sites(method) if site in self._roster
        }
        contents = {site: protocol.request(task, header, {}) for site in nodes}
        if earlier is not None:
            for site, mark in earlier["marks"].items():
                contents[site] = protocol.with_earlier(contents[site], study=earlier["study"], mark=mark)
        deadline_s, found = self._study.rounds.deadline_s, dict[str, str]()
        answers: Answers = yield Ask(contents, protocol.PRIVATE_PART, nodes, deadline_s, cell=cell_of(method, fold))
        for site in nodes:
            try:
                content = content_of(answers.replies.get(site), deadline_s)
                found[site] = protocol.read_private_part(content, header=header)
            except PayloadError as error:
                emit(SiteLeftOut(site, f"{cell_of(method, fold)}: {error}"))
        return found

    def _is_done(self, method: Method, fold: int) -> bool:
        """Whether an earlier session finished a cell; the adapter's card is written last."""
        evaluated = all(self._evaluations.is_done(method, fold, part) for part in parts_of(method))
        saved = all((self._folder.adapter(cell_of(method, fold)) / name).exists() for name in (TENSORS, CARD))
        return evaluated and (saved or not _leaves_an_adapter(method))

    def _fine_tune(self, method: TrainedMethod, fold: int) -> Steps[AdapterState | None]:
        study, folder, key = self._study, self._folder, cell_of(method, fold)
        emit(CellStageBegun("fine-tuning", key, method.id, fold, study.finetune.folds))
        sites = self._trainers(method, fold)
        last = folder.last_checkpoint(key)
        alone = method.trained_at or method.inner
        if alone and not sites and (last is None or last.round < study.rounds_of(method)):
            self._leave_untrained(method, fold, why_untrained(method, self._run.descriptions()))
            return None
        net = fine_tuned_network(study.views, study.model, self._base_of(method.base_of), method, study.seed)
        start, away = exchanged.read(net), staying(net, method, net.parts)
        cell = Cell(
            key,
            self._requests.fine_tuning(method, fold),
            self._requests.header_of(method, fold),
            sites,
            rule=method.aggregation,
            layers=factored_layers(net, method, without=away),
            private={name: start[name] for name in away} if method.share_private_at_end else {},
            private_layers=private_layers(net, method),
            ranks=site_ranks(study, self._base_of(method.base_of), method, sites),
        )
        after = partial(self._evaluate_round, method, fold)
        final = yield from run_cell(cell, without(start, away), self._run, after)
        if method.local_steps:
            yield from run_local_phase(cell, final, self._run)
        return final

    def _evaluate_round(self, method: TrainedMethod, fold: int, round_: int, state: AdapterState) -> Steps[None]:
        """Evaluate a method after a round, if the study asks for it."""
        if round_ in self._study.evaluated_rounds(method):
            yield from self._evaluations.evaluate(method, fold, state, parts_of(method)[0], round_)

    def _trainers(self, method: TrainedMethod, fold: int) -> tuple[str, ...]:
        self._run.invite(self._study.training_sites(method))
        if method.trained_at in POOLS and (pool := describe_pool(self._study, self._run.descriptions())):
            self._roster[POOLED] = Member(self._nodes[POOLED], pool)
        return cell_sites(self._study, method, fold, self._run.descriptions())

    def _leave_untrained(self, method: TrainedMethod, fold: int, reason: str) -> None:
        """Note that a training is left out, for example at one site that is absent or has no patients for it."""
        self._folder.note({"event": "not_trained", "method": method.id, "fold": fold, "reason": reason})
        emit(Warned(f"{method.id}, fold {fold}: {reason}"))
        missing = dict.fromkeys(self._study.evaluating_sites(method), reason)
        for part in parts_of(method):
            self._folder.write_evaluation(cell_of(method, fold), {"sums": {}, "missing": missing}, part)
        emit(CellEvaluated(cell_of(method, fold)))

    def _save_adapter(self, method: Method, fold: int, final: AdapterState) -> None:
        """Save what the sites share, with the mean of what stays if they sent it; nothing of a training at one site."""
        if not _leaves_an_adapter(method):
            return
        assert not isinstance(method, ZeroShot)
        study, requests = self._study, self._requests
        saved = method if method.share_private_at_end else method.shared_alone()
        net = fine_tuned_network(study.views, study.model, self._base_of(method.base_of), saved, study.seed)
        whole = exchanged.read(net)
        exchanged.load(net, {name: final.get(name, value) for name, value in whole.items()})
        part: Part | None = None if not method.is_personal else "mean" if method.share_private_at_end else "shared"
        note = describe(net, saved, requests.header_of(method, fold).base).model_copy(
            update={
                "trained_as": method.id,
                "study": study.name,
                "fingerprint": requests.fingerprint,
                "fold": fold,
                "rounds": study.rounds_of(method),
                "sites": contributors(study, method, self._run.descriptions()),
                "metrics": fold_metrics(self._folder, study, method, fold, part),
            }
        )
        save_adapter(self._folder.adapter(cell_of(method, fold)), net, note)


def _leaves_an_adapter(method: Method) -> bool:
    """Whether the server has something to save of a method: neither of a trial nor of what one site keeps."""
    return not isinstance(method, ZeroShot) and not method.is_alone and not method.inner
