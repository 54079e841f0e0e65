"""The site's app: answers describe, install_base, train and evaluate; the same in a simulation and in a hospital.

Every request passes ``guard``: signature, policy, what may leave, audit log. What leaves: counts (describe); salted
keys of scans, where the study asks and the site's policy allows it (scan_keys);
the exchanged tensors with the number of volumes, the loss and the seconds (train); sums (evaluate). An error leaves as
the name of its class; its text, which may name files, stays in the site's log.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from sahfl.adapters import exchanged
from sahfl.adapters.attach import merge
from sahfl.config import SiteConfig, load_site
from sahfl.data.ct import read_scan
from sahfl.data.sampler import SliceSampler
from sahfl.errors import ConfigError, PayloadError
from sahfl.evaluation import predict, score
from sahfl.events import Event, emit, log_on_stderr
from sahfl.federation import protocol
from sahfl.federation.site.device import choose_device
from sahfl.federation.site.feedback import with_feedback
from sahfl.federation.site.guard import guarded
from sahfl.federation.site.local_norms import keep_own, put_own
from sahfl.federation.site.policy import coarse
from sahfl.federation.site.site import Site
from sahfl.federation.tensors import read_state
from sahfl.federation.turns import take_turn
from sahfl.model import Network
from sahfl.networks import base_network, fine_tuned_network, staying, whole_network
from sahfl.payload import Header
from sahfl.seeds import derive_seed
from sahfl.statistics import CaseResult, EvaluationSums
from sahfl.statistics.disclosure import Groups, withhold
from sahfl.task import Task
from sahfl.training import Schedule, train

log = logging.getLogger(__name__)
Answer = Callable[[Site, RecordDict], RecordDict]


class SiteFailure(Exception):
    """What the server sees of an error at a site: the name of its class."""


def make_app(open_site: Callable[[SiteConfig], Site] = Site) -> ClientApp:
    """The site's app; ``open_site`` gives it the site's own side."""
    made = ClientApp()
    made.query("describe")(answering(describe, open_site))
    made.query("scan_keys")(answering(scan_keys, open_site))
    made.query("install_base")(answering(install_base, open_site))
    made.train()(answering(train_round, open_site))
    made.evaluate()(answering(evaluate_fold, open_site))
    return made


def answering(answer: Answer, open_site: Callable[[SiteConfig], Site]) -> Callable[[Message, Context], Message]:
    """Turn an answer into a Flower handler that logs what happened and keeps error texts at the site."""

    @wraps(answer)
    def handler(message: Message, context: Context) -> Message:
        began = time.monotonic()
        try:
            site = open_site(_config(context))
            kind = message.metadata.message_type
            content = guarded(site.config, kind, message.content, lambda: answer(site, message.content))
        except Exception as error:
            log.exception("event=failed what=%s error=%s", answer.__name__, type(error).__name__)
            raise SiteFailure(type(error).__name__) from None
        seconds = time.monotonic() - began
        log.info(
            "event=answered what=%s bytes_out=%d seconds=%.2f", answer.__name__, protocol.n_bytes(content), seconds
        )
        return Message(content, reply_to=message)

    return handler


def _config(context: Context) -> SiteConfig:
    """The site, as the process that runs this app says: ``site``, JSON, or ``site-file``, from a stock SuperNode."""
    settings = context.node_config
    if "site" in settings:
        return SiteConfig.model_validate_json(str(settings["site"]))
    if "site-file" not in settings:
        raise ConfigError("""flower-supernode: no site is named; add --node-config 'site-file="/path/to/site.yaml"'""")
    log_on_stderr()
    return load_site(Path(str(settings["site-file"])))


def describe(site: Site, content: RecordDict) -> RecordDict:
    """Prepare and check the data, and answer with counts."""
    task = protocol.read_task(content)
    site.prepare(lambda done, total: emit(Event("step", "data", site.config.name, done, total)))
    description = coarse(site.describe(n_folds=task.folds, seed=task.seed), site.config.policy)
    log.info("event=described %s", " ".join(f"{key}={value}" for key, value in description.model_dump().items()))
    return protocol.description_reply(description)


def scan_keys(site: Site, content: RecordDict) -> RecordDict:
    """Salted keys of the site's scans, if its policy allows that."""
    _, header = protocol.read_request(content)
    return protocol.scan_keys_reply(header, site.scan_keys(header.study))


def install_base(site: Site, content: RecordDict) -> RecordDict:
    """Keep the base network that later tasks name by its hash."""
    task, header = protocol.read_request(content)
    like = exchanged.read(whole_network(task.views, task.model, task.seed))
    site.install_base(read_state(content, like=like), header.base)
    return RecordDict({"header": ConfigRecord(header.as_dict())})


def train_round(site: Site, content: RecordDict) -> RecordDict:
    """Train on the site's own cases from the state received, and answer with the new state."""
    began = time.monotonic()
    task, header = _task_and_header(content)
    if task.local is None or not 1 <= task.round <= task.rounds:
        raise PayloadError(f"task: got round {task.round} of {task.rounds}, expected settings of a training round")
    if (task.fold < 0) != (task.stage == "pretrain"):
        raise PayloadError(
            f"task: got fold {task.fold} in stage {task.stage}, expected a held-out fold in finetune only"
        )
    net = _network(site, task, header)
    start = read_state(content, like=exchanged.read(net))
    exchanged.load(net, start)
    put_own(net, task, site.config.folder, header, after_round=task.round - 1)
    names = take_turn(net, task.method, task.round)
    cases = site.training_cases(fold=task.fold, n_folds=task.folds, seed=task.seed, turn=task.round)
    sampler = SliceSampler(
        site.load_views(cases, task.views),
        task.views,
        batch_size=task.local.batch_size,
        foreground_share=task.local.foreground_share,
        seed=derive_seed(task.seed, task.stage, header.method, task.fold, task.round, site.config.name),
    )
    local = task.local
    schedule = Schedule(
        task.learning_rate, local.weight_decay, local.steps, task.round, task.rounds, proximal=local.proximal
    )
    loss = train(
        net,
        sampler,
        schedule,
        precision=local.precision,
        on_step=lambda done, total, loss: emit(Event("step", "train", site.config.name, done, total, loss)),
    )
    log.info(
        "event=trained stage=%s method=%s fold=%d round=%d n_volumes=%d loss=%.4f",
        *(task.stage, header.method, task.fold, task.round, len(cases), loss),
    )
    trained, at_home = exchanged.read(net), staying(net, task)
    keep_own(site.config.folder, header, {name: trained[name] for name in at_home})
    sent = {name: trained[name] for name in names if name not in at_home}
    if task.payload != "float32":
        change = {name: value - start[name] for name, value in sent.items()}
        sent = with_feedback(site.config.folder, header, change, task.payload)
    seconds = time.monotonic() - began
    return protocol.train_reply(header, sent, n_volumes=len(cases), loss=loss, seconds=seconds, encoding=task.payload)


def evaluate_fold(site: Site, content: RecordDict) -> RecordDict:
    """Segment and score the held-out cases, and answer with sums."""
    task, header = _task_and_header(content)
    if task.evaluation is None or task.fold < 0:
        raise PayloadError(f"task: got fold {task.fold}, expected a held-out fold and settings for evaluation")
    net = _network(site, task, header)
    if header.method != "zero_shot":
        exchanged.load(net, read_state(content, like=exchanged.read(net)))
        put_own(net, task, site.config.folder, header, after_round=task.rounds)
    merge(net)
    results = _score_cases(site, task, net)
    site.keep_results([{"method": header.method, "fold": task.fold, "case": case} | r.row() for case, r in results])
    cases, policy = [result for _, result in results], site.config.policy
    sums, groups = EvaluationSums.of(cases, task.evaluation, seed=task.seed), Groups.of(cases, task.evaluation)
    least = {"smallest_group": policy.smallest_group, "smallest_bootstrap": policy.smallest_bootstrap}
    return protocol.evaluation_reply(header, withhold(sums, groups, **least).to_array())


def _score_cases(site: Site, task: Task, net: Network) -> list[tuple[str, CaseResult]]:
    assert task.evaluation is not None
    keys = site.patient_keys(task.seed)
    cases = site.held_out_cases(fold=task.fold, n_folds=task.folds, seed=task.seed)
    results = []
    for done, item in enumerate(cases, start=1):
        (views,) = site.load_views([item], task.views)
        probability = predict(net, views, task.views)
        mask, scan = probability >= task.evaluation.threshold, read_scan(item.case)
        result = score(mask, scan, key=keys[item.case.patient], tolerance_mm=task.evaluation.tolerance_mm)
        results.append((item.case.id, result))
        emit(Event("step", "evaluate", site.config.name, done, len(cases)))
    return results


def _network(site: Site, task: Task, header: Header) -> Network:
    return _fresh_network(site, task, header).to(choose_device(site.config.device))


def _fresh_network(site: Site, task: Task, header: Header) -> Network:
    if task.stage == "pretrain":
        return whole_network(task.views, task.model, task.seed)
    base = site.base(header.base)
    method = task.own_method
    if method is None or method.method == "zero_shot":
        return base_network(task.views, task.model, base)
    return fine_tuned_network(task.views, task.model, base, method, task.seed)


def _task_and_header(content: RecordDict) -> tuple[Task, Header]:
    """What is asked, and the name that the answer carries: no server asks for one thing and files it as another."""
    task, header = protocol.read_request(content)
    asked = (task.stage, task.method.id if task.method else "pretrain", task.fold, task.round)
    if asked != (header.stage, header.method, header.fold, header.round):
        raise PayloadError("header: names another stage, method, fold or round than the task")
    return task, header


app = make_app()
