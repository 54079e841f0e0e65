"""The tasks and headers of a study's requests, as far as they depend only on the study and its base.

The server sends these tasks, and a site's dry run lists them; both call the same functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sahfl.config import AdapterTuning, Method, ModelConfig, Study, TrainedMethod, ViewsConfig, ZeroShot
from sahfl.federation.site_ranks import own_rank
from sahfl.payload import Header
from sahfl.task import Task


@dataclass(frozen=True)
class Requests:
    """Makes tasks and headers of one study."""

    study: Study
    fingerprint: str
    base_hash: str = ""
    """Hash of the base network; empty before the base exists."""

    def task(self, stage: str, method: Method | None = None, fold: int = -1) -> Task:
        """Make a task with the settings that all tasks of a stage share, without those of rounds."""
        study = self.study
        if isinstance(method, AdapterTuning):
            method = method.at_rank(method.rank)
        settings = {"stage": stage, "seed": study.seed, "views": study.views, "model": study.model}
        return Task.model_validate(settings | {"folds": study.finetune.folds, "fold": fold, "method": method})

    def pretraining(self) -> Task:
        """The task of pretraining; ``in_round`` adds the round."""
        config = self.study.pretrain
        assert config is not None
        rounds = {"rounds": config.rounds, "learning_rate": config.learning_rate, "local": config.local}
        return self.task("pretrain").model_copy(update=rounds | {"payload": self.study.rounds.payload})

    def fine_tuning(self, method: TrainedMethod, fold: int) -> Task:
        """The task of training a method with a fold held out; ``in_round`` adds the round."""
        study = self.study
        rounds = {"rounds": study.finetune.rounds, "learning_rate": method.learning_rate}
        more = {"local": study.local_training(method), "payload": study.rounds.payload}
        shared = {"common_random_numbers": study.shares_batches}
        return self.task("finetune", method, fold).model_copy(update=rounds | more | shared)

    def evaluation(self, method: Method, fold: int) -> Task:
        """The task of evaluating a method on a held-out fold."""
        stage = self.study.finetune
        task = self.task("finetune", method, fold).model_copy(update={"evaluation": self.study.evaluation})
        if stage.local.local_norms:  # a site then evaluates with its own norms of the last round
            task = task.model_copy(update={"rounds": stage.rounds, "local": stage.local})
        return task

    def trainings(self, site: str) -> Iterator[Task]:
        """Yield the first round's task of each training that a site takes part in; the first fold is held out."""
        study = self.study
        if study.pretrain and site in study.pretrain.sites:
            yield in_round(self.pretraining(), 1)
        for method in study.finetune.methods:
            if not isinstance(method, ZeroShot) and site in study.training_sites(method):
                yield in_round(self.fine_tuning(method, 0), 1, own_rank(method, site))

    def evaluations(self, site: str) -> tuple[Task, ...]:
        """The tasks of a site's evaluation of each method on the first fold."""
        stage = self.study.finetune
        return tuple(self.evaluation(method, 0) for method in stage.methods) if site in stage.sites else ()

    def header(self, stage: str, method: str, fold: int = -1) -> Header:
        """The header of a request that belongs to no round."""
        return Header(self.fingerprint, stage=stage, method=method, fold=fold, round=0, base=self.base_hash)


def in_round(task: Task, round_: int, rank: int | None = None) -> Task:
    """Set the round of a training task, and the rank of the site's adapter if it differs from the global one."""
    return task.model_copy(update={"round": round_, "rank": rank})


def plain_task(stage: str, method: Method | None = None, fold: int = -1) -> Task:
    """Make a task for a dry run without a study, with the network of default size and two folds."""
    settings = {"stage": stage, "seed": 0, "views": ViewsConfig(), "model": ModelConfig(), "folds": 2}
    return Task.model_validate(settings | {"fold": fold, "method": method})


def question(requests: Requests | None) -> Task:
    """The task of a message that asks for no training and no evaluation."""
    return requests.task("finetune") if requests else plain_task("finetune")
