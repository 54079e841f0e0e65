"""Cells of earlier runs: a run takes the result of a finished cell from the store instead of running it again.

A cell is kept only if every site took part in every round and in the evaluation: otherwise its result depends on more
than its settings. No cell is kept of a run in which the software of the server, or the software or secret of a site,
changed between sessions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sahfl.adapters import AdapterState
from sahfl.cell_names import Pretraining, cell_of
from sahfl.config import POOLED, Method, Study, ZeroShot, masking_of
from sahfl.errors import AdapterError, PayloadError
from sahfl.events import CellReused, Warned, emit
from sahfl.federation.requests import Requests
from sahfl.run.cell_store import CellStore, Entry, Identity, Record
from sahfl.run.folder import Checkpoint, RunFolder
from sahfl.run.software import software
from sahfl.statistics.sums import EvaluationSums
from sahfl.task import Descriptions, parts_of


class Reuse:
    """Takes cells from the store in the folder ``cells`` into a run, and keeps the cells that the run finishes.

    Without ``cells`` it does neither. ``requests`` must hold the base's hash once there is a base.
    """

    def __init__(self, cells: Path | None, requests: Requests, folder: RunFolder) -> None:
        self._store = CellStore(cells) if cells is not None else None
        self._requests, self._study, self._folder = requests, requests.study, folder

    def find(self, method: Method | Pretraining, fold: int, sites: Descriptions) -> Entry | None:
        """Find an earlier run's result of a cell, unless this run has begun the cell itself.

        Args:
            method: the method, or pretraining.
            fold: the held-out fold; -1 in pretraining.
            sites: the sites that take part, with their descriptions.

        Returns:
            The finished cell; None if the store has no such cell.
        """
        identity, key = self._identity(method, fold, sites), _key(method, fold)
        begun = self._folder.has_begun(key, trained=not isinstance(method, ZeroShot))
        if self._store is None or identity is None or begun:
            return None
        try:
            entry = self._store.find(identity)
            for evaluation in entry.evaluations.values() if entry else ():
                for values in evaluation["sums"].values():  # of another version, they have another length
                    EvaluationSums.from_array(np.asarray(values, np.float64), self._study.evaluation)
        except (AdapterError, PayloadError, KeyError, TypeError, ValueError) as error:
            emit(Warned(f"{key}: the cell of an earlier run is damaged ({error}); it is run again"))
            self._folder.note({"event": "damaged_cell", "cell": key, "entry": identity.key})
            self._store.drop(identity)
            return None
        return entry

    def adopt(self, method: Method | Pretraining, fold: int, sites: Descriptions, entry: Entry) -> AdapterState:
        """Write a found cell into this run, and return the state after its last round.

        The file that ``has_begun`` looks for comes last, so that a crash repeats all.
        """
        identity, key = self._identity(method, fold, sites), _key(method, fold)
        assert identity is not None
        self._folder.note({"event": "reused", "cell": key, "entry": identity.key})
        for name, evaluation in entry.evaluations.items():
            part, _, after_round = name.partition(" ")
            self._folder.write_evaluation(key, evaluation, part or None, int(after_round or 0))
        for line in entry.rounds[:-1]:
            self._folder.note(line | {"reused": True})
        if entry.rounds:
            last = entry.rounds[-1]
            self._folder.commit(key, Checkpoint(last["round"], entry.state, last | {"reused": True}))
        emit(CellReused(key, len(entry.rounds)))
        return entry.state

    def keeps(self, method: Method, fold: int) -> bool:
        """Whether this run keeps its finished cells, and this one is its own."""
        return self._store is not None and _key(method, fold) not in self._folder.reused()

    def keep(
        self,
        method: Method | Pretraining,
        fold: int,
        final: AdapterState,
        sites: Descriptions,
        seconds: float = 0.0,
        marks: Mapping[str, str] | None = None,
    ) -> None:
        """Keep a cell that this run has finished, if no site was missing in it.

        Args:
            method: as in ``find``, and so are ``fold`` and ``sites``.
            fold: the held-out fold.
            final: the state after the last round.
            sites: the sites that take part.
            seconds: the sites' work for the evaluation.
            marks: by site, the mark of the network that stays there; None if nothing stays.
        """
        identity, key = self._identity(method, fold, sites), _key(method, fold)
        if self._store is None or identity is None or key in self._folder.reused():
            return
        journal = self._folder.journal()
        rounds = _rounds(journal, method, fold)
        evaluations = {}
        if not isinstance(method, Pretraining):
            parts = parts_of(method)
            evaluations = {str(part or ""): self._folder.evaluation(key, part) for part in parts}
            for round_ in self._study.evaluated_rounds(method):
                evaluations[f"{parts[0] or ''} {round_}"] = self._folder.evaluation(key, parts[0], round_)
        if not _is_of_one_kind(journal) or not self._is_whole(method, fold, sites, rounds, evaluations, marks):
            return
        work = sum(site["seconds"] for line in rounds for site in line["used"])
        stays = None if marks is None else {"study": self._requests.fingerprint, "marks": dict(marks)}
        try:
            self._store.save(identity, Entry(final, rounds, evaluations, round(work + seconds, 3), stays))
        except OSError as error:
            emit(Warned(f"{key}: is not kept for later runs ({error.strerror})"))

    def _identity(self, method: Method | Pretraining, fold: int, sites: Descriptions) -> Identity | None:
        """Everything that determines a cell's result; None if a site is absent."""
        study = self._study
        stage = study.pretrain if isinstance(method, Pretraining) else study.finetune
        assert stage is not None
        if any(site not in sites for site in stage.sites):
            return None
        content: Record = software() | {"seed": study.seed} | work_of(study, method) | {"hostile": study.hostile}
        content |= {"data": {site: sites[site].data for site in sorted(stage.sites)}}
        content |= {"software": {site: sites[site].software for site in sorted(stage.sites)}}
        content |= {"batches": {site: sites[site].batches for site in sorted(stage.sites)}}
        if not isinstance(method, Pretraining):
            content |= {"name": method.id, "fold": fold, "base": self._requests.header_of(method, fold).base}
            content |= {"evaluation": study.evaluation.model_dump(mode="json")}
            content |= {} if isinstance(method, ZeroShot) else {"learning_rate": method.learning_rate}
        return Identity(content, work_of(study, method))

    def _is_whole(
        self,
        method: Method | Pretraining,
        fold: int,
        sites: Descriptions,
        rounds: list[Record],
        evaluations: Mapping[str, Record],
        marks: Mapping[str, str] | None,
    ) -> bool:
        study = self._study
        stage = study.pretrain if isinstance(method, Pretraining) else study.finetune
        assert stage is not None
        if isinstance(method, Pretraining):
            trainers, n_rounds = (method.site,) if method.site else stage.sites, stage.rounds
        else:
            trainers, n_rounds = study.training_sites(method), study.rounds_of(method)
            inner = not isinstance(method, ZeroShot) and method.inner
            trainers = tuple(site for site in trainers if site == POOLED or not sites[site].sits_out(fold, inner=inner))
            wanted = set(study.evaluating_sites(method))
            if any(set(evaluation["sums"]) != wanted for evaluation in evaluations.values()):
                return False
            if marks is not None and (set(marks) != wanted or not all(marks.values())):
                return False
            n_rounds += not isinstance(method, ZeroShot) and method.local_steps > 0
        used = [{site["site"] for site in line["used"]} for line in rounds]
        return len(rounds) == n_rounds and all(names == set(trainers) for names in used)


def work_of(study: Study, method: Method | Pretraining) -> Record:
    """The settings that determine the work of a cell."""
    parts = {"views": study.views, "model": study.model}
    found: Record = {name: part.model_dump(mode="json") for name, part in parts.items()}
    rules = study.rounds.model_dump(mode="json", include={"payload", "most_share", "most_norm"})
    if masking := masking_of(study, None if isinstance(method, Pretraining) else method):
        rules["masking"] = masking.model_dump(mode="json")
    if isinstance(method, Pretraining):
        assert study.pretrain is not None
        alone = {"site": method.site} if method.site else {}
        found |= alone | {"pretrain": study.pretrain.model_dump(mode="json"), "rules": rules}
        return found | {"shares_batches": study.shares_batches}
    found |= {"sites": list(study.finetune.sites), "folds": study.finetune.folds}
    found["method"] = method.model_dump(mode="json", exclude={"repeat", "label", "learning_rate"})
    if isinstance(method, ZeroShot):
        masking = study.rounds.masking
        return found if masking is None else found | {"masking": masking.model_dump(mode="json")}
    if evaluated := study.evaluated_rounds(method):
        found["evaluated_rounds"] = list(evaluated)
    training = {"rounds": study.rounds_of(method), "local": study.local_training(method).model_dump(mode="json")}
    return found | training | {"rules": rules, "shares_batches": study.shares_batches}


def _rounds(journal: list[Record], method: Method | Pretraining, fold: int) -> list[Record]:
    """The committed rounds of a cell, each as it was committed last."""
    wanted: tuple[str, str | None, int | None] = ("finetune", method.id, fold)
    if isinstance(method, Pretraining):
        wanted = ("pretrain", method.id if method.site else None, None)
    found = {
        line["round"]: line
        for line in journal
        if line["event"] in ("round", "local_phase") and line["committed"]
        if (line["stage"], line["method"], line["fold"]) == wanted
    }
    return [found[round_] for round_ in sorted(found)]


def _is_of_one_kind(journal: list[Record]) -> bool:
    """Whether the server had the same software in every session of a run, and each site its software and secret."""
    lines = [line for line in journal if line["event"] in ("started", "resumed", "described")]
    found = {(line.get("site"), line.get("software"), line.get("batches")) for line in lines}
    return len(found) == len({site for site, *_ in found})


def _key(method: Method | Pretraining, fold: int) -> str:
    return method.id if isinstance(method, Pretraining) else cell_of(method, fold)
