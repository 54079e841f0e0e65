"""The stages of a study: pretraining, fine-tuning, and when a round counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from sahfl.config.grid import EACH, OTHERS, expand
from sahfl.config.masking import Masking
from sahfl.config.methods import AdapterTuning, Method, TrainedMethod, ZeroShot
from sahfl.config.training import POOLED, POOLS
from sahfl.data.view_settings import Strength
from sahfl.problems import PlacedProblems, shown
from sahfl.section import Name, PathInFile, Place, Section, is_empty

MOST_STEPS = 100_000
MOST_EVALUATED = 20
"""Rounds that are evaluated beside the last one."""
SCRATCH_RATE = 2e-3
"""Peak learning rate of a network that begins with random weights."""


class LocalTraining(Section):
    """What a site does in one round."""

    steps: Annotated[int, Field(ge=1, le=MOST_STEPS)]
    """Optimiser steps per round; the same at every site."""
    batch_size: Annotated[int, Field(ge=1, le=256)] = 8
    """Slices per step."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 1e-4
    """Decoupled weight decay of AdamW."""
    foreground_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the slices of a batch that are drawn among those with blood."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number format of the network's computation; ``bfloat16`` (autocast) is faster and needs half the memory."""
    augmentation: Strength = Field(default="usual", exclude_if=lambda strength: strength == "usual")
    """Random changes of the slices: ``usual`` is mild; ``strong`` also randomises contrast of tissue, density of blood,
    sharpness and shape, for trainings of a thousand steps and more."""
    proximal: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """FedProx: the loss gets mu / 2 times the squared distance from the round's start; this is mu (unitless)."""


class PretrainConfig(Section):
    """Stage 1: federated training of the whole network at the traumatic-hemorrhage sites."""

    sites: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Sites that train the base network."""
    rounds: Annotated[int, Field(ge=1, le=10_000)]
    """Rounds of training and averaging."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = SCRATCH_RATE
    """Peak learning rate of AdamW; each round's steps follow a cosine over all rounds."""
    local: LocalTraining
    """What each site does in a round."""


class LoadedBase(Section):
    """A base network from a file in the place of stage 1. No site then sends weights in pretraining."""

    path: PathInFile
    """``base/base.safetensors`` of a finished run."""
    content_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Hash of the tensors in it, which a run and ``sahfl check`` print; ``sha256sum`` gives the hash of the file, which
    is another one. On one machine it may be left out, and is that of the file; hospitals need it."""


class FinetuneConfig(Section):
    """Stages 2 and 3: fine-tuning at the SAH sites for each fold, and evaluation on the fold's held-out patients."""

    sites: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Sites that fine-tune and evaluate."""
    folds: Annotated[int, Field(ge=2, le=20)] = 3
    """Number of cross-validation folds; each patient is held out exactly once."""
    rounds: Annotated[int, Field(ge=1, le=10_000)]
    """Rounds per fold and method."""
    methods: tuple[Method, ...] = ()
    """What is compared."""
    grid: Annotated[tuple[dict[str, Any], ...], Field(exclude=True)] = ()
    """More methods: each entry has settings of a method, and lists of values stand for every combination. ``repeats``
    is how often each is trained. ``each`` in ``trained_at`` or ``left_out`` is every site by itself, and in ``base_of``
    every pretraining site."""
    local: LocalTraining
    """What each site does in a round."""
    evaluated_rounds: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(max_length=MOST_EVALUATED)] = Field(
        default=(), exclude_if=is_empty
    )
    """Rounds after which every training is evaluated too, beside the last one, so that the report shows Dice by round.
    Each is one more evaluation of every held-out patient, which a hospital's ledger counts."""

    @field_validator("evaluated_rounds")
    @classmethod
    def _evaluated_rounds_increase(cls, rounds: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        last = info.data.get("rounds")
        if any(first >= second for first, second in pairwise(rounds)):
            raise ValueError(f"expected each round once and in order, got {shown(list(rounds))}")
        if last is not None and rounds and rounds[-1] >= last:
            raise ValueError(f"the last round, {last}, is always evaluated; expected earlier ones, got {rounds[-1]}")
        return rounds

    @model_validator(mode="after")
    def _methods_are_distinct_and_name_sites(self) -> Self:
        expanded, wrong = expand(self.grid, self.sites)
        problems: list[tuple[Place, str]] = [(("grid", *place), text) for place, text in wrong]
        each = f"base_of: {EACH} stands for one method per pretraining site, and so only in finetune.grid"
        placed: list[tuple[Place, Method]] = []
        for number, method in enumerate(self.methods):
            placed.append((("methods", number), method))
            if method.base_of == EACH:
                problems.append((("methods", number), f"{method.id}: {each}"))
        placed += [(("grid", number), method) for number, method in expanded if method not in self.methods]
        methods = tuple(method for _, method in placed)
        if not methods and not problems:
            problems.append(((), "methods and grid are empty, expected at least one method"))
        problems += [(place, text) for place, method in placed for text in self._wrong_trials(method)]
        problems += [((), text) for text in (*_same_names(methods, self.grid), *_unequal_repeats(methods))]
        problems += [(place, text) for place, method in placed for text in self._unknown_sites(method)]
        if problems:
            raise PlacedProblems(problems)
        return self.model_copy(update={"methods": methods, "grid": ()}) if self.grid else self

    def _wrong_trials(self, method: Method) -> Iterator[str]:
        if isinstance(method, ZeroShot):
            return
        if method.inner:
            yield f"{method.id}: inner is set by sahfl, take it out; several values in learning_rate make the trials"
        if method.trials and self.folds < 3:
            given = ", ".join(f"{rate:g}" for rate in method.rates)
            need = "needs a fold to choose on beside the tested one, so folds: 3 or more"
            yield f"{method.id}: a choice of learning_rate ({given}) {need}; got {self.folds}"

    def _unknown_sites(self, method: Method) -> Iterator[str]:
        known = ", ".join(sorted(self.sites))
        ranked = method.site_ranks if isinstance(method, AdapterTuning) else {}
        if unknown := sorted(set(ranked) - set(self.sites)):
            yield f"site_ranks of {method.id} names {', '.join(unknown)}; finetune.sites has {known}"
        place, left_out = (None, None) if isinstance(method, ZeroShot) else (method.trained_at, method.left_out)
        if left_out == EACH:
            yield f"{method.id}: left_out: {EACH} stands for one method per site, and so only in finetune.grid"
        elif left_out not in (None, *self.sites):
            yield f"{method.id}: left_out names {left_out}, expected one of finetune.sites, {known}"
        elif left_out and len(self.sites) == 1:
            yield f"{method.id}: left_out names the only fine-tuning site, so that none is left to train"
        if place == EACH:
            yield f"{method.id}: trained_at: {EACH} stands for one method per site, and so only in finetune.grid"
        elif place not in (None, *POOLS, *self.sites):
            expected = f"{', '.join(POOLS)} or one of finetune.sites, {known}"
            yield f"{method.id}: trained_at names {place}, expected {expected}"

    @model_validator(mode="after")
    def _training_in_one_place_fits(self) -> Self:
        pooled = any(not isinstance(method, ZeroShot) and method.trained_at == POOLED for method in self.methods)
        if pooled and (steps := self.local.steps * len(self.sites)) > MOST_STEPS:
            raise ValueError(f"a pooled training takes steps x sites = {steps} steps a round, at most {MOST_STEPS}")
        return self


def _further_rows(method: Method) -> Iterator[str]:
    """Ids of the rows that a method has in the results beside its own."""
    if isinstance(method, ZeroShot):
        return
    if method.is_personal:
        yield from (f"{method.id}-{part}" for part in ("shared", "mean"))
    federated = method.model_copy(update={"trained_at": None, "left_out": None}).id
    yield from (f"{federated}-{place}" for place in (EACH, OTHERS))


def _hint(grid: Sequence[Mapping[str, Any]]) -> str:
    """What was probably meant, if an entry of the grid gives learning rates as a plain list."""
    for entry in grid:
        rates = entry.get("learning_rate")
        if isinstance(rates, list) and not any(isinstance(rate, list) for rate in rates):
            return f"; a choice of rates is a list in a list, learning_rate: {shown([rates])}"
    return ""


def _same_names(methods: Sequence[Method], grid: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A text for methods that have one name, and for those whose name is that of another row of the results."""
    ids = Counter(method.id for method in methods)
    if twice := sorted(name for name, n in ids.items() if n > 1):
        yield f"methods must be distinct, got twice: {', '.join(twice)}; label one of them{_hint(grid)}"
    rows = {row for method in methods for row in _further_rows(method)}
    if taken := sorted(rows & ids.keys()):
        yield f"{', '.join(taken)}: the results have a row of this name for another method; change the label"


def _unequal_repeats(methods: Sequence[Method]) -> Iterator[str]:
    """A text for each method whose settings are not those of the first training that it is a repeat of."""
    first: dict[str, TrainedMethod] = {}
    for method in methods:
        if isinstance(method, ZeroShot):
            continue
        plain = method.model_copy(update={"repeat": 1})
        other = first.setdefault(plain.id, method)
        ours, theirs = method.model_dump(exclude={"repeat"}), other.model_dump(exclude={"repeat"})
        if differing := [f"{name} ({theirs[name]} and {ours[name]})" for name in ours if ours[name] != theirs[name]]:
            expected = "trainings of one method, expected the same settings in both, or a label for one of them"
            yield f"{other.id} and {method.id} differ in {', '.join(differing)}; they are {expected}"


class RoundsConfig(Section):
    """When a round counts, what its messages hold, and how the server bounds the updates."""

    quorum: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Share of a stage's sites whose usable replies commit a round (rounded up)."""
    deadline_s: Annotated[float, Field(gt=0)] = 3600.0
    """Seconds until a site that has not replied is left out of the round."""
    attempts: Annotated[int, Field(ge=1, le=10)] = 2
    """How often a round below the quorum is tried before the run ends with exit code 3."""
    pause_s: Annotated[float, Field(ge=0, le=86400)] = 30.0
    """Seconds between these attempts, so that sites can come back."""
    accept_s: Annotated[float, Field(ge=0, le=31_536_000)] = 604_800.0
    """Seconds that a run waits until the hospitals accept its base network; one week by default."""
    payload: Literal["float32", "float16", "int8"] = "float32"
    """Number format of the sites' messages; each site adds what rounding leaves over in its next round."""
    most_share: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Largest share of the weight that one site has in an average; with two sites at least one half."""
    most_norm: Annotated[float, Field(ge=1)] = 3.0
    """A site's change is shortened to this many times the median length of all sites' changes."""
    masking: Masking | None = None
    """Masked updates and evaluations, of which the server learns the sums alone; null: what each site sends reaches the
    server in the clear."""
    unmasked: bool = False
    """Whether hospitals of which fewer than three train together agree that the server sees what each of them sends.
    Masks cannot hide one of two, so a study with ``data.source: sites`` has to say it."""
