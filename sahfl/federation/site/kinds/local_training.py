"""Training a network on a site's own cases: which cases and batches, and what must be true before the first step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Literal

from flwr.app import RecordDict

from sahfl.adapters.attach import staying
from sahfl.adapters.steps import rate_of
from sahfl.cell_names import PRETRAIN
from sahfl.data.checks import CheckedCase
from sahfl.data.sampler import SliceSampler
from sahfl.errors import PolicyRefused
from sahfl.events import SiteStep, emit
from sahfl.federation import protocol
from sahfl.federation.signatures import document
from sahfl.federation.site.kinds.limits import below, bounds_of
from sahfl.federation.site.kinds.received import OwnNetwork
from sahfl.federation.site.ledger import Ledger
from sahfl.federation.site.secret import batch_key
from sahfl.federation.site.site import Site
from sahfl.federation.turns import schedule_of
from sahfl.log_lines import LogLine
from sahfl.model import Network
from sahfl.payload import Header
from sahfl.seeds import derive_seed
from sahfl.task import Task
from sahfl.training import train

log = logging.getLogger(__name__)


def training_cases(site: Site, task: Task) -> tuple[CheckedCase, ...]:
    """The cases that a site trains on: those of the patients whom the task does not hold out."""
    most = None if task.training is None else task.training.most_patients
    return site.training_cases(
        fold=task.fold, n_folds=task.folds, seed=task.seed, turn=task.round, inner=task.inner, most=most
    )


def require_patients(site: Site, task: Task, cases: Sequence[CheckedCase]) -> None:
    """Refuse to train on fewer patients than the site's policy allows; one scan under two ids counts once.

    Raises:
        PolicyRefused: names the setting, the number of patients and the least one.
    """
    least = bounds_of(site.config.policy, task).patients
    n_patients = min(len({item.case.patient for item in cases}), len({item.content for item in cases}))
    if problems := below(least, n_patients):
        raise PolicyRefused(f"site {site.config.name}: too few patients to train on; policy.{problems[0]}")


def reserve(
    site: Site,
    use: Literal["round", "evaluation"],
    kind: str,
    content: RecordDict,
    header: Header,
    cases: Sequence[CheckedCase],
) -> None:
    """Note a use of the scans of a request in the site's ledger, before the work; errors as ``Ledger.reserve``."""
    scans = (item.content for item in cases)
    Ledger(site.config).reserve(use, header, document(kind, content).hex(), scans)


def batch_seed(site: Site, task: Task, header: Header, start: str) -> int:
    """Seed of the batches of a round, from the site's secret and the whole request; ``start`` hashes its tensors.

    With common random numbers, in simulations, it depends on fold, round and repeat alone, so that all methods train on
    the same batches, and a site that pretrains alone on those that it has in the pretraining of all sites.
    """
    if not task.common_random_numbers:
        return derive_seed(batch_key(site.config, task, header, start))
    shared = PRETRAIN if task.training is None else f"repeat {task.training.repeat}"
    return derive_seed(task.seed, task.stage, shared, task.fold, task.round, site.config.name)


def train_locally(
    site: Site,
    task: Task,
    header: Header,
    own: OwnNetwork,
    cases: Sequence[CheckedCase],
    *,
    drawn: int,
    on_gradients: Callable[[], None] = lambda: None,
) -> tuple[float, int]:
    """Train a network on the site's own cases, in place; returns the mean loss and the number of cases.

    ``drawn`` is the seed of the batches; ``on_gradients`` is that of ``training.train``.
    """
    local = task.local
    assert local is not None
    sampler = SliceSampler(
        site.load_views(cases, task.views),
        task.views,
        batch_size=local.batch_size,
        foreground_share=local.foreground_share,
        seed=drawn,
        augmentation=local.augmentation,
    )
    schedule = schedule_of(task, local, task.round)
    rates, private = rate_of(own.net), _private_rates(task, own.net)
    loss = train(
        own.net,
        sampler,
        schedule,
        precision=local.precision,
        rate_of=lambda name: rates(name) * private.get(name, 1.0),
        on_step=lambda done, total, loss: emit(SiteStep(site.config.name, protocol.TRAIN, done, total, loss)),
        on_gradients=on_gradients,
    )
    log.info(LogLine("trained", **header.place(), n_volumes=len(cases), loss=round(loss, 4)))
    return loss, len(cases)


def _private_rates(task: Task, net: Network) -> dict[str, float]:
    """Factors of the learning rate, by name, of what stays at the sites where all train together.

    They are the same where one site trains alone and on pooled patients; in the last phase there are none.
    """
    method = task.training
    if method is None or method.private_learning_rate is None or task.round > task.rounds:
        return {}
    names = staying(net, method.model_copy(update={"trained_at": None}), net.parts)
    return dict.fromkeys(names, method.private_learning_rate / task.learning_rate)
