"""The one way through a site: signature, policy, work, what may leave, audit log. In this order, with no way around.

Nothing of a request is looked at before its signature was checked; nothing leaves before it is in the audit log, on the
disk. Whatever goes wrong is refused: an error of any kind leaves as the name of its class (``site.app``).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from flwr.app import RecordDict

from sahfl.config import SiteConfig
from sahfl.errors import AdapterError, PayloadError, PolicyRefused, StorageError, TrustError
from sahfl.federation import protocol
from sahfl.federation.signatures import check_signature, document
from sahfl.federation.site.audit import AuditLog
from sahfl.federation.site.known_studies import recognise_study, remember_study
from sahfl.federation.site.policy import as_strings, check_outgoing, check_request
from sahfl.federation.tensors import config_record
from sahfl.payload import Header
from sahfl.statistics import EvaluationSums
from sahfl.statistics.disclosure import describe_withheld
from sahfl.task import Task
from sahfl.trust.kit import SiteKit

log = logging.getLogger(__name__)
REFUSALS = (TrustError, PolicyRefused, PayloadError, AdapterError)
"""Errors that say something about the request; all others are failures of the site. Their texts name no case."""
NAMES = {
    protocol.DESCRIBE: "what data there are",
    protocol.SCAN_KEYS: "salted keys of the scans",
    protocol.INSTALL_BASE: "to keep a base network",
    protocol.TRAIN: "a round of training",
    protocol.EVALUATE: "an evaluation",
}


def guarded(config: SiteConfig, kind: str, request: RecordDict, work: Callable[[], RecordDict]) -> RecordDict:
    """Do what a request asks, if all of it is allowed, and give back the answer, if all of it may leave.

    Raises:
        SahflError: it is not; the audit log says why.
        Exception: what ``work`` raised; the audit log has its class.
    """
    audit = AuditLog(config.folder)
    asked = NAMES.get(kind, f"something unknown ({kind[:40]!r})")
    try:
        task, header = _admit(config, kind, request, audit)
        answer = work()
        check_outgoing(config, kind, task, header, answer)
    except Exception as error:
        refused = isinstance(error, REFUSALS)
        words = f"Refused: the server asked for {asked}." if refused else f"Failed: the server asked for {asked}."
        details = {"asked": kind[:40], "error": type(error).__name__} | (
            {"reason": str(error)[:2000]} if refused else {}
        )
        with suppress(StorageError):  # nothing leaves but the error's class
            log.warning("audit_head=%s", audit.append("refused" if refused else "failed", words, **details))
        raise
    words, details = _say(kind, task, header, answer)
    head = audit.append("answered", words, **details)
    log.info("event=audited head=%s", head)
    return answer


def _admit(config: SiteConfig, kind: str, request: RecordDict, audit: AuditLog) -> tuple[Task, Header]:
    if config.policy.require_signature:
        if config.kit is None:
            text = "policy.require_signature is true and no kit says whose; name the kit's folder under 'kit'"
            raise TrustError(f"site {config.name}: {text}")
        kit = SiteKit.load(config.kit)
        if kit.site != config.name:
            raise TrustError(f"site {config.name}: {config.kit} is the kit of site {kit.site}; name this site's own")
        check_signature(kind, request, kit.signer)
    task, header = protocol.read_request(request)
    check_request(config, kind, task, header)
    known, now = recognise_study(config.folder, task, header)
    if known is None:
        settings = {"seed": task.seed, "folds": task.folds, "sahfl": header.sahfl[:40]}
        audit.append("study", f"A new study asks: {header.study[:12]}.", study=header.study[:64], **settings)
    if known != now:
        remember_study(config.folder, header.study, now)
    return task, header


def _say(kind: str, task: Task, header: Header, answer: RecordDict) -> tuple[str, dict[str, Any]]:
    """What an answer holds, as a sentence and as numbers; no value of it."""
    details: dict[str, Any] = {
        "asked": kind,
        "study": header.study[:64],
        "bytes": protocol.n_bytes(answer),
        "sha256": document(kind, answer).hex(),
    }
    if kind in (protocol.TRAIN, protocol.EVALUATE):
        method = task.method.id if task.method else None
        details |= {"stage": task.stage, "method": method, "fold": task.fold, "round": task.round}
    what, more = _SAY[kind](task, answer)
    size = f"{details['bytes']:,} bytes"
    return f"Sent to the server: {what} ({size}).", details | more


def _say_description(task: Task, answer: RecordDict) -> tuple[str, dict[str, Any]]:
    return "counts of patients, scans and findings of the data check, and a hash of the software", {}


def _say_scan_keys(task: Task, answer: RecordDict) -> tuple[str, dict[str, Any]]:
    keys = config_record(answer, "scan_keys")["keys"]
    n = len(keys) if isinstance(keys, list) else 0
    return f"a salted key of each of {n} scans", {"keys": n}


def _say_receipt(task: Task, answer: RecordDict) -> tuple[str, dict[str, Any]]:
    return "nothing but that the base network arrived", {}


def _say_tensors(task: Task, answer: RecordDict) -> tuple[str, dict[str, Any]]:
    names = as_strings(config_record(answer, "layout")["names"])
    numbers = answer.array_records["state"]["flat"].shape[0]
    metrics = sorted(answer.metric_records["metrics"])
    where = "all weights, pretraining" if task.method is None else f"{task.method.id}, fold {task.fold + 1}"
    what = f"{len(names)} tensors with {numbers:,} numbers ({where}, round {task.round} of {task.rounds})"
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
    details = {"tensors": len(names), "names_sha256": digest, "numbers": numbers, "metrics": metrics}
    return f"{what}, the number of scans, the mean loss and the seconds", details


def _say_sums(task: Task, answer: RecordDict) -> tuple[str, dict[str, Any]]:
    assert task.evaluation is not None  # check_outgoing saw to it
    array = protocol.read_evaluation_reply(answer, header=Header(**protocol.read_header(answer)))
    sums = EvaluationSums.from_array(array, task.evaluation)
    withheld = describe_withheld(sums)
    method = task.method.id if task.method else "pretrain"
    n: dict[str, Any] = {"strata": [part.n for part in sums.by_volume], "extents": [part.n for part in sums.by_extent]}
    n |= {"blood": sums.overall.n, "no_blood": sums.n_no_blood}
    what = f"sums over {sums.overall.n} scans with blood and {sums.n_no_blood} without ({method}, fold {task.fold + 1})"
    kept = f", withholding {withheld}: groups too small" if withheld else ""
    return what + kept, {"groups": n, "withheld": vars(sums.withheld) | {"replicates": sums.overall.bare > 0}}


_SAY = {
    protocol.DESCRIBE: _say_description,
    protocol.SCAN_KEYS: _say_scan_keys,
    protocol.INSTALL_BASE: _say_receipt,
    protocol.TRAIN: _say_tensors,
    protocol.EVALUATE: _say_sums,
}
