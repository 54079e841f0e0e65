"""The secret from which a site draws its batches, so that nobody else can foresee or repeat them.

A batch depends on the secret and on the whole request: settings, base network and start. A server that asks for a
round once more with another base gets other slices, so two answers never show one slice in two ways. The description of
a site has a hash of the secret, so that results of other batches are not taken for these.

Each answer's line in the audit log has this hash too. A secret that was lost is therefore never replaced silently.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path

from sahfl.atomic import write_atomic, writing
from sahfl.config import SiteConfig
from sahfl.errors import SiteStateLost, StorageError
from sahfl.federation.site.audit import FILE as AUDIT
from sahfl.federation.site.audit import AuditLog, lines_so_far
from sahfl.payload import Header
from sahfl.process import locked
from sahfl.regular_files import TRUST_BYTES, read_bytes
from sahfl.task import Task

FILE, LOCK = "batches.key", "batches.lock"
REMEDY = "restore it from the newest backup, or draw from a new one from now on: sahfl-client new-secret SITE_FILE"


def site_secret(config: SiteConfig) -> bytes:
    """The secret of a site, 32 bytes: that of its file, or one that the site makes once and keeps in its folder.

    Raises:
        SiteStateLost: the file is missing or damaged, and earlier answers drew their batches from it.
        StorageError: the secret cannot be read or written.
    """
    if config.secret is not None:
        return bytes.fromhex(config.secret)
    path = config.folder / FILE
    try:
        with locked(config.folder / LOCK):
            if not path.exists():
                _require_unused(config.folder)
                write_atomic(path, os.urandom(32))
        secret = read_bytes(path, most=TRUST_BYTES)
    except OSError as error:
        raise StorageError(f"{path}: cannot be used ({error.strerror}); make room, or restore it") from error
    if len(secret) != 32:
        raise SiteStateLost(f"{path}: holds {len(secret)} bytes, expected 32; {REMEDY}")
    return secret


def renew_secret(config: SiteConfig) -> None:
    """Draw batches from a new secret from now on: another random one, or the one that the site file names now.

    Raises:
        StorageError: the audit log or the secret cannot be written; the call can be repeated.
    """
    new = os.urandom(32) if config.secret is None else bytes.fromhex(config.secret)
    words = "From now on, batches are drawn from a new secret."
    AuditLog(config.folder).append("secret_renewed", words, batches=_hash(new))
    if config.secret is None:
        with writing(config.folder / FILE), locked(config.folder / LOCK):
            write_atomic(config.folder / FILE, new)


def commitment(config: SiteConfig) -> str:
    """16 hex digits that name the secret without revealing it."""
    return _hash(site_secret(config))


def batch_key(config: SiteConfig, task: Task, header: Header, start: str) -> str:
    """HMAC-SHA-256 (hex) of a request under the site's secret; ``start`` is the hash of the received tensors.

    The study's fingerprint is left out: it says where the scans lie, and a simulation draws as its deployment does.
    Masks are left out too: they change no training (``masked`` masks each batch's update once).
    """
    asked = "\n".join([task.model_dump_json(exclude={"masking"}), header.method, header.base, start])
    return hmac.new(site_secret(config), asked.encode(), hashlib.sha256).hexdigest()


def _hash(secret: bytes) -> str:
    return hashlib.sha256(b"sahfl batches" + secret).hexdigest()[:16]


def _require_unused(folder: Path) -> None:
    """Refuse to make a secret at a site that answered before: its secret was lost."""
    if any("batches" in line["details"] for line in lines_so_far(folder / AUDIT)):
        text = "is missing, and the answers in the audit log drew their batches from it"
        raise SiteStateLost(f"{folder / FILE}: {text}; {REMEDY}")
