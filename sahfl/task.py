"""What the server and the sites say to each other in plain values: what a site is asked to do, and what it has.

Nothing here depends on Flower; ``federation.protocol`` puts these values into messages and reads them back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sahfl.aggregation.rules import RULES
from sahfl.config import AdapterTuning, EvaluationConfig, LocalTraining, Method, ModelConfig, Name, Section, ViewsConfig
from sahfl.config.methods import Rank
from sahfl.payload import MOST_VOLUMES, Encoding


class Task(Section):
    """What a site is asked to do, apart from the tensors."""

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
    fold: Annotated[int, Field(ge=-1, le=19)] = -1
    """Held-out fold; -1 in pretraining."""
    method: Method | None = None
    """Fine-tuning method; none in pretraining. Its rank is the global one, and names the training at both ends."""
    rank: Rank | None = None
    """Rank of the adapter that this site gets and sends back, where that is not the method's."""
    round: Annotated[int, Field(ge=0)] = 0
    """This round, from 1; 0 outside rounds."""
    rounds: Annotated[int, Field(ge=0)] = 0
    """Rounds in all."""
    learning_rate: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Peak learning rate."""
    local: LocalTraining | None = None
    """Steps and batches; none where nothing is trained, but for an evaluation with local norms."""
    payload: Encoding = "float32"
    """How the site writes the numbers that it sends."""
    evaluation: EvaluationConfig | None = None
    """Threshold, strata and replicates; none where nothing is evaluated."""

    @property
    def own_method(self) -> Method | None:
        """The method as this site has it: with the site's own rank, if it has one."""
        if self.rank is None or not isinstance(self.method, AdapterTuning):
            return self.method
        return self.method.at_rank(self.rank)

    @model_validator(mode="after")
    def _fold_and_rank_fit(self) -> Self:
        if self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} is not one of {self.folds}, counted from 0")
        own = isinstance(self.method, AdapterTuning) and RULES[self.method.aggregation].own_ranks
        if self.rank is not None and not own:
            having = " or ".join(name for name, rule in RULES.items() if rule.own_ranks)
            raise ValueError(f"rank {self.rank} for one site, expected only with aggregation: {having}")
        return self


Count = Annotated[int, Field(ge=0, le=MOST_VOLUMES)]


class SiteDescription(Section):
    """What a site tells about its data, counts only, and with which software it computes."""

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
    """Annotated blood in all, mL; None where fewer patients bleed than the site tells of."""
    fold_sizes: Annotated[tuple[Count, ...], Field(max_length=20)]
    """Patients per fold."""
    fold_positive: Annotated[tuple[Count, ...], Field(max_length=20)]
    """Patients with annotated blood per fold."""
    data: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    """Salted hash of all contents: another one as soon as a scan or annotation changes."""
    software: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    """Hash of the site's own code and its libraries' versions (``software_hash``); no property of the data."""
    n_refused: Count
    """Cases that cannot be used."""
    findings: Annotated[dict[Annotated[str, Field(max_length=40)], Count | None], Field(max_length=100)]
    """Cases per broken rule of the site's checks; None where there are some, but fewer than the site tells."""

    @model_validator(mode="after")
    def _counts_fit(self) -> Self:
        if max(self.n_patients, self.n_positive) > self.n_volumes or sum(self.fold_sizes) != self.n_patients:
            raise ValueError("patients, positive volumes and folds do not add up")
        return self

    def sits_out(self, fold: int) -> bool:
        """Whether the site has no patient to train on when this fold is held out."""
        return self.n_patients <= self.fold_sizes[fold]


Descriptions = Mapping[str, SiteDescription]
"""What each site of a study has, by the site's name."""
