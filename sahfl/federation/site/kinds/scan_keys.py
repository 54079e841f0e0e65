"""The request for a salted key of each scan, with which a study finds scans that two sites share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flwr.app import RecordDict

from sahfl.config import SiteConfig, SitePolicy
from sahfl.federation import protocol
from sahfl.federation.requests import Requests, question
from sahfl.federation.site.kinds.kind import Kind, Planned
from sahfl.federation.site.site import Site
from sahfl.federation.tensors import config_record
from sahfl.task import Task


def scan_keys(site: Site, content: RecordDict) -> RecordDict:
    """Answer with salted keys of the site's scans, if its policy allows that."""
    _, header = protocol.read_request(content)
    return protocol.scan_keys_reply(header, site.scan_keys(header.study))


def _refuses(policy: SitePolicy, task: Task) -> Iterator[str]:
    if not policy.share_scan_keys:
        yield "share_scan_keys: got a request for keys of scans, expected none"


def _leaks(policy: SitePolicy, task: Task, answer: RecordDict) -> Iterator[str]:
    record = config_record(answer, "scan_keys")
    keys = record.get("keys")
    fit = isinstance(keys, list) and all(isinstance(key, str) and protocol.KEY.fullmatch(key) for key in keys)
    if not policy.share_scan_keys or set(record) != {"keys"} or not fit:
        yield "got something else than salted keys of scans that the policy lets out"


def _audit(task: Task, answer: RecordDict) -> tuple[str, dict[str, Any]]:
    keys = config_record(answer, "scan_keys")["keys"]
    n = len(keys) if isinstance(keys, list) else 0
    return f"a salted key of each of {n} scans", {"keys": n}


def _plan(config: SiteConfig, requests: Requests | None) -> Iterator[Planned]:
    if requests is None or (requests.study.compare_sites and config.name in requests.study.sites):
        yield Planned("keys of scans", (question(requests),), _lines())


def _lines() -> Iterator[str]:
    yield "once, if the study compares sites (scan_keys):"
    yield "  leaves: 16 hex digits per scan, a salted hash of its voxels"


SCAN_KEYS = Kind(
    type=protocol.SCAN_KEYS,
    records=frozenset({"header", "scan_keys"}),
    asked="salted keys of the scans",
    doing="hashing scans",
    answer=scan_keys,
    refuses=_refuses,
    leaks=_leaks,
    audit=_audit,
    needs_base=False,
    once=False,
    plan=_plan,
)
