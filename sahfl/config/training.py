"""Settings that all methods that train share: who trains, from which base, how often, and what stays at a site."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from sahfl.section import Name, Section, is_none

Part = Literal[
    "encoder",
    "encoder.1",
    "encoder.2",
    "encoder.3",
    "encoder.4",
    "bottleneck",
    "decoder",
    "decoder.4",
    "decoder.3",
    "decoder.2",
    "decoder.1",
    "head",
]
"""A part of the multi-view U-Net, by role and depth; depth 1 is at full resolution."""
Stay = Literal["norm", "out", "inner"] | Part
"""What stays at a site: the network's norms, the factors on one side of every adapter, or all that trains in a part."""
LearningRate = Annotated[float, Field(gt=0, le=1)]


def _increasing(rates: tuple[float, ...]) -> tuple[float, ...]:
    if any(low >= high for low, high in pairwise(rates)):
        raise ValueError(f"the rates must increase, got {', '.join(f'{rate:g}' for rate in rates)}")
    return rates


Rates = Annotated[tuple[LearningRate, ...], Field(min_length=2, max_length=8), AfterValidator(_increasing)]
"""Learning rates to choose from. In each fold the training is tried at each rate, without the patients of the fold
after it, who are in this fold's training and not in its test; the rate with the best mean Dice on these patients is
taken. Only a simulation does so: every trial of a hospital would be one more update that leaves it."""
Rank = Annotated[int, Field(ge=1, le=512)]
POOLED, POOLED_STEPS = "pooled", "pooled_steps"
"""``trained_at`` of a training on all fine-tuning sites' patients together, which only a simulation has: in as many
steps as all sites take together, or in as many as one site takes."""
POOLS = (POOLED, POOLED_STEPS)
ONLY_IN_A_SIMULATION = {
    "base_of": "one site's network would leave it without an average over sites",
    "left_out": "the difference from the training at all sites is one site's update",
    "most_patients": "the difference of two such trainings is that of a few patients",
    "trials": "each trial is one more update that leaves a hospital; choose in a simulation and give one rate",
}
"""By a method's setting, why hospitals cannot have it."""
MOST_REPEATS = 100
Repeat = Annotated[int, Field(ge=1, le=MOST_REPEATS)]


class Training(Section):
    """The settings that standard fine-tuning and adapters share: where a method is trained, and what stays there."""

    learning_rate: LearningRate | Rates
    """Peak learning rate of AdamW, or several to choose from in each fold."""
    stays: tuple[Stay, ...] = ()
    """What trains but never leaves a site, which trains and evaluates with its own: ``norm`` trains the network's norms
    (FedBN, arXiv 2102.07623), ``out`` and ``inner`` are the factors on one side of every adapter (FedSA, arXiv
    2410.01463, is ``out``), a part names all that the method trains in it. A pooled training keeps nothing back."""
    private_learning_rate: LearningRate | None = None
    """Peak learning rate of what stays in the rounds, which a training at one site alone has as well; by default
    ``learning_rate``. All trains at ``learning_rate`` in the last phase."""
    local_steps: Annotated[int, Field(ge=0, le=100_000)] = 0
    """Steps of a last phase at each site by itself, after the rounds, in which all that the method trains goes on
    training. Nothing of it leaves."""
    share_private_at_end: bool = False
    """Whether what stays is sent once, in the last round: its mean serves hospitals that have no part of their own. A
    site must allow it (``policy.private_mean``)."""
    trained_at: Name | None = None
    """Where it is trained: at all fine-tuning sites together (federated), if nothing is said; at one site alone, by its
    name, and then nothing leaves that site, which also evaluates it; or ``pooled`` or ``pooled_steps``, all sites'
    patients in one place, which only a simulation can."""
    left_out: Name | None = None
    """The fine-tuning site that takes no part in the training; all others train, and this one alone evaluates. Only a
    simulation has it: the difference from the training at all sites is one site's update."""
    base_of: Name | None = None
    """The pretraining site whose own base it starts from. This site trains it alone, in as many steps as it takes in
    the pretraining of all sites together. By default the base of all. Only a simulation has bases of single sites."""
    rounds: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Rounds of this training, where they are not ``finetune.rounds``."""
    most_patients: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(default=None, exclude_if=is_none)
    """Largest number of training patients of each site in a fold; the held-out patients stay the same. The patients of
    a smaller number are among those of a larger one. Only a simulation has it: the difference of two such trainings is
    that of a few patients."""
    repeat: Repeat = 1
    """Number of this training: from 2 on the same settings with other random numbers (adapter start, sampling)."""
    inner: bool = False
    """Whether it is a trial of a learning rate, which holds out the fold after the tested one too and is evaluated
    there. sahfl sets it; a study file leaves it out."""
    label: Name | None = None
    """Appended to the method's name, to tell apart two that differ in their numbers only."""

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates to choose from; a single one if the method gives its rate."""
        return self.learning_rate if isinstance(self.learning_rate, tuple) else (self.learning_rate,)

    @property
    def trials(self) -> tuple[Self, ...]:
        """The trainings that choose the learning rate; none if it is given."""
        return tuple(self.at_rate(rate, inner=True) for rate in self.rates) if len(self.rates) > 1 else ()

    def at_rate(self, rate: float, *, inner: bool = False) -> Self:
        """The method at one learning rate; ``inner`` makes it the trial of this rate, which keeps what stays."""
        shares = self.share_private_at_end and not inner
        return self.model_copy(update={"learning_rate": rate, "inner": inner, "share_private_at_end": shares})

    @property
    def is_alone(self) -> bool:
        """Whether one site trains it by itself; all that it trains then stays at that site."""
        return self.trained_at not in (None, *POOLS)

    @property
    def is_personal(self) -> bool:
        """Whether all sites train it together, and each has a part of its own."""
        return self.trained_at is None and (self.something_stays or self.local_steps > 0)

    @property
    def something_stays(self) -> bool:
        """Whether a part of what trains in the rounds stays at the sites."""
        return bool(self.stays)

    @model_validator(mode="after")
    def _what_stays_fits(self) -> Self:
        if twice := sorted({name for name in self.stays if self.stays.count(name) > 1}):
            raise ValueError(f"stays names twice: {', '.join(twice)}")
        if self.base_of and (self.trained_at or self.left_out or self.something_stays or self.local_steps):
            raise ValueError("base_of is for a training at all sites; take out trained_at, left_out and all that stays")
        if self.left_out and (self.trained_at or self.something_stays or self.local_steps):
            raise ValueError("left_out evaluates what all other sites share; take out trained_at and all that stays")
        if self.local_steps and self.trained_at in POOLS:
            raise ValueError("local_steps is a phase at each site by itself, and a pooled training has no sites")
        if self.share_private_at_end and not self.something_stays:
            raise ValueError("share_private_at_end needs something that stays: name it with stays or private_rank")
        if self.private_learning_rate is not None and not self.something_stays:
            raise ValueError("private_learning_rate needs something that stays: name it with stays or private_rank")
        if self.share_private_at_end and self.trained_at:
            raise ValueError(f"share_private_at_end needs all sites, this one is trained at {self.trained_at}")
        return self

    def shared_alone(self) -> Self:
        """The method without all that stays at the sites: it computes what they share."""
        nothing = {"stays": (), "private_rank": 0, "private_learning_rate": None, "local_steps": 0}
        nothing["share_private_at_end"] = False
        return self.model_copy(update={name: value for name, value in nothing.items() if hasattr(self, name)})

    def _ending(self) -> list[str]:
        """The last parts of the method's id but for the place of training and the repeat."""
        parts = ["stays", *self.stays] if self.stays else []
        parts += [f"local{self.local_steps}"] if self.local_steps else []
        parts += [f"rounds{self.rounds}"] if self.rounds else []
        parts += [f"patients{self.most_patients}"] if self.most_patients else []
        return parts + ([f"from-{self.base_of}"] if self.base_of else [])

    def _suffix(self) -> str:
        """The end of the method's id: who trains it, and the repeat."""
        at = self.trained_at
        place = "" if at is None else f"-{at}" if at in POOLS else f"-at-{at}"
        place += f"-without-{self.left_out}" if self.left_out else ""
        place += f"-repeat{self.repeat}" if self.repeat > 1 else ""
        return place + (f"@{self.rates[0]!r}" if self.inner else "")  # no label has this character
