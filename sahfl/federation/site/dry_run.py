"""What would leave a site, in words, from its policy and, where there is one, from a study: nothing is asked or sent.

The tensors are counted on the networks that a training builds, the bytes on messages made of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from sahfl.config import (
    AdapterTuning,
    EvaluationConfig,
    Method,
    ModelConfig,
    SiteConfig,
    SitePolicy,
    Study,
    TrainedMethod,
    ViewsConfig,
    WeightTuning,
    ZeroShot,
)
from sahfl.errors import PolicyRefused
from sahfl.federation import protocol
from sahfl.federation.site.policy import check_request
from sahfl.networks import exchanged_shapes
from sahfl.payload import DTYPES, Header
from sahfl.run.software import LIBRARIES
from sahfl.statistics.cases import n_groups
from sahfl.statistics.sums import array_length
from sahfl.task import Task


def dry_run(config: SiteConfig, study: Study | None = None) -> str:
    """Every message that could leave, one paragraph each; with a study, exactly those of it.

    Without a study, methods are counted at their default settings on the network of default size.
    """
    policy, lines = config.policy, [f"What leaves site {config.name} under its policy"]
    if study is None:
        lines += ["No study is given: sizes are those of each method's defaults on the smallest network."]
    else:
        pretraining = study.pretrain.sites if study.pretrain else ()
        roles = {"pretraining": pretraining, "fine-tuning and evaluation": study.finetune.sites}
        role = [name for name, sites in roles.items() if config.name in sites]
        lines += [f"Study {study.name}, fingerprint {study.fingerprint()}"]
        lines += [f"The study asks this site for {' and '.join(role) or 'nothing: it is not among its sites'}."]
    if policy.require_signature and config.kit is None:
        lines += ["As it is, nothing leaves: signatures are required, and no kit says whose (kit in the site file)."]
    lines += ["", *_before(policy, study), *_training(config, study), *_evaluation(config, study), *_always(policy)]
    return "\n".join(lines)


def policy_lines(policy: SitePolicy) -> list[str]:
    """Every setting of a policy with its value."""
    values = policy.model_dump(mode="json")
    return [f"policy.{name}: {_value(value)}" for name, value in values.items()]


def _value(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if value is None or isinstance(value, bool):
        return "any" if value is None else "yes" if value else "no"
    return f"{value:,}"


def _before(policy: SitePolicy, study: Study | None) -> Iterator[str]:
    yield "once, when a study begins (describe):"
    yield "  leaves: the site's name; kind of its files; numbers of usable scans, of patients, of scans with blood,"
    yield "    of patients and of patients with blood per fold, and of cases that cannot be used;"
    few = f"fewer than {policy.smallest_group}"
    yield f"    cases per broken rule of the data check ('some' if {few}); mL of blood in all, unless {few} patients"
    yield "    bleed; one salted hash that changes when the data do; one hash of the software that computes here:"
    yield f"    sahfl's code and the versions of {', '.join(LIBRARIES)}"
    asks = study is None or study.compare_sites
    if policy.share_scan_keys and asks:
        yield "  leaves, if the study compares sites: 16 hex digits per scan, a salted hash of its voxels"
    elif asks:
        yield "  refused: salted hashes of scans (share_scan_keys is false)"
    yield "once (install_base): the base network comes in; leaves: nothing but a receipt"
    yield ""


def _training(config: SiteConfig, study: Study | None) -> Iterator[str]:
    for task in _training_tasks(config.name, config.policy, study):
        name = "pretraining" if task.method is None else f"training {task.method.id}"
        if problem := _refusal(config, protocol.TRAIN, task, study):
            yield f"{name}: refused, nothing leaves"
            yield from (f"  {line.strip()}" for line in problem)
        else:
            yield f"{name}, each round:"
            yield from _tensors(task)
    yield ""


def _tensors(task: Task) -> Iterator[str]:
    method = task.own_method
    trained = None if method is None or isinstance(method, ZeroShot) else method
    stay = task.local is not None and task.local.local_norms
    shapes = exchanged_shapes(task.views, task.model, trained, norms=not stay)
    numbers = sum(map(math.prod, shapes.values()))
    n_bytes = numbers * int(DTYPES[task.payload][-1])
    yield f"  leaves: {_what(trained)}: {len(shapes)} tensors, {numbers:,} numbers, {n_bytes:,} bytes as {task.payload}"
    names = list(shapes)
    shown = ", ".join(names[:2]) + (f", ... to {names[-1]}" if len(names) > 2 else "")
    yield f"    with their names and shapes ({shown})"
    yield "  leaves: metrics n_volumes (scans trained on), loss (mean of the round), seconds"
    if stay:
        yield "  stays: the weights of all norms"
    if trained is not None and trained.trained_at:
        yield "  the other sites are sent what this site trained, as it is, to evaluate it; no average hides it"


def _what(method: TrainedMethod | None) -> str:
    if method is None:
        return "ALL weights of the network"
    if isinstance(method, WeightTuning):
        return "ALL weights of the network" if method.method == "full" else f"weights of the network ({method.method})"
    also = f" and weights of the network ({', '.join(method.also_train)})" if method.also_train else ""
    return f"factors of the adapters of rank {method.rank}{also}"


def _evaluation(config: SiteConfig, study: Study | None) -> Iterator[str]:
    if study and config.name not in study.finetune.sites:
        return
    settings = study.evaluation if study else EvaluationConfig(replicates=min(1000, config.policy.most_replicates))
    methods = study.finetune.methods if study else (ZeroShot(method="zero_shot"),)
    views, model = (study.views, study.model) if study else (ViewsConfig(), ModelConfig())
    folds = study.finetune.folds if study else 2
    task = Task(stage="finetune", seed=0, views=views, model=model, folds=folds, fold=0, evaluation=settings)
    if problem := _refusal(config, protocol.EVALUATE, task, study):
        yield "evaluation: refused, nothing leaves"
        yield from (f"  {line.strip()}" for line in problem)
    else:
        policy, numbers = config.policy, array_length(settings)
        n_strata, n_extents = n_groups(settings)
        which = f" of {', '.join(method.id for method in methods)}" if study else ""
        yield f"evaluation{which}, each fold:"
        yield f"  leaves: {numbers:,} numbers, {8 * numbers:,} bytes:"
        yield f"    for all cases with blood, for each of {n_strata} volume strata and of {n_extents} groups of extent"
        yield "    the number of scans, and of each of five metrics (Dice, surface Dice, HD95, volume error, lesion F1)"
        yield f"    the sum, the sum of squares, a histogram and {settings.replicates} bootstrap sums with weights;"
        yield "    sums of volumes and of their products, a histogram of predicted against annotated volume;"
        yield "    numbers of scans without blood, and of those in which blood was predicted"
        few, least = policy.smallest_group, policy.smallest_bootstrap
        yield f"  withheld: what tells of fewer than {few} patients, also by subtraction; bootstrap sums and histograms"
        yield f"    of fewer than {least}; then a split or both are left out, or nothing leaves but that fact"
    yield ""


def _always(policy: SitePolicy) -> Iterator[str]:
    yield "with every answer: its header, as the server sent it: study, stage, method, fold, round, base, versions"
    yield "on an error: the name of its class; the text stays in the site's log"
    yield f"no message above {policy.most_bytes:,} bytes leaves; each is in the site's audit log before it does"
    yield "never: scans, annotations, predictions, results per case, names or ids of patients, names of files"


def _training_tasks(site: str, policy: SitePolicy, study: Study | None) -> Iterator[Task]:
    if study is None:
        yield from _allowed_tasks(policy)
        return
    common = {"seed": study.seed, "views": study.views, "model": study.model, "folds": study.finetune.folds}
    common |= {"payload": study.rounds.payload, "round": 1}
    stage, tuning = study.pretrain, study.finetune
    if stage and site in stage.sites:
        rate = {"rounds": stage.rounds, "learning_rate": stage.learning_rate, "local": stage.local}
        yield Task.model_validate(common | rate | {"stage": "pretrain"})
    for method in tuning.methods:
        if not isinstance(method, ZeroShot) and site in study.training_sites(method):
            rate = {"rounds": tuning.rounds, "learning_rate": method.learning_rate, "local": tuning.local}
            rank = method.site_ranks.get(site) if isinstance(method, AdapterTuning) else None
            yield Task.model_validate(common | rate | {"stage": "finetune", "fold": 0, "method": method, "rank": rank})


def _allowed_tasks(policy: SitePolicy) -> Iterator[Task]:
    common = {"seed": 0, "views": ViewsConfig(), "model": ModelConfig(), "folds": 2}
    if "pretrain" in policy.stages:
        yield Task.model_validate(common | {"stage": "pretrain"})
    for name in policy.methods if "finetune" in policy.stages else ():
        yield Task.model_validate(common | {"stage": "finetune", "fold": 0, "method": _default(name)})


def _default(name: str) -> Method:
    adapter = {"lora_c", "conv_lora", "cp_lora", "dora_c", "conv_dora", "cp_dora"}
    kind = AdapterTuning if name in adapter else WeightTuning
    return kind.model_validate({"method": name})


def _refusal(config: SiteConfig, kind: str, task: Task, study: Study | None) -> list[str]:
    """Why the policy would refuse a request; empty if it would not."""
    name = study.fingerprint() if study else (config.policy.studies or ("",))[0]
    method = task.method.id if task.method else "pretrain"
    header = Header(name, stage=task.stage, method=method, fold=task.fold, round=task.round, base="")
    try:
        check_request(config, kind, task, header)
    except PolicyRefused as error:
        return str(error).splitlines()[1:]
    return []
