"""The evaluation of a method on a fold: the sums of each site, or in a study with masks one sum over all sites."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from flwr.app import RecordDict

from sahfl.adapters import AdapterState
from sahfl.adapters.attach import staying
from sahfl.cell_names import cell_of
from sahfl.config import Method, ZeroShot
from sahfl.errors import PayloadError
from sahfl.events import CellEvaluated, CellStageBegun, RoundEvaluated, SiteLeftOut, emit
from sahfl.federation import protocol
from sahfl.federation.requests import Requests
from sahfl.federation.server.cell import Run
from sahfl.federation.server.mailbox import Answers, Ask
from sahfl.federation.server.masked_evaluation import ONE_SET, MaskedEvaluation
from sahfl.federation.server.replies import content_of
from sahfl.federation.server.schedule import Pause, Steps
from sahfl.federation.server.used_rounds import last_used
from sahfl.networks import fine_tuned_network
from sahfl.payload import Header
from sahfl.run.folder import Record
from sahfl.statistics.sums import EvaluationSums
from sahfl.task import Part, Task

STAYS = "its results stay at the site (rounds.masking)"


class Evaluations:
    """The evaluations of a study; what is in the run's folder is not asked for again.

    Args:
        run: what all cells share.
        requests: of the study.
        base_of: the base network, or a site's own one.
    """

    def __init__(self, run: Run, requests: Requests, base_of: Callable[[str | None], AdapterState]) -> None:
        self._run, self._requests, self._base_of = run, requests, base_of
        self._folder, self._roster, self._study = run.folder, run.roster, requests.study

    def is_done(self, method: Method, fold: int, part: Part | None, after_round: int = 0) -> bool:
        """Whether an earlier session evaluated a method on a fold at all its sites, or has its masked sum."""
        known = self._folder.evaluation(cell_of(method, fold), part, after_round)
        return known.get("masked") is not None or _done(known) >= set(self._study.evaluating_sites(method))

    def evaluate(
        self, method: Method, fold: int, state: AdapterState, part: Part | None, after_round: int = 0
    ) -> Steps[float]:
        """Ask the sites that have not evaluated a fold to do so; returns the seconds that they took together.

        ``state`` is what the sites share after the training, or after the round ``after_round`` of it.
        """
        cell, all_sites = cell_of(method, fold), self._study.evaluating_sites(method)
        if self.is_done(method, fold, part, after_round):
            emit(RoundEvaluated(cell, after_round) if after_round else CellEvaluated(cell))
            return 0.0
        task = self._requests.evaluation(method, fold, part, after_round)
        header = self._requests.header_of(method, fold, after_round)
        known = self._folder.evaluation(cell, part, after_round)
        sites = [site for site in all_sites if site in self._roster and site not in _done(known)]
        if not after_round:
            emit(CellStageBegun("evaluating", cell, method.id, fold, self._study.finetune.folds))
        contents = self._contents(method, task, header, state, sites)
        if task.masking is not None and not task.sums_stay:
            found, seconds = yield from self._ask_masked(cell, task, header, contents, all_sites)
        else:
            found, seconds = yield from self._ask(cell, task, header, contents, known)
        for site, reason in found["missing"].items():
            if site not in found.get("stays", ()):
                lacking = {"method": method.id, "fold": fold, "part": part, "site": site, "reason": reason}
                lacking |= {"after_round": after_round} if after_round else {}
                self._folder.note({"event": "not_evaluated"} | lacking)
        self._folder.write_evaluation(cell, found, part, after_round)
        asked = len(sites), len(all_sites)
        emit(RoundEvaluated(cell, after_round, *asked) if after_round else CellEvaluated(cell, *asked))
        return seconds

    def _ask(
        self, cell: str, task: Task, header: Header, contents: Mapping[str, RecordDict], known: Record
    ) -> Steps[tuple[Record, float]]:
        """The evaluation with the sums of each site, and seconds."""
        nodes = {site: self._roster[site].node_id for site in contents}
        deadline_s, missing = self._study.rounds.deadline_s, dict[str, str]()
        kind = protocol.EVALUATE_OWN if task.sums_stay else protocol.EVALUATE
        answers: Answers = yield Ask(contents, kind, nodes, deadline_s, cell=cell)
        answers.write_oddities(self._folder.note, kind)
        sums, stays = known["sums"], list(known.get("stays", ()))
        for site in contents:
            try:
                content = content_of(answers.replies.get(site), deadline_s)
                if task.sums_stay:
                    protocol.read_stays_reply(content, header=header)
                    stays.append(site)
                else:
                    array = protocol.read_evaluation_reply(content, header=header)
                    EvaluationSums.from_array(array, self._study.evaluation)
                    sums[site] = [float(value) for value in array]
            except PayloadError as error:
                missing[site] = str(error)
        found = {"sums": sums, "missing": missing | dict.fromkeys(stays, STAYS)}
        return found | ({"stays": stays} if stays else {}), sum(answers.seconds.values())

    def _ask_masked(
        self, cell: str, task: Task, header: Header, contents: Mapping[str, RecordDict], sites: Sequence[str]
    ) -> Steps[tuple[Record, float]]:
        """One sum over the sites; a site that is not in it never gets into it, because two sums differ by its own.

        Only the last attempt begins without a site that is there.
        """
        config = self._run.config
        for attempt in range(1, config.attempts + 1):
            quorum = len(contents) if attempt < config.attempts else 0
            sum_ = MaskedEvaluation(cell, task, header, contents, self._run, quorum=quorum)
            yield from sum_.run()
            if sum_.found is not None or attempt == config.attempts:
                break
            if config.pause_s:
                yield Pause(config.pause_s)
        where = {"method": task.cell, "fold": task.fold, "part": task.part}
        self._folder.note({"event": "masked_evaluation"} | where | sum_.notes | sum_.outcome.oddities)
        in_sum = () if sum_.found is None else sum_.found["sites"]
        reasons = {item["site"]: item["reason"] for item in sum_.outcome.reasons()}
        missing = dict[str, str]()
        for site in sites:
            if site not in in_sum:
                usual = self._run.why_out(site) if site not in contents else sum_.failure or ONE_SET
                missing[site] = reasons.get(site, usual)
                emit(SiteLeftOut(site, f"{cell}: {missing[site]}"))
        return {"sums": {}, "missing": missing, "masked": sum_.found}, sum_.seconds

    def _contents(
        self, method: Method, task: Task, header: Header, state: AdapterState, sites: Sequence[str]
    ) -> dict[str, RecordDict]:
        """The request to each site; what stays at the sites is sent only as its mean."""
        study = self._study
        if task.part is None or isinstance(method, ZeroShot):
            return dict.fromkeys(sites, protocol.request(task, header, state))
        net = fine_tuned_network(study.views, study.model, self._base_of(method.base_of), method, study.seed)
        state = state if task.part == "mean" else without(state, staying(net, method, net.parts))
        last = task.round or study.rounds_of(method) + 1
        own = last_used(self._folder.journal(), header, before=last + 1)
        tasks = {site: task.model_copy(update={"own_round": own.get(site, 0)}) for site in sites}
        return {site: protocol.request(tasks[site], header, state) for site in sites}


def _done(known: Record) -> set[str]:
    """The sites of whose evaluation everything is known that leaves them."""
    return {*known["sums"], *known.get("stays", ())}


def without(state: AdapterState, names: Iterable[str]) -> AdapterState:
    """A state without some of its tensors."""
    left_out = set(names)
    return {name: value for name, value in state.items() if name not in left_out}
