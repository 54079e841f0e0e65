"""An evaluation: the site segments and scores its held-out cases, and answers with sums over them.

In a study with masks, ``evaluate_masked`` and ``evaluate_own`` take its place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from flwr.app import RecordDict
from torch import nn

from sahfl.adapters import exchanged
from sahfl.adapters.attach import merge, staying
from sahfl.config import EvaluationConfig, SiteConfig, SitePolicy, ZeroShot
from sahfl.data.checks import CheckedCase
from sahfl.data.ct import read_scan
from sahfl.errors import PayloadError
from sahfl.evaluation import predict, score
from sahfl.events import SiteStep, emit
from sahfl.federation import protocol
from sahfl.federation.requests import Requests, plain_task
from sahfl.federation.site.answered import Answered
from sahfl.federation.site.case_results import Scored, keep_results
from sahfl.federation.site.kinds.kind import Kind, Planned
from sahfl.federation.site.kinds.limits import above
from sahfl.federation.site.kinds.local_training import reserve
from sahfl.federation.site.kinds.received import network_of, open_network, task_and_header, which_cell
from sahfl.federation.site.masked import forget_masked
from sahfl.federation.site.site import Site
from sahfl.federation.tensors import read_state
from sahfl.model import for_inference
from sahfl.payload import Header
from sahfl.statistics.cases import CaseResult, n_groups
from sahfl.statistics.disclosure import describe_withheld, withhold
from sahfl.statistics.sums import EvaluationSums, array_length
from sahfl.task import Task

# ------------------------------------------------------------------------------------------------------- the work


def evaluate_fold(site: Site, content: RecordDict) -> RecordDict:
    """Segment and score the held-out cases, and answer with sums."""
    task, header = task_and_header(content)
    if task.masking is not None:
        raise PayloadError("task: asks for masks, and the request for sums in the clear")
    cases, policy = evaluated_cases(site, content, protocol.EVALUATE), site.config.policy
    assert task.evaluation is not None  # evaluated_cases refuses anything else
    sums = EvaluationSums.of(cases, task.evaluation, seed=task.seed)
    least = {"smallest_group": policy.smallest_group, "smallest_bootstrap": policy.smallest_bootstrap}
    return protocol.evaluation_reply(header, withhold(sums, cases, task.evaluation, **least).to_array())


def evaluated_cases(site: Site, content: RecordDict, kind: str) -> list[CaseResult]:
    """Segment and score the held-out cases of a request of a kind; their results are kept at the site."""
    task, header = task_and_header(content)
    if task.evaluation is None or task.fold < 0:
        raise PayloadError(f"task: got fold {task.fold}, expected a held-out fold and settings for evaluation")
    if task.round and (task.masking is not None or task.round >= task.rounds):
        expected = f"an earlier round than the last, {task.rounds}, and no masks"
        raise PayloadError(f"task: got an evaluation after round {task.round}, expected {expected}")
    held_out = held_out_cases(site, task)
    reserve(site, "evaluation", kind, content, header, held_out)
    net = _evaluated_network(site, task, header, content)
    merge(net)
    results = score_cases(site, task, net, held_out)
    if task.round:
        return [result for _, _, result in results]  # the training goes on
    rounds = Answered(site.config, header.study)
    rounds.close(header.training)
    forget_masked(site.config.folder, header.training)
    if not task.inner:
        keep_results(site.config.folder, task, header, results, took_part=rounds.took_part(header))
    return [result for _, _, result in results]


def _evaluated_network(site: Site, task: Task, header: Header, content: RecordDict) -> nn.Module:
    """The network with the received state and, where each site is evaluated with its own part, that of this site."""
    if task.training is None:
        return network_of(site, task, header)
    if task.part == "personal":
        own = open_network(site, task, header)
        own.load(content, after_round=task.round or task.rounds + 1)
        if not task.round:
            own.part.keep_network(exchanged.read(own.net), base=header.base)
        return own.net
    net = network_of(site, task, header)
    whole = exchanged.read(net)
    away = staying(net, task.training, net.parts) if task.part == "shared" else ()
    received = read_state(content, like={name: value for name, value in whole.items() if name not in away})
    exchanged.load(net, whole | received)
    return net


def held_out_cases(site: Site, task: Task) -> tuple[CheckedCase, ...]:
    """The cases that a task evaluates, after a check that their content did not change."""
    return site.held_out_cases(fold=task.evaluated_fold, n_folds=task.folds, seed=task.seed)


def score_cases(site: Site, task: Task, net: nn.Module, cases: Sequence[CheckedCase]) -> list[Scored]:
    """Segment and score cases with a merged network."""
    assert task.evaluation is not None
    keys, net = site.patient_keys(task.seed), for_inference(net)  # once, not for each case
    results = []
    for done, item in enumerate(cases, start=1):
        (views,) = site.load_views([item], task.views)
        probability = predict(net, views, task.views)
        mask, scan = probability >= task.evaluation.threshold, read_scan(item.case)
        result = score(mask, scan, key=keys[item.case.patient], tolerance_mm=task.evaluation.tolerance_mm)
        results.append((item.case.id, item.content, result))
        emit(SiteStep(site.config.name, protocol.EVALUATE, done, len(cases)))
    return results


# ----------------------------------------------------------------------------------------------------- the policy


def _refuses(policy: SitePolicy, task: Task) -> Iterator[str]:
    yield from refuses_evaluation(policy, task)
    if not policy.unmasked:
        yield "unmasked: got an evaluation whose sums would leave in the clear, expected rounds.masking in the study"


def refuses_evaluation(policy: SitePolicy, task: Task) -> Iterator[str]:
    """Yield what a policy forbids of any evaluation."""
    if not policy.evaluation:
        yield "evaluation: got a request to evaluate, expected none"
    if task.stage != "finetune":
        yield f"stages: got an evaluation in {task.stage}, expected finetune"
    if task.evaluation is not None:
        yield from above(policy, "most_replicates", task.evaluation.replicates)


def _leaks(policy: SitePolicy, task: Task, answer: RecordDict) -> Iterator[str]:
    if task.evaluation is None:
        yield "got sums, expected none without settings of an evaluation"
        return
    sums = _sums(answer, task.evaluation)
    for part in sums.groups:
        for n, what in ((part.n, "results"), (part.detected, "HD95")):
            if 0 < n < policy.smallest_group:
                yield f"got {what} over {n:g} scans, expected {policy.smallest_group} (policy.smallest_group)"
            if 0 < n < policy.smallest_bootstrap and not part.bare:
                expected = f"{policy.smallest_bootstrap} (policy.smallest_bootstrap)"
                yield f"got replicates of {what} over {n:g} scans, expected {expected}"
    if 0 < sums.n_no_blood < policy.smallest_group:
        yield f"got counts of {sums.n_no_blood} scans, expected {policy.smallest_group} (policy.smallest_group)"


def _sums(answer: RecordDict, config: EvaluationConfig) -> EvaluationSums:
    """Read the sums of an answer with the function that the server uses."""
    array = protocol.read_evaluation_reply(answer, header=Header(**protocol.read_header(answer)))
    return EvaluationSums.from_array(array, config)


# -------------------------------------------------------------------------------------------------------- in words


def _audit(task: Task, answer: RecordDict) -> tuple[str, dict[str, Any]]:
    assert task.evaluation is not None  # _leaks refuses such an answer
    sums = _sums(answer, task.evaluation)
    withheld = describe_withheld(sums)
    n: dict[str, Any] = {"strata": [part.n for part in sums.by_volume], "extents": [part.n for part in sums.by_extent]}
    n |= {"blood": sums.overall.n, "no_blood": sums.n_no_blood}
    what = f"sums over {sums.overall.n} scans with blood and {sums.n_no_blood} without ({what_of(task)})"
    kept = f", withholding {withheld}: groups too small" if withheld else ""
    withheld_parts = vars(sums.withheld) | {"replicates": sums.overall.bare > 0}
    withheld_parts |= {"misses": sums.overall.hidden > 0, "misses_of_groups": sums.hides_groups}
    details = {"groups": n, "withheld": withheld_parts}
    return what + kept, which_cell(task) | details


def what_of(task: Task) -> str:
    """The method, the part of it, the fold and the round of an evaluation, in words."""
    which = {"personal": ", with this site's own part", "shared": ", shared part", "mean": ", mean of all parts"}
    after = f", after round {task.round}" if task.round else ""
    return f"{task.cell}{which.get(task.part or '', '')}, fold {task.fold}{after}"


def _plan(config: SiteConfig, requests: Requests | None) -> Iterator[Planned]:
    tasks = requests.evaluations(config.name) if requests else (_allowed(config.policy),)
    if some := tuple(task for task in tasks if task.masking is None):
        which = named(some) if requests else ""
        yield Planned("evaluation", some, _lines(config.policy, some[0], which))


def named(tasks: Sequence[Task]) -> str:
    """The methods of some evaluations, in words; those after rounds with the number of these rounds."""
    counts = Counter(task.cell for task in tasks if task.round)
    after = {name: f" (and after {n} earlier round{'s' * (n > 1)})" for name, n in counts.items()}
    return f" of {', '.join(task.cell + after.pop(task.cell, '') for task in tasks if not task.round)}"


def _allowed(policy: SitePolicy) -> Task:
    """An evaluation at default settings, with as many replicates as a policy allows."""
    settings = EvaluationConfig(replicates=min(1000, policy.most_replicates))
    return plain_task("finetune", ZeroShot(method="zero_shot"), 0).model_copy(update={"evaluation": settings})


def _lines(policy: SitePolicy, task: Task, which: str) -> Iterator[str]:
    settings = task.evaluation
    assert settings is not None
    numbers = array_length(settings)
    yield f"evaluation{which}, each fold:"
    yield f"  leaves: {numbers:,} numbers, {8 * numbers:,} bytes:"
    yield from what_sums_have(settings)
    few, least = policy.smallest_group, policy.smallest_bootstrap
    yield f"  withheld: results of fewer than {few} patients, also by subtraction; bootstrap sums and histograms"
    yield f"    of fewer than {least}; then a split or both are left out, or nothing leaves but that fact; misses and"
    yield "    HD95 also where so few were detected"


def what_sums_have(settings: EvaluationConfig) -> Iterator[str]:
    """The lines of a dry run on the content of an evaluation's sums."""
    n_strata, n_extents = n_groups(settings)
    yield f"    for all cases with blood, for each of {n_strata} volume strata and of {n_extents} groups of extent"
    yield "    the number of scans, the number of those in which nothing was predicted (misses),"
    yield "    and of each of five metrics (Dice, surface Dice, HD95 without misses, volume error, lesion F1)"
    yield f"    the sum, the sum of squares, a histogram and {settings.replicates} bootstrap sums with weights;"
    yield "    sums of volumes and of their products, a histogram of predicted against annotated volume;"
    yield "    numbers of scans without blood, and of those in which blood was predicted"


EVALUATE = Kind(
    type=protocol.EVALUATE,
    records=frozenset({"header", "sums"}),
    asked="an evaluation",
    doing="evaluating",
    answer=evaluate_fold,
    refuses=_refuses,
    leaks=_leaks,
    audit=_audit,
    needs_base=True,
    once=False,
    plan=_plan,
)
