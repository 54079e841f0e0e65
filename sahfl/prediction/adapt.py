"""A new hospital adapts what a finished federation shares to its own patients, without a server.

Only the part that stays at a site trains: what all sites share is frozen. The hospital's patients are divided into the
study's number of folds. For each fold, the part trains on the patients outside it, from the run's network of this fold,
and the network is scored on the fold's patients before and after. Nothing leaves the hospital.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sahfl.adapters import AdapterState, digest, exchanged
from sahfl.adapters.attach import merge, staying
from sahfl.adapters.folder import read_adapter
from sahfl.config import AdapterTuning, TrainedMethod, ZeroShot
from sahfl.errors import RunError
from sahfl.federation.requests import Requests
from sahfl.federation.site.kinds.evaluate import held_out_cases, score_cases
from sahfl.federation.site.kinds.local_training import batch_seed, train_locally, training_cases
from sahfl.federation.site.kinds.received import OwnNetwork, network_of
from sahfl.federation.site.private import PrivatePart
from sahfl.federation.site.site import Site
from sahfl.model import Network
from sahfl.payload import Header
from sahfl.prediction.networks import adapter_folder, choose_folds, choose_method, first_adapter, read_base, read_study
from sahfl.run.folder import RunFolder
from sahfl.statistics.cases import CaseResult
from sahfl.task import Task


@dataclass(frozen=True)
class Adapted:
    """The result of one fold: mean Dice over its patients with blood, before and after."""

    fold: int
    n_trained: int
    """Scans that the part trained on."""
    n: int
    """Scans with blood that were scored."""
    before: float | None
    """None without a scan with blood."""
    after: float | None


def adapt(
    site: Site,
    run: Path,
    *,
    method: str | None = None,
    fold: int | None = None,
    private_rank: int | None = None,
    steps: int | None = None,
    on_case: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Adapted]:
    """Train a site's own part of a method for each fold, store the network at the site, and score it.

    Args:
        site: the hospital; it need not have taken part in the run.
        run: folder of a finished run: settings, base network and adapters are read.
        method: id of the method; by default the study's first adapter.
        fold: one fold; by default each.
        private_rank: number of private terms; by default the method's.
        steps: optimiser steps; by default those of all rounds of the study and of the last phase.
        on_case: called after each checked case with (cases done, cases in all).

    Raises:
        RunError: the run has no such method or fold, or the method has no part that stays at a site.
        DataError: the site's data cannot be used.
        AdapterError: a file of the run is damaged.
    """
    study = read_study(run)
    found = choose_method(study, method or first_adapter(study).id, run)
    folds, chosen = choose_folds(run, study, found, fold), _method(found, private_rank, run)
    base, rates = read_base(run), RunFolder(run).rates(found.id)
    site.prepare(on_case)
    site.install_base(base, digest(base))
    requests = Requests(study, study.fingerprint(), digest(base))
    for number in folds:
        shared = read_adapter(adapter_folder(run, found, number)).state
        at_rate = chosen.at_rate(rates.get(number, chosen.rates[0]))
        yield _adapt_fold(site, requests, at_rate, number, shared, steps)


def _method(found: TrainedMethod | ZeroShot, private_rank: int | None, run: Path) -> TrainedMethod:
    if isinstance(found, ZeroShot) or found.trained_at is not None:
        raise RunError(f"{run}: {found.id} was not trained by all sites together; name a federated method")
    if found.base_of is not None or found.left_out is not None:
        raise RunError(f"{run}: {found.id} is for a comparison only; name a method of all sites and their common base")
    if private_rank is not None:
        if not isinstance(found, AdapterTuning):
            raise RunError(f"{run}: {found.id} has no terms; leave out --private-rank, or name an adapter method")
        found = found.model_copy(update={"private_rank": private_rank})
    if not found.is_personal:
        raise RunError(f"{run}: of {found.id} nothing stays at a site; add --private-rank, for example 4")
    return found


def _adapt_fold(
    site: Site, requests: Requests, method: TrainedMethod, fold: int, shared: AdapterState, steps: int | None
) -> Adapted:
    header = requests.header("finetune", method.id, fold)
    evaluation = requests.evaluation(method, fold, "personal")
    if _part(site, evaluation, header).is_of_a_study():
        what = f"this site took part, and its own network of {method.id}, fold {fold}, is stored"
        hint = f"predict with it, or delete it first: sahfl private delete SITE_FILE {header.training}"
        raise RunError(f"site {site.config.name}: {what}; {hint}")
    net = network_of(site, evaluation, header)
    whole = exchanged.read(net)
    fitting = {name: value for name, value in shared.items() if name in whole and value.shape == whole[name].shape}
    start = whole | fitting  # a mean of private terms fits only if there are as many here
    exchanged.load(net, start)
    before = _score(site, evaluation, network_of(site, evaluation, header), start)
    own = staying(net, method, net.parts) or tuple(whole)
    for name, parameter in exchanged.parameters(net).items():
        parameter.requires_grad_(name in own)
    n_trained = _train(site, requests, method, fold, steps, OwnNetwork(net, own, _part(site, evaluation, header)))
    trained = exchanged.read(net)
    _part(site, evaluation, header).keep_network(trained, base=header.base, adapted=True)
    after = _score(site, evaluation, network_of(site, evaluation, header), trained)
    return Adapted(fold, n_trained, *_means(before, after))


def _part(site: Site, task: Task, header: Header) -> PrivatePart:
    return PrivatePart(site.config.folder, task, header, ())


def _train(site: Site, requests: Requests, method: TrainedMethod, fold: int, steps: int | None, own: OwnNetwork) -> int:
    local, rounds = requests.study.local_training(method), requests.study.rounds_of(method)
    n_steps = local.steps * rounds + method.local_steps if steps is None else steps
    once = method.model_copy(update={"local_steps": 0, "share_private_at_end": False})
    task = requests.fine_tuning(once, fold).model_copy(
        update={"round": 1, "rounds": 1, "local": local.model_copy(update={"steps": n_steps})}
    )
    header = requests.header("finetune", method.id, fold)
    cases, drawn = training_cases(site, task), batch_seed(site, task, header, "")
    return train_locally(site, task, header, own, cases, drawn=drawn)[1]


def _score(site: Site, task: Task, net: Network, state: AdapterState) -> list[CaseResult]:
    exchanged.load(net, state)
    merge(net)
    return [result for _, _, result in score_cases(site, task, net, held_out_cases(site, task))]


def _means(before: list[CaseResult], after: list[CaseResult]) -> tuple[int, float | None, float | None]:
    pairs = [(a.dice or 0.0, b.dice or 0.0) for a, b in zip(before, after, strict=True) if a.volume_ml > 0]
    if not pairs:
        return 0, None, None
    first, second = zip(*pairs, strict=True)
    return len(pairs), sum(first) / len(pairs), sum(second) / len(pairs)
