"""The policy that a site last worked under. The audit log has a line for the first policy and for each change of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from sahfl.atomic import write_atomic, writing
from sahfl.config import SiteConfig, SitePolicy
from sahfl.federation.site.audit import AuditLog
from sahfl.regular_files import LIST_BYTES, read_text

FILE = "policy.json"


def policy_hash(policy: SitePolicy) -> str:
    """SHA-256 (hex) of all settings of a policy."""
    return hashlib.sha256(_text(policy).encode()).hexdigest()


def note_policy(config: SiteConfig, audit: AuditLog) -> None:
    """Write a line to the audit log if the policy is another one than at the last request: each setting that changed.

    Raises:
        StorageError: the line or the file cannot be written.
    """
    path, now = config.folder / FILE, _text(config.policy)
    before = _read(path)
    if before == now:
        return
    changed = [] if before is None else list(_changes("policy", json.loads(before), json.loads(now)))
    words = f"The policy changed: {'; '.join(changed)}." if before is not None else "The policy of this site is noted."
    audit.append("policy", words, policy=policy_hash(config.policy), changed=changed)
    with writing(path):
        write_atomic(path, now)


def _read(path: Path) -> str | None:
    """The stored policy; None if there is none, or if the file is damaged and a new line has to say what holds now."""
    try:
        text = read_text(path, most=LIST_BYTES)
        return text if isinstance(json.loads(text), dict) else None
    except (OSError, ValueError, RecursionError):
        return None


def _text(policy: SitePolicy) -> str:
    return json.dumps(policy.model_dump(mode="json"), sort_keys=True)


def _changes(name: str, before: object, now: object) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from _changes(f"{name}.{key}", before.get(key), now.get(key))
    elif before != now:
        yield f"{name} from {json.dumps(before)} to {json.dumps(now)}"
