"""The tasks and headers of a study's requests, as far as they depend only on the study and its base.

The server sends these tasks, and a site's dry run lists them; both call the same functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sahfl.config import AdapterTuning, Method, ModelConfig, Study, TrainedMethod, ViewsConfig, ZeroShot, masking_of
from sahfl.federation.site_ranks import own_rank
from sahfl.payload import Header
from sahfl.task import Part, Task, parts_of


@dataclass(frozen=True)
class Requests:
    """Makes tasks and headers of one study."""

    study: Study
    fingerprint: str
    base_hash: str = ""
    """Hash of the base network; empty before the base exists."""
    own_bases: Mapping[str, str] = field(default_factory=dict)
    """Hashes of the bases that pretraining sites trained alone, by site."""

    def task(self, stage: str, method: Method | None = None, fold: int = -1) -> Task:
        """Make a task with the settings that all tasks of a stage share, without those of rounds."""
        study = self.study
        if isinstance(method, AdapterTuning):
            method = method.at_rank(method.rank)
        settings = {"stage": stage, "seed": study.seed, "views": study.views, "model": study.model}
        return Task.model_validate(settings | {"folds": study.finetune.folds, "fold": fold, "method": method})

    def pretraining(self, site: str | None = None) -> Task:
        """The task of pretraining, at all its sites or at one alone; ``in_round`` adds the round."""
        config = self.study.pretrain
        assert config is not None
        rounds = {"rounds": config.rounds, "learning_rate": config.learning_rate, "local": config.local}
        masking = self.study.rounds.masking if site is None else None
        more = {"payload": self.study.rounds.payload, "pretrain_at": site, "masking": masking}
        shared = {"common_random_numbers": self.study.shares_batches}
        return self.task("pretrain").model_copy(update=rounds | more | shared)

    def fine_tuning(self, method: TrainedMethod, fold: int) -> Task:
        """The task of training a method with a fold held out; ``in_round`` adds the round.

        Raises:
            ValueError: the method's learning rate is not chosen yet.
        """
        study, (rate,) = self.study, method.rates
        rounds = {"rounds": study.rounds_of(method), "learning_rate": rate}
        more = {"local": study.local_training(method), "payload": study.rounds.payload}
        shared = {"common_random_numbers": study.shares_batches, "masking": masking_of(study, method)}
        return self.task("finetune", method, fold).model_copy(update=rounds | more | shared)

    def local_phase(self, method: TrainedMethod, fold: int) -> Task:
        """The task of the last phase at each site, after the rounds; ``in_round`` adds what each site must have."""
        task = self.fine_tuning(method, fold)
        return in_round(task, task.rounds + 1, own_round=task.rounds)

    def evaluation(self, method: Method, fold: int, part: Part | None = None, after_round: int = 0) -> Task:
        """The task of evaluating a method, or a part of it, on a held-out fold.

        The server replaces ``own_round``, which is here that of a site whose answers were all used.

        Args:
            method: the method.
            fold: the held-out fold.
            part: what is evaluated of a method with a part at each site.
            after_round: one of the study's ``evaluated_rounds``; 0 after the training.
        """
        rounds = self.study.rounds_of(method)
        more: dict[str, Any] = {"evaluation": self.study.evaluation, "part": part, "rounds": rounds}
        more |= {"masking": self.study.rounds.masking, "round": after_round}
        if part == "personal":
            assert not isinstance(method, ZeroShot)
            more["own_round"] = after_round or rounds + (method.local_steps > 0)
        return self.task("finetune", method, fold).model_copy(update=more)

    def trainings(self, site: str) -> Iterator[Task]:
        """Yield the first round's task of each training that a site takes part in; the first fold is held out."""
        study = self.study
        if study.pretrain and site in study.pretrain.sites:
            yield in_round(self.pretraining(), 1)
            if site in study.own_bases:
                yield in_round(self.pretraining(site), 1)
        for method in self._trained_at(site):
            yield in_round(self.fine_tuning(method, 0), 1, own_rank(method, site))

    def local_phases(self, site: str) -> Iterator[Task]:
        """Yield the task of each last phase at a site; the first fold is held out."""
        for method in self._trained_at(site):
            if method.local_steps:
                yield self.local_phase(method, 0)

    def evaluations(self, site: str) -> tuple[Task, ...]:
        """The tasks of a site's evaluations of each method on the first fold."""
        methods = [method for method in self.study.finetune.methods if site in self.study.evaluating_sites(method)]
        return tuple(
            self.evaluation(method, 0, part, after_round)
            for method in methods
            for after_round in (*self.study.evaluated_rounds(method), 0)
            for part in (parts_of(method)[:1] if after_round else parts_of(method))
        )

    def private_parts(self, site: str) -> Iterator[Task]:
        """Yield the task for each method of which a part stays at a site, for the first fold."""
        for method in self._trained_at(site):
            if "personal" in parts_of(method):
                yield self.task("finetune", method, 0)

    def _trained_at(self, site: str) -> Iterator[TrainedMethod]:
        study = self.study
        for method in study.trainings:
            if not isinstance(method, ZeroShot) and site in study.training_sites(method):
                yield method.at_rate(method.rates[-1], inner=method.inner)

    def header(self, stage: str, method: str, fold: int = -1, *, base_of: str | None = None) -> Header:
        """The header of a request that belongs to no round; ``base_of`` is the site whose own base it is about."""
        base = self.base_hash if base_of is None else self.own_bases[base_of]
        return Header(self.fingerprint, stage=stage, method=method, fold=fold, round=0, base=base)

    def header_of(self, method: Method, fold: int, round_: int = 0) -> Header:
        """The header of a request about a method on a fold, without the round unless it is about one."""
        return replace(self.header("finetune", method.id, fold, base_of=method.base_of), round=round_)


def in_round(task: Task, round_: int, rank: int | None = None, *, own_round: int = 0) -> Task:
    """Set the round of a training task, and what differs between the sites.

    Args:
        task: the task without a round.
        round_: the round, from 1.
        rank: the rank of the site's adapter if it differs from the global one.
        own_round: the last round of which the server used an answer of the site.
    """
    return task.model_copy(update={"round": round_, "rank": rank, "own_round": own_round})


def plain_task(stage: str, method: Method | None = None, fold: int = -1) -> Task:
    """Make a task for a dry run without a study, with the network of default size and two folds."""
    settings = {"stage": stage, "seed": 0, "views": ViewsConfig(), "model": ModelConfig(), "folds": 2}
    return Task.model_validate(settings | {"fold": fold, "method": method})


def question(requests: Requests | None) -> Task:
    """The task of a message that asks for no training and no evaluation, with the masking of the study."""
    if requests is None:
        return plain_task("finetune")
    return requests.task("finetune").model_copy(update={"masking": requests.study.rounds.masking})
