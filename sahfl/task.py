"""The server's tasks and the sites' descriptions as plain values; ``federation.protocol`` makes messages of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sahfl.aggregation.rules import RULES
from sahfl.cell_names import Pretraining
from sahfl.config import (
    AdapterTuning,
    EvaluationConfig,
    LocalTraining,
    Masking,
    Method,
    ModelConfig,
    Name,
    Section,
    TrainedMethod,
    ViewsConfig,
    ZeroShot,
)
from sahfl.config.masking import method_problems
from sahfl.config.training import Rank
from sahfl.payload import MOST_VOLUMES, Encoding

Part = Literal["personal", "shared", "mean"]
"""Of a method with a part at each site: each site's own network; what the sites share, without any such part; what they
share with the mean of these parts."""


def parts_of(method: Method) -> tuple[Part | None, ...]:
    """What is evaluated of a method, each by itself; None is a method without a part at each site."""
    if isinstance(method, ZeroShot) or not (method.is_personal or method.is_alone):
        return (None,)
    if method.is_alone or method.inner:
        return ("personal",)
    return ("personal", "shared", "mean") if method.share_private_at_end else ("personal", "shared")


class Task(Section):
    """What the server asks of a site, without the tensors."""

    stage: Literal["pretrain", "finetune"]
    """Which stage of the study."""
    seed: int
    """The study's seed."""
    views: ViewsConfig
    """From volume to slices."""
    model: ModelConfig
    """The network."""
    folds: Annotated[int, Field(ge=2, le=20)]
    """Number of folds of the study."""
    pretrain_at: Name | None = None
    """The one site that pretrains a base of its own; only in a simulation."""
    fold: Annotated[int, Field(ge=-1, le=19)] = -1
    """Held-out fold; -1 in pretraining."""
    method: Method | None = None
    """Fine-tuning method, with the global rank; none in pretraining."""
    rank: Rank | None = None
    """Rank of this site's adapter, if it is not the method's."""
    round: Annotated[int, Field(ge=0)] = 0
    """This round, from 1; 0 outside rounds."""
    rounds: Annotated[int, Field(ge=0)] = 0
    """Rounds in all."""
    learning_rate: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Peak learning rate."""
    common_random_numbers: bool = False
    """Whether the batches depend on the repeat alone, not on the method; only in a simulation."""
    local: LocalTraining | None = None
    """Steps and batches; none in tasks without training."""
    own_round: Annotated[int, Field(ge=0)] = 0
    """Last round of which the server used an answer of this site, the last phase at the site included: what stays at
    the site must be there from that round on. 0: none."""
    part: Part | None = None
    """What an evaluation of a method with a part at each site covers; none for other methods."""
    payload: Encoding = "float32"
    """Number format of the site's reply."""
    masking: Masking | None = None
    """How the site masks its reply, its sums of an evaluation too; None: they are in the clear."""
    evaluation: EvaluationConfig | None = None
    """Threshold, strata and replicates; none in tasks without evaluation."""

    @property
    def cell(self) -> str:
        """The method's id, or the name of the pretraining."""
        return self.method.id if self.method else Pretraining(self.pretrain_at).id

    @property
    def own_method(self) -> Method | None:
        """The method with this site's rank."""
        if self.rank is None or not isinstance(self.method, AdapterTuning):
            return self.method
        return self.method.at_rank(self.rank)

    @property
    def training(self) -> TrainedMethod | None:
        """The method with this site's rank if it trains something; None in pretraining."""
        method = self.own_method
        return None if isinstance(method, ZeroShot) else method

    @property
    def inner(self) -> bool:
        """Whether it belongs to a trial of a learning rate, which leaves out one fold more (``held_out_folds``)."""
        return self.training is not None and self.training.inner

    @property
    def evaluated_fold(self) -> int:
        """The fold whose patients are evaluated: the tested one, or in a trial that of the choice."""
        return held_out_folds(self.fold, self.folds, inner=self.inner)[-1]

    @property
    def sums_stay(self) -> bool:
        """Whether it is the evaluation, in a study with masks, of what one site trained alone: its sums stay there."""
        return None not in (self.masking, self.evaluation) and self.training is not None and self.training.is_alone

    @property
    def is_last_round(self) -> bool:
        """Whether this is the last round at all sites together."""
        return self.round == self.rounds > 0

    @model_validator(mode="after")
    def _fold_and_rank_fit(self) -> Self:
        if self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} is not one of {self.folds}, counted from 0")
        own = isinstance(self.method, AdapterTuning) and RULES[self.method.aggregation].own_ranks
        if self.rank is not None and not own:
            having = " or ".join(name for name, rule in RULES.items() if rule.own_ranks)
            raise ValueError(f"rank {self.rank} for one site, expected only with aggregation: {having}")
        return self

    @model_validator(mode="after")
    def _masks_fit(self) -> Self:
        if self.masking is None:
            return self
        problems = [] if self.training is None else list(method_problems(self.training))
        if self.payload != "float32" or self.rank is not None or self.pretrain_at is not None:
            problems.append("payload float32 and the same tensors at all sites are expected beside masking")
        if problems:
            raise ValueError("; ".join(problems))
        return self


def held_out_folds(fold: int, n_folds: int, *, inner: bool = False) -> tuple[int, ...]:
    """The folds whose patients a training leaves out: the tested one, and after it, in a trial, that of the choice."""
    return (fold, (fold + 1) % n_folds) if inner else (fold,)


Count = Annotated[int, Field(ge=0, le=MOST_VOLUMES)]


class SiteDescription(Section):
    """Counts over a site's data, and a hash of its software."""

    site: Name
    """The site's name."""
    source: Annotated[str, Field(max_length=60)]
    """Phantom and its scanner profile, datalist, nnU-Net or DICOM."""
    n_volumes: Annotated[int, Field(ge=1, le=MOST_VOLUMES)]
    """Usable CT volumes."""
    n_patients: Annotated[int, Field(ge=1, le=MOST_VOLUMES)]
    """Patients with a usable volume."""
    n_positive: Count
    """Volumes with annotated blood."""
    volume_ml: Annotated[float, Field(ge=0, le=1e9)] | None
    """Annotated blood in all, mL; None if too few patients have blood for the site's policy."""
    fold_sizes: Annotated[tuple[Count, ...], Field(max_length=20)]
    """Patients per fold."""
    fold_positive: Annotated[tuple[Count, ...], Field(max_length=20)]
    """Patients with annotated blood per fold."""
    data: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    """Salted hash of all scans and annotations."""
    software: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    """Hash of the site's code and its libraries' versions (``software_hash``)."""
    batches: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    """Hash of the secret from which the site draws its batches (``site.secret``)."""
    confirmations: Annotated[int, Field(ge=0, le=100)]
    """Other sites that must confirm the start of a round before this site trains from it."""
    n_refused: Count
    """Cases that cannot be used."""
    findings: Annotated[dict[Annotated[str, Field(max_length=40)], Count | None], Field(max_length=100)]
    """Cases per broken rule of the site's checks; None for a count that is too small for the site's policy."""

    @model_validator(mode="after")
    def _counts_fit(self) -> Self:
        if max(self.n_patients, self.n_positive) > self.n_volumes or sum(self.fold_sizes) != self.n_patients:
            raise ValueError("patients, positive volumes and folds do not add up")
        return self

    def sits_out(self, fold: int, *, inner: bool = False) -> bool:
        """Whether the site has no patient to train on with this fold held out; ``inner`` as in ``held_out_folds``."""
        left_out = held_out_folds(fold, len(self.fold_sizes), inner=inner)
        return self.n_patients <= sum(self.fold_sizes[one] for one in left_out)


Descriptions = Mapping[str, SiteDescription]
"""What each site of a study has, by the site's name."""
