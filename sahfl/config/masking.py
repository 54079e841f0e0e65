"""Masked training rounds: the study's settings, and what cannot stand beside them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field

from sahfl.aggregation.rules import RULES
from sahfl.config.methods import AdapterTuning, Method, TrainedMethod, ZeroShot
from sahfl.config.training import POOLS
from sahfl.errors import MaskingRefused
from sahfl.masking.graph import LEAST_SITES, terms_of
from sahfl.section import Section

Study = Any
"""A ``config.Study``, which has a field of this module and so stands to its right."""
MASKABLE = ("mean", "alternate")
"""Rules that need the sum of the sites' changes and nothing else."""


class Masking(Section):
    """Masks on what the sites send in a round of training: the server learns the sum over the sites, and no part of it.
    At least three sites must train together.
    """

    clip: Annotated[float, Field(gt=0, le=1e6)]
    """Longest Euclidean length of a site's change in one round, over all numbers that it sends; each site shortens a
    longer one by itself, because the server sees none. One too small slows the training; a simulation without masking
    shows the lengths (``norms`` in the journal)."""
    threshold: Annotated[int, Field(ge=3, le=10_000)] | None = None
    """Fewest sites that must stay to the end of a round, more than half of those that began it; null: two thirds. With
    more, the round bears fewer absent sites and more sites that work together with the server."""


def masking_of(study: Study, method: Method | None) -> Masking | None:
    """The masking of a training, None for pretraining; a training in one place sends no tensor and needs no masks."""
    alone = method is not None and (isinstance(method, ZeroShot) or method.trained_at is not None)
    masking: Masking | None = study.rounds.masking
    return None if alone else masking


def check_masked(study: Study) -> None:
    """Refuse what would undo the masks of a study, or cannot be computed from a sum; and a study of few hospitals that
    does not say that it is without masks.

    Raises:
        ValueError: names each such setting with a remedy; pydantic reports it.
    """
    _check_unmasked(study)
    if study.rounds.masking is not None and (problems := list(_problems(study, study.rounds.masking))):
        raise ValueError("; ".join(problems))


def _check_unmasked(study: Study) -> None:
    """Refuse a study of hospitals that does not say that masks cannot hide its sites."""
    if study.rounds.masking is not None:
        if study.rounds.unmasked:
            raise ValueError("rounds.unmasked: true with rounds.masking; take one of the two out")
        return
    stages = {"finetune.sites": study.finetune.sites, "pretrain.sites": study.pretrain.sites if study.pretrain else ()}
    few = [f"{len(sites)} {name}" for name, sites in stages.items() if 0 < len(sites) < LEAST_SITES]
    if study.data.source == "sites" and few and not study.rounds.unmasked:
        found = f"with {' and '.join(few)} the server sees what each hospital sends, as masks need three or more"
        raise ValueError(f"rounds.unmasked: {found}; if all agree, add to the study: rounds: {{unmasked: true}}")


def _problems(study: Study, masking: Masking) -> Iterator[str]:
    rounds, usual = study.rounds, type(study.rounds)()
    if rounds.payload != "float32":
        yield f"rounds.masking needs payload: float32, got {rounds.payload}; masked numbers have 32 bits anyway"
    for name in ("most_norm", "most_share"):
        if getattr(rounds, name) != getattr(usual, name):
            why = "the server sees no site's update, so it cannot bound one"
            yield f"rounds.{name} with rounds.masking: {why}; take {name} out, clip takes its place"
    if study.common_random_numbers:
        why = "two methods on one batch are two sums over it"
        yield f"common_random_numbers: true with rounds.masking; {why}, take the setting out"
    if study.finetune.evaluated_rounds:
        why = "a site answers one masked evaluation of a training, the last"
        yield f"finetune.evaluated_rounds with rounds.masking; {why}, take the setting out"
    if study.hostile:
        yield "hostile with rounds.masking: a hostile act changes an update in the clear; take one of the two out"
    stages = [("pretrain.sites", study.pretrain.sites)] if study.pretrain else []
    trained = [method for method in study.finetune.methods if not isinstance(method, ZeroShot)]
    if any(isinstance(method, ZeroShot) or not method.is_alone for method in study.finetune.methods):
        stages.append(("finetune.sites", study.finetune.sites))
    for name, sites in stages:
        yield from _too_few(name, len(sites), masking)
    for method in trained:
        for problem in (*method_problems(method), *_isolating(method)):
            yield f"rounds.masking with {method.id}: {problem}"


def _too_few(name: str, n_sites: int, masking: Masking) -> Iterator[str]:
    try:
        terms_of(n_sites, masking.threshold)
    except MaskingRefused as error:
        more = "" if n_sites >= 3 else "; with fewer than three sites a sum hides nobody, so take rounds.masking out"
        yield f"rounds.masking with {n_sites} {name}: {error}{more}"


def method_problems(method: TrainedMethod) -> Iterator[str]:
    """Yield what a method has that a masked round cannot compute, or that would show one site's part; with remedies."""
    if method.trained_at is not None:
        return
    if method.aggregation not in MASKABLE:
        known = " or ".join(MASKABLE)
        yield f"aggregation: {method.aggregation} needs each site's update, expected {known}"
    if method.share_private_at_end:
        yield "share_private_at_end shows each site's own part once, and cannot be masked; take it out"
    if isinstance(method, AdapterTuning) and method.site_ranks:
        yield "site_ranks gives sites tensors of other shapes, which cannot be summed; take it out"
    if isinstance(method, AdapterTuning) and method.has_magnitudes:
        plain = method.method.replace("dora", "lora")
        yield f"{method.method} averages magnitudes with the factors, which needs more than the sum; take {plain}"


def _isolating(method: TrainedMethod) -> Iterator[str]:
    """Yield what makes two sums of which the difference, or a part, is one site's."""
    if method.left_out is not None:
        yield "left_out: the difference from the sum over all sites is one site's update; take it out"
    if method.trials:
        yield "several values in learning_rate: each trial is one more sum over the same patients; give one rate"
    if method.base_of is not None:
        yield "base_of: one site's own base would leave it without a sum; take it out"
    if method.trained_at in POOLS:
        yield f"trained_at: {method.trained_at} sends in the clear what was trained on all patients; take it out"


assert set(MASKABLE) <= set(RULES)
