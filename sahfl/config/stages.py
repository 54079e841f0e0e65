"""The stages of a study: pretraining, fine-tuning with its methods, and when a round counts."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sahfl.config.section import Name, Section


class LocalTraining(Section):
    """What a site does in one round."""

    steps: Annotated[int, Field(ge=1, le=100_000)]
    """Optimiser steps per round; the same at every site."""
    batch_size: Annotated[int, Field(ge=1, le=256)] = 8
    """Slices per step."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 1e-4
    """Decoupled weight decay of AdamW."""
    foreground_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the slices of a batch that are drawn among those with blood."""


class PretrainConfig(Section):
    """Stage 1: federated training of the whole network at the traumatic-hemorrhage sites."""

    sites: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Sites that train the base network."""
    rounds: Annotated[int, Field(ge=1, le=10_000)]
    """Rounds of training and averaging."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-3
    """Peak learning rate of AdamW; each round's steps follow a cosine over all rounds."""
    local: LocalTraining
    """What each site does in a round."""


class ZeroShot(Section):
    """The base network as it is, without any fine-tuning."""

    method: Literal["zero_shot"]
    """Which method this is."""

    @property
    def id(self) -> str:
        """Name of the method in folders and results."""
        return "zero_shot"


class FullFineTuning(Section):
    """Every weight of the network is trained and travels: the comparison that adapters have to beat."""

    method: Literal["full"]
    """Which method this is."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 5e-4
    """Peak learning rate of AdamW."""

    @property
    def id(self) -> str:
        """Name of the method in folders and results."""
        return "full"


class CpLora(Section):
    """CP-LoRA: the update of each convolution is a sum of ``rank`` outer products (arXiv 2508.01772)."""

    method: Literal["cp_lora"]
    """Which method this is."""
    rank: Annotated[int, Field(ge=1, le=512)] = 8
    """Number of rank-one terms; payload bytes grow linearly with it."""
    alpha: Annotated[float, Field(gt=0, le=4096)] = 16.0
    """The update is multiplied by alpha / rank (unitless)."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 5e-3
    """Peak learning rate of AdamW."""

    @property
    def id(self) -> str:
        """Name of the method in folders and results."""
        return f"cp_lora-r{self.rank}"


Method = Annotated[ZeroShot | FullFineTuning | CpLora, Field(discriminator="method")]
TrainedMethod = FullFineTuning | CpLora


class FinetuneConfig(Section):
    """Stage 2 and 3: fine-tuning at the SAH sites, fold by fold, and evaluation on each fold's held-out patients."""

    sites: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Sites that fine-tune and evaluate."""
    folds: Annotated[int, Field(ge=2, le=20)] = 3
    """Number of cross-validation folds; each patient is held out exactly once."""
    rounds: Annotated[int, Field(ge=1, le=10_000)]
    """Rounds per fold and method."""
    methods: Annotated[tuple[Method, ...], Field(min_length=1)]
    """What is compared."""
    local: LocalTraining
    """What each site does in a round."""

    @model_validator(mode="after")
    def _methods_are_distinct(self) -> Self:
        ids = [method.id for method in self.methods]
        if twice := sorted({name for name in ids if ids.count(name) > 1}):
            raise ValueError(f"methods must be distinct, got twice: {', '.join(twice)}")
        return self


class RoundsConfig(Section):
    """When a round counts."""

    quorum: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Share of a stage's sites whose usable replies commit a round (rounded up)."""
    deadline_s: Annotated[float, Field(gt=0)] = 3600.0
    """Seconds until a site that has not replied is left out of the round."""
    attempts: Annotated[int, Field(ge=1, le=10)] = 2
    """How often a round below the quorum is tried before the run ends with exit code 3."""
