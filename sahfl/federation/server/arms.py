"""Where a method is trained, seen from the server: at all sites, at one of them, or in a simulation's pool."""

from __future__ import annotations

import hashlib

from sahfl.config import POOLED, Study, TrainedMethod
from sahfl.federation.protocol import SiteDescription
from sahfl.federation.server.support import Descriptions, sits_out


def cell_sites(study: Study, method: TrainedMethod, fold: int, sites: Descriptions) -> tuple[str, ...]:
    """Who is asked to train a method with a fold held out; the quorum counts these.

    A site with nobody outside the fold sits out. Of a federation, absent sites are counted; one that trains alone has
    to be there.
    """
    chosen = [site for site in study.training_sites(method) if site not in sites or not sits_out(sites[site], fold)]
    return tuple(site for site in chosen if method.trained_at is None or site in sites)


def contributors(study: Study, method: TrainedMethod, sites: Descriptions) -> tuple[str, ...]:
    """Sites whose patients a method is trained on, of those that take part."""
    wanted = study.finetune.sites if method.trained_at == POOLED else study.training_sites(method)
    return tuple(site for site in wanted if site in sites)


def why_untrained(method: TrainedMethod, sites: Descriptions) -> str:
    """Why a method that is trained in one place has nobody to train it."""
    if method.trained_at not in sites:
        return f"not trained: {method.trained_at} does not take part"
    return f"not trained: {method.trained_at} has no patient outside the fold"


def describe_pool(study: Study, sites: Descriptions) -> SiteDescription | None:
    """The pseudo-site ``pooled`` of a simulation: its members' counts added up; None if no member takes part."""
    members = [sites[site] for site in study.finetune.sites if site in sites]
    if not members:
        return None
    folds = range(study.finetune.folds)
    return SiteDescription(
        site=POOLED,
        source="all fine-tuning sites",
        n_volumes=sum(member.n_volumes for member in members),
        n_patients=sum(member.n_patients for member in members),
        n_positive=sum(member.n_positive for member in members),
        volume_ml=sum(member.volume_ml or 0.0 for member in members),
        fold_sizes=tuple(sum(member.fold_sizes[fold] for member in members) for fold in folds),
        fold_positive=tuple(sum(member.fold_positive[fold] for member in members) for fold in folds),
        data=hashlib.sha256(" ".join(member.data for member in members).encode()).hexdigest()[:16],
        software=members[0].software,  # a simulation is one installation
        n_refused=sum(member.n_refused for member in members),
        findings={},
    )
