"""The secret from which a site draws its batches, so that nobody else can foresee or repeat them.

A batch depends on the secret and on the whole request: settings, base network and start. A server that asks for a
round once more with another base gets other slices, so two answers never show one slice in two ways. The description of
a site has a hash of the secret, so that results of other batches are not taken for these.
"""

from __future__ import annotations

import hashlib
import hmac
import os

from sahfl.atomic import OWNER_ONLY, write_atomic
from sahfl.config import SiteConfig
from sahfl.errors import StorageError
from sahfl.payload import Header
from sahfl.process import locked
from sahfl.task import Task

FILE = "batches.key"


def site_secret(config: SiteConfig) -> bytes:
    """The secret of a site, 32 bytes: that of its file, or one that the site makes once and keeps in its folder.

    Raises:
        StorageError: the secret cannot be read or written, or its file is damaged.
    """
    if config.secret is not None:
        return bytes.fromhex(config.secret)
    path = config.folder / FILE
    try:
        with locked(config.folder / "batches.lock"):
            if not path.exists():
                write_atomic(path, os.urandom(32), mode=OWNER_ONLY)
        secret = path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path}: cannot be used ({error.strerror}); make room, or restore it") from error
    if len(secret) != 32:
        raise StorageError(f"{path}: holds {len(secret)} bytes, expected 32; move it away, and a new one is made")
    return secret


def commitment(config: SiteConfig) -> str:
    """16 hex digits that name the secret without revealing it."""
    return hashlib.sha256(b"sahfl batches" + site_secret(config)).hexdigest()[:16]


def batch_key(config: SiteConfig, task: Task, header: Header, start: str) -> str:
    """HMAC-SHA-256 (hex) of a request under the site's secret; ``start`` is the hash of the received tensors.

    The study's fingerprint is left out: it says where the scans lie, and a simulation draws as its deployment does.
    """
    asked = "\n".join([task.model_dump_json(), header.method, header.base, start])
    return hmac.new(site_secret(config), asked.encode(), hashlib.sha256).hexdigest()
