"""The steps that every request passes at a site, in this order: signature, policy, work, leak check, audit log.

No request counts before the site's folder was found whole. Nothing of a request is read before its signature was
checked. Nothing leaves before its line in the audit log is on the disk. Any error refuses the request, and only the
name of its class leaves (``site.app``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from flwr.app import RecordDict

from sahfl import __version__
from sahfl.config import SiteConfig
from sahfl.errors import (
    AdapterError,
    PayloadError,
    PolicyRefused,
    StorageError,
    TrustError,
    UpdateHeldBack,
    VersionsDiffer,
)
from sahfl.federation import protocol
from sahfl.federation.signatures import check_signature, document
from sahfl.federation.site.answered import Answered
from sahfl.federation.site.audit import AuditLog
from sahfl.federation.site.folder_check import require_whole
from sahfl.federation.site.kinds.table import KINDS, find_kind
from sahfl.federation.site.known_bases import require_accepted
from sahfl.federation.site.known_policy import note_policy, policy_hash
from sahfl.federation.site.known_studies import recognise_study, remember_study
from sahfl.federation.site.ledger import Ledger
from sahfl.federation.site.policy import check_outgoing, check_request
from sahfl.federation.site.secret import commitment
from sahfl.federation.site.withdrawn import require_open
from sahfl.federation.tensors import hash_of_tensors
from sahfl.log_lines import LogLine
from sahfl.payload import FINGERPRINT, Header
from sahfl.task import Task
from sahfl.trust.kit import SiteKit

log = logging.getLogger(__name__)
REFUSALS = (TrustError, PolicyRefused, PayloadError, AdapterError, VersionsDiffer)
"""Errors caused by the request; all others are failures of the site. The texts of these errors name no case."""


def guarded(config: SiteConfig, kind: str, request: RecordDict, work: Callable[[], RecordDict]) -> RecordDict:
    """Do the work of an allowed request, and return its answer if all of it may leave.

    Raises:
        SahflError: the request or the answer is not allowed; the audit log has the reason.
        Exception: any error of ``work``; the audit log has its class.
    """
    audit = AuditLog(config.folder)
    asked = KINDS[kind].asked if kind in KINDS else f"something unknown ({kind[:40]!r})"
    try:
        require_whole(config)
        note_policy(config, audit)
        task, header = _admit(config, kind, request, audit)
        rounds, asked_for = Answered(config, header.study), document(kind, request)
        earlier = rounds.find(header, asked_for) if KINDS[kind].once else None
        try:
            answer = work() if earlier is None else earlier
        except UpdateHeldBack:
            rounds.note(header, asked_for)
            raise
        check_outgoing(config, kind, task, header, answer)
        used = Ledger(config)
        left = {} if config.simulated else {"left": used.left(), "ledger": used.head()}
        if KINDS[kind].once:
            rounds.keep(header, asked_for, answer)
    except Exception as error:
        refused = isinstance(error, REFUSALS)
        words = f"Refused: the server asked for {asked}." if refused else f"Failed: the server asked for {asked}."
        details = {"asked": kind[:40], "error": type(error).__name__} | (
            {"reason": str(error)[:2000]} if refused else {}
        )
        with suppress(StorageError):  # nothing leaves but the error's class
            log.warning(LogLine("audited", head=audit.append("refused" if refused else "failed", words, **details)))
        raise
    words, details = _describe(kind, task, header, answer)
    hashes = {"base": header.base[:64], "start": hash_of_tensors(request), "policy": policy_hash(config.policy)}
    hashes |= {"training": header.training, "batches": commitment(config), "sahfl": __version__}
    if earlier is not None:
        words = f"Once more, the same: {words}"
    head = audit.append("answered", words, **details, **hashes, **left)
    log.info(LogLine("audited", head=head))
    return answer


def _admit(config: SiteConfig, kind: str, request: RecordDict, audit: AuditLog) -> tuple[Task, Header]:
    if config.policy.require_signature:
        if config.kit is None:
            text = "policy.require_signature is true and no kit names the signer; name the kit's folder under 'kit'"
            raise TrustError(f"site {config.name}: {text}")
        kit = SiteKit.load(config.kit)
        if kit.site != config.name:
            raise TrustError(f"site {config.name}: {config.kit} is the kit of site {kit.site}; name this site's own")
        check_signature(kind, request, kit.signer)
    task, header = protocol.read_request(request)
    if not FINGERPRINT.fullmatch(header.study):
        raise PayloadError("header: got another study than a fingerprint of 64 hex digits")
    check_request(config, kind, task, header)
    require_open(config.folder, header)
    if find_kind(kind).needs_base:
        require_accepted(config, header)
    stored, current = recognise_study(config.folder, task, header, simulated=config.simulated)
    if stored is None:
        settings = {"seed": task.seed, "folds": task.folds, "sahfl": header.sahfl[:40]}
        audit.append("study", f"A new study asks: {header.study[:12]}.", study=header.study[:64], **settings)
    if stored != current:
        remember_study(config.folder, header.study, current)
    return task, header


def _describe(kind: str, task: Task, header: Header, answer: RecordDict) -> tuple[str, dict[str, Any]]:
    """Describe an answer in a sentence and in numbers, without any value of the answer."""
    what, more = find_kind(kind).audit(task, answer)
    n_bytes = protocol.n_bytes(answer)
    details = {"asked": kind, "study": header.study[:64], "bytes": n_bytes, "sha256": document(kind, answer).hex()}
    return f"Sent to the server: {what} ({n_bytes:,} bytes).", details | more
