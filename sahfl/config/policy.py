"""The policy in a hospital's site file: what it allows. Every default allows the least."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from sahfl.adapters.methods import ADAPTERS
from sahfl.config.methods import WEIGHTS
from sahfl.config.training import LearningRate, Part, Rank
from sahfl.masking.graph import LEAST_SITES, MOST_SITES
from sahfl.section import OneOf, Section

Stage = Literal["pretrain", "finetune"]
Least = Annotated[int, Field(ge=1, le=10_000)]


class TrainingLimits(Section):
    """Bounds of every answer of a training. What leaves is then a sum over many slices of several patients."""

    least_steps: Least
    """Fewest optimiser steps of a round."""
    least_batch: Least
    """Fewest slices of a step."""
    least_patients: Least
    """Fewest patients that a training draws from, after those of the held-out fold are left out."""
    most_learning_rate: LearningRate
    """Largest peak learning rate."""
    least_effective_steps: Annotated[float, Field(ge=0, le=10_000)] = 1.25
    """Steps in which a row of an update must have got its gradient, counted by their sizes. An update below it is that
    of a few slices, and is held back for one round; 0 turns this check off (``federation.site.sanity``)."""


class WeightLimits(TrainingLimits):
    """Bounds of trainings whose weights leave: pretraining, standard fine-tuning, and adapters with ``also_train``."""

    least_steps: Least = 16
    """Fewest optimiser steps of a round."""
    least_batch: Least = 8
    """Fewest slices of a step."""
    least_patients: Least = 8
    """Fewest patients that a training draws from, after those of the held-out fold are left out."""
    most_learning_rate: LearningRate = 5e-3
    """Largest peak learning rate; adapters with ``also_train`` have that of adapters."""


class AdapterLimits(TrainingLimits):
    """Bounds of trainings of which only factors leave."""

    least_steps: Least = 8
    """Fewest optimiser steps of a round."""
    least_batch: Least = 8
    """Fewest slices of a step."""
    least_patients: Least = 5
    """Fewest patients that a training draws from, after those of the held-out fold are left out."""
    most_learning_rate: LearningRate = 0.05
    """Largest peak learning rate."""
    most_alpha: Annotated[float, Field(gt=0, le=1e6)] = 64.0
    """Largest alpha, the factor of an adapter's update; with a large one, a start in its bound replaces the base."""
    most_rank: dict[str, Rank] = Field(default_factory=dict, validate_default=True)
    """Largest rank by method; near a layer's full rank, factors reveal as much as weights. A method that is not named
    has its default."""

    @field_validator("most_rank")
    @classmethod
    def _every_method_has_a_rank(cls, given: dict[str, int]) -> dict[str, int]:
        if unknown := sorted(set(given) - set(ADAPTERS)):
            raise ValueError(f"unknown method(s) {', '.join(unknown)}; expected {', '.join(ADAPTERS)}")
        return {name: method.most_rank for name, method in ADAPTERS.items()} | given


class Budget(Section):
    """How often each scan may be used, over all studies of this site."""

    rounds: Annotated[int, Field(ge=0, le=10_000_000)] = 5000
    """Most rounds of training in which a scan takes part."""
    evaluations: Annotated[int, Field(ge=0, le=10_000_000)] = 500
    """Most evaluations of a scan."""


class SitePolicy(Section):
    """What studies may ask of this site, and what may leave it, whatever a study's settings are."""

    require_signature: bool = True
    """Obey only requests that the consortium's signer signed. This needs ``kit``; without it the site refuses all."""
    studies: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...] | None = None
    """Fingerprints of the allowed studies (a dry run with the study file prints it); null: every signed study."""
    bases: Literal["any"] | tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...] = ()
    """Hashes of the base networks that the site works with. Any other waits for ``sahfl-client accept-base``; "any"
    works with each that is signed."""
    stages: tuple[Stage, ...] = ("finetune",)
    """Stages that the site trains in. In ``pretrain`` all weights of the network leave, in ``finetune`` what a method
    trains."""
    methods: tuple[Annotated[str, OneOf(lambda: (*ADAPTERS, *WEIGHTS))], ...] = Field(
        default_factory=lambda: tuple(ADAPTERS)
    )
    """Methods that the site trains. Adapter methods (the default) send only factors, all others the network's own
    weights. Any method may be evaluated, because an evaluation sends only sums."""
    also_train: tuple[Literal["norm", "bias"] | Part, ...] = ()
    """Weights of the network itself that an adapter method may train, and send, beside its factors."""
    norms_stay: bool = False
    """Refuse training in which weights of norms would leave; a method then needs ``stays: [norm]`` to train them."""
    private_mean: bool = False
    """Whether what stays here during a training may leave once, in its last round, for a mean over the sites
    (``share_private_at_end`` of a method)."""
    common_random_numbers: bool = False
    """Whether all methods of a study may train on the same batches; the server then sees several views of one batch. A
    study at hospitals never asks for it."""
    confirmations: Annotated[int, Field(ge=0, le=100)] = 2
    """Fewest other sites that must have confirmed the start of a round, from the second on. 0: none; the server can
    then show this site a start of its own."""
    bounded_starts: bool = True
    """Whether the start of a round may differ from the start before only as far as training can move it."""
    unmasked: bool = True
    """Whether updates of a training at several sites, and sums of an evaluation, may leave in the clear. false: only
    under masks, so that the server learns the sum over three sites or more (``rounds.masking`` of a study); mL of
    blood, findings of the data check and the loss of what this site trains alone then stay."""
    least_sites: Annotated[int, Field(ge=LEAST_SITES, le=MOST_SITES)] = LEAST_SITES
    """Fewest sites with scans in a masked sum. The server chooses who is in it, and sites that work with the server
    subtract their own part."""
    evaluation: bool = True
    """Whether to segment the held-out patients with the trained network and send sums over them."""
    share_scan_keys: bool = False
    """Whether a study may compare this site's scans with others', by salted hashes of their voxels."""
    most_rounds: Annotated[int, Field(ge=1, le=10_000)] = 200
    """Most rounds of one training."""
    most_steps: Annotated[int, Field(ge=1, le=100_000)] = 2000
    """Most optimiser steps per round."""
    adapters: AdapterLimits = AdapterLimits()
    """Bounds of trainings of which only factors leave."""
    weights: WeightLimits = WeightLimits()
    """Bounds of trainings of which weights of the network leave."""
    budget: Budget = Budget()
    """How often each scan may be used, over all studies; the ledger counts (``sahfl ledger``)."""
    most_bytes: Annotated[int, Field(ge=1, le=10_000_000_000)] = 10_000_000
    """Most bytes of one message that leaves."""
    most_replicates: Annotated[int, Field(ge=100, le=100_000)] = 2000
    """Most bootstrap replicates of an evaluation; each sends a weighted sum over the same patients."""
    require_gain: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Least gain in Dice over training alone: a method is not trained if the 95 % interval of its gain, as measured by
    this site, lies below it; 0 refuses a clear loss. null: no gain is required."""
    smallest_group: Annotated[int, Field(ge=1, le=1000)] = 5
    """Fewest patients in a group whose results leave; a reply marks what it withholds."""
    smallest_bootstrap: Annotated[int, Field(ge=1, le=1000)] = 20
    """Fewest patients in a group whose bootstrap sums and histograms leave, because these reveal single values."""

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        if self.smallest_bootstrap < self.smallest_group:
            found = f"smallest_bootstrap {self.smallest_bootstrap} is below smallest_group {self.smallest_group}"
            raise ValueError(f"{found}; bootstrap sums reveal more than sums")
        return self
