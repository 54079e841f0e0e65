"""What a hospital allows: the policy section of its site file. Every default is the closed one."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sahfl.adapters.methods import ADAPTERS
from sahfl.config.methods import WEIGHTS, Part
from sahfl.section import Section, one_of

Stage = Literal["pretrain", "finetune"]


class SitePolicy(Section):
    """What studies may ask of this site, and what may leave it. It beats every setting of a study."""

    require_signature: bool = True
    """Obey only requests that the consortium's signer signed; needs ``kit``, without which everything is refused."""
    studies: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...] | None = None
    """Fingerprints of the studies that may ask (a dry run with the study file says it); null: every signed one."""
    stages: tuple[Stage, ...] = ("finetune",)
    """Stages that the site trains in. In ``pretrain`` all weights of the network leave, in ``finetune`` what a method
    trains."""
    methods: tuple[Annotated[str, one_of(lambda: (*ADAPTERS, *WEIGHTS))], ...] = Field(
        default_factory=lambda: tuple(ADAPTERS)
    )
    """Methods that the site trains. Of adapter methods (the default) only factors leave; of all others the network's
    own weights. Any method may be evaluated, because an evaluation sends sums alone."""
    also_train: tuple[Literal["norm", "bias"] | Part, ...] = ()
    """Weights of the network itself that an adapter method may train, and send, beside its factors."""
    norms_stay: bool = False
    """Refuse training in which weights of norms would leave; a study then needs ``local_norms: true`` to train them."""
    evaluation: bool = True
    """Segment the held-out patients with what was trained, and send sums over them."""
    share_scan_keys: bool = False
    """Let a study compare this site's scans with those of others, by salted hashes of their voxels."""
    most_rounds: Annotated[int, Field(ge=1, le=10_000)] = 200
    """Most rounds of one training."""
    most_steps: Annotated[int, Field(ge=1, le=100_000)] = 2000
    """Most optimiser steps per round."""
    most_learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Largest peak learning rate."""
    most_rank: Annotated[int, Field(ge=1, le=512)] = 32
    """Largest rank of an adapter; near a layer's full rank, factors say as much as weights."""
    most_bytes: Annotated[int, Field(ge=1, le=10_000_000_000)] = 10_000_000
    """Most bytes of one message that leaves."""
    most_replicates: Annotated[int, Field(ge=100, le=100_000)] = 2000
    """Most bootstrap replicates of an evaluation; each is a weighted sum over the same patients."""
    smallest_group: Annotated[int, Field(ge=1, le=1000)] = 5
    """Fewest patients over whom results leave; results of smaller groups are withheld, and the fact is said."""
    smallest_bootstrap: Annotated[int, Field(ge=1, le=1000)] = 20
    """Fewest patients of a group whose bootstrap sums and histograms leave; both show the values of few patients."""

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        if self.smallest_bootstrap < self.smallest_group:
            found = f"smallest_bootstrap {self.smallest_bootstrap} is below smallest_group {self.smallest_group}"
            raise ValueError(f"{found}; bootstrap sums say more than sums")
        return self
