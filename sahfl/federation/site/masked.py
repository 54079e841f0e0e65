"""A site in one masked sum, a round of a training or an evaluation: its notes on disk, its keys, what it masks once.

The folder ``masked`` of a site has a file for each training, with the notes of its newest round (``sahfl.masking``),
and one for each evaluation, so that a site that starts anew goes on where it was. Before an answer leaves, its notes
are on the disk. Older rounds, and older attempts at a round, are refused. The keys of a round come from the site's
secret and from random bytes in that file: who loses the file makes other keys and is out of the round, which is safe.

What was masked once is in two lists beside them (``masked_once``).

A simulated site derives all from the seed, and begins any round anew.
"""

from __future__ import annotations

import hmac
import logging
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np
from flwr.app import RecordDict

from sahfl.adapters import AdapterState
from sahfl.atomic import write_atomic, writing
from sahfl.config import SiteConfig
from sahfl.errors import MaskingRefused, PayloadError, RosterNotAccepted, SiteStateLost, StorageError, TrustError
from sahfl.federation.masked_messages import MOST_SIGNATURE, read_delivery
from sahfl.federation.masked_signatures import key_by_site, signature, stand_in
from sahfl.federation.masked_terms import MOST_LOSS, Terms, purpose_of, read_terms
from sahfl.federation.site.answered import MASKED, how_to_release
from sahfl.federation.site.known_roster import not_in_force, require_roster
from sahfl.federation.site.masked_once import note_drawn
from sahfl.federation.site.secret import batch_key, site_secret
from sahfl.federation.tensors import hash_of_tensors
from sahfl.log_lines import LogLine
from sahfl.masking.context import Context
from sahfl.masking.encoding import pack, unpack
from sahfl.masking.masks import Numbers
from sahfl.masking.notes import MOST_BYTES
from sahfl.masking.party import Party
from sahfl.payload import Header
from sahfl.process import locked
from sahfl.regular_files import read_bytes
from sahfl.task import Task
from sahfl.trust.roster import Roster

log = logging.getLogger(__name__)
LOCK = "masked.lock"
LABEL = b"sahfl masked round 1"
NONCE_BYTES = 32


@dataclass
class _Kept:
    """What the file of a training has."""

    attempt: int
    context: bytes
    nonce: bytes
    signatures: dict[bytes, bytes]
    """By the hash of what was signed, so that the same question gets the same bytes."""
    party: bytes = b""

    def to_bytes(self) -> bytes:
        """The file."""
        signed = pack(*(part for pair in sorted(self.signatures.items()) for part in pair))
        return pack(LABEL, self.attempt.to_bytes(4, "big"), self.context, self.nonce, signed, self.party)

    @classmethod
    def from_bytes(cls, data: bytes) -> _Kept:
        """Read a file; PayloadError if it is damaged."""
        fields = unpack(data)
        if len(fields) != 6 or fields[0] != LABEL or len(fields[3]) != NONCE_BYTES:
            raise PayloadError("it is damaged, or of another version")
        signed = unpack(fields[4])
        signatures = dict(zip(signed[::2], signed[1::2], strict=True))
        return cls(int.from_bytes(fields[1], "big"), fields[2], fields[3], signatures, fields[5])


class MaskedRound:
    """This site's part in the masked round that a request belongs to."""

    def __init__(self, config: SiteConfig, task: Task, header: Header, content: RecordDict) -> None:
        """Read the terms of the round.

        Raises:
            PayloadError: the task asks for no masks, or the terms are missing or of a wrong form.
        """
        if task.masking is None:
            raise PayloadError("task: asks for no masks, and the request is a step of a masked round")
        self._config, self._task, self._header, self._masking = config, task, header, task.masking
        self.terms: Terms = read_terms(content)
        self.context: Context = self.terms.context(task, header)
        sum_ = "" if task.evaluation is None else f"-{purpose_of(task)}"
        self._path = _file(config.folder, header.training + sum_)

    @contextmanager
    def step(self, *, first: bool = False) -> Iterator[Party]:
        """One step of the round: read the notes, and write them when the block is done, before its answer leaves.

        Args:
            first: whether this is step 1, with which a round begins.

        Raises:
            MaskingRefused: an older round or attempt, or one that differs from that begun here; or step 1 is missing.
            SiteStateLost: the notes are damaged, or are of another secret.
            StorageError: they cannot be read or written.
        """
        with writing(self._path), locked(self._path.parent / LOCK):
            self._kept = self._open(first=first)
            party = self._party()
            yield party
            self._kept.party = party.to_bytes()
            data = self._kept.to_bytes()
            if not self._path.exists() or _read(self._path) != data:
                write_atomic(self._path, data)

    def sign(self, document: bytes) -> bytes:
        """This site's signature; the same document gets the same bytes within a round. Only within ``step``.

        Raises:
            TrustError: the site has no kit, or its key cannot be used.
        """
        name = sha256(document).digest()
        if name not in self._kept.signatures:
            self._kept.signatures[name] = self._signature(document)
        return self._kept.signatures[name]

    def verify(self, site: str, document: bytes, signed: bytes) -> bool:
        """Whether a site signed a document, with the key of the roster in force.

        Raises:
            RosterNotAccepted: the roster does not have the site with this key, or this site has no roster.
        """
        if self._config.simulated:
            return hmac.compare_digest(signed, stand_in(self._task.seed, site, document))
        if self._config.kit is None or len(signed) > MOST_SIGNATURE:
            return False
        key = self._roster.note.sites.get(site)
        if key is None:
            raise RosterNotAccepted(f"{self.context}: nothing was sent. {not_in_force(self._config, site)}")
        found = key_by_site(self._config.kit, site, document, signed)
        if found not in (None, key):
            raise RosterNotAccepted(f"{self.context}: nothing was sent. {not_in_force(self._config, site, found)}")
        return found == key

    @cached_property
    def _roster(self) -> Roster:
        return require_roster(self._config)

    def require_own(self, n: int, what: str) -> None:
        """Refuse terms in which this site's volumes, or held-out patients, are not as many as it has.

        Every site checks its own, so that the server chooses none: with one site's weight made large against all
        others, or with patients at one site alone, a sum would be that site's.

        Raises:
            MaskingRefused: the terms have another number, or do not have this site.
        """
        found = self.terms.volumes.get(self._config.name)
        if found != n:
            raise MaskingRefused(
                f"{self.context}: the terms give this site {found} {what}, expected {n}; nothing is signed"
            )

    def require_patients(self, sites: Iterable[str]) -> None:
        """Refuse a sum in which too few of its sites have patients.

        Raises:
            MaskingRefused: says how many have.
        """
        if reason := self.terms.lack_of_patients(sites, self._config.policy.least_sites):
            raise MaskingRefused(f"{self.context}: {reason} (policy.least_sites); nothing is signed")

    def require_signers(self, party: Party, survivors: Collection[str], signers: Iterable[str]) -> None:
        """Refuse to open a sum that too few of the sites with patients in it confirmed; this site did.

        Raises:
            MaskingRefused: says how many did.
        """
        confirmed = {*signers, self._config.name}
        if reason := self.terms.lack_of_signers(survivors, confirmed, party.threshold):
            raise MaskingRefused(f"{self.context}: {reason}; nothing is revealed")

    def require_begun(self, start: str) -> None:
        """Refuse to train in a round that was not begun here, or from another start than all sites were told.

        Raises:
            MaskingRefused: the hash of the received tensors differs, or as ``step``.
        """
        with self.step():
            pass
        if start != self.terms.start:
            raise MaskingRefused(f"{self.context}: got another start than all sites were told; nothing was trained")

    def encode(self, change: AdapterState, loss: float, n_volumes: int) -> Numbers:
        """The vector (n + 1,) uint32 of a change (any shapes), no longer than the clip, and the loss; not yet masked.

        Raises:
            PayloadError: a number is not finite, or the site trained on more volumes than it registered.
        """
        form, of_loss = self.terms.forms(self._masking.clip)
        flat = np.concatenate([np.ravel(value).astype(np.float64) for value in change.values()] or [np.zeros(0)])
        norm, clip = float(np.linalg.norm(flat)), self._masking.clip
        if norm > clip:
            flat = np.clip(flat * (clip / norm), -clip, clip)
        log.info(
            LogLine("clipped", **self._header.place(), norm=float(f"{norm:.6g}"), clip=clip, shortened=norm > clip)
        )
        weight = n_volumes / self.terms.total
        last = of_loss.encode(np.clip(np.array([loss]), -MOST_LOSS, MOST_LOSS), weight=weight)
        return np.concatenate([form.encode(flat, weight=weight), last])

    def mask(self, content: RecordDict, vector: Numbers) -> Numbers:
        """Step 3: put the masks on a vector; what it was computed from is noted, so that it is in no second sum.

        Raises:
            MaskingRefused: as ``masked_once.note_drawn`` and ``Party.mask``.
            PayloadError: the shares of the other sites are of a wrong form.
        """
        sharers, received = read_delivery(content)
        with self.step() as party:
            masked = party.mask(vector, received, sharers)  # first, as shares that a site spoilt mask nothing
            key = batch_key(self._config, self._task, self._header, hash_of_tensors(content))
            what = "batches were" if self._task.evaluation is None else "evaluation was"
            note_drawn(self._config, self.context, self._header, key, mask_key=party.advertise().mask_key, what=what)
            return masked

    def _open(self, *, first: bool) -> _Kept:
        kept, context = self._read_kept(), self.context.encode()
        if kept is not None and kept.context == context:
            return kept
        if kept is not None and not self._config.simulated and self._is_older(kept):
            text = "this site has begun the same or a later round or attempt of this training in another way"
            lost = "The sum is lost; nothing releases an evaluation, because it would be masked only once all the same"
            more = how_to_release(self._header) if self._task.evaluation is None else lost
            raise MaskingRefused(f"{self.context}: {text}. {more}")
        if not first:
            raise MaskingRefused(f"{self.context}: this site gave no keys for this round")
        nonce = bytes(NONCE_BYTES) if self._config.simulated else os.urandom(NONCE_BYTES)
        return _Kept(self.terms.attempt, context, nonce, {})

    def _is_older(self, kept: _Kept) -> bool:
        return (self.context.round, self.terms.attempt) <= (Context.decode(kept.context).round, kept.attempt)

    def _read_kept(self) -> _Kept | None:
        try:
            return _Kept.from_bytes(_read(self._path))
        except FileNotFoundError:
            return None
        except (PayloadError, ValueError) as error:
            remedy = "delete it: this site is then out of the round that goes on, and takes part in the next one"
            raise SiteStateLost(f"{self._path}: {error}; {remedy}") from error

    def _party(self) -> Party:
        text = b"sahfl masking" + self._kept.nonce + self._kept.context
        secret = hmac.digest(site_secret(self._config), text, "sha256")
        if self._kept.party:
            return Party.from_bytes(self._kept.party, secret=secret)
        return Party(self.context, self._config.name, secret=secret, threshold=self._masking.threshold)

    def _signature(self, document: bytes) -> bytes:
        if self._config.simulated:
            return stand_in(self._task.seed, self._config.name, document)
        if self._config.kit is None:
            text = "has no kit, so it cannot sign a step of a masked round; name the kit's folder under 'kit'"
            raise TrustError(f"site {self._config.name}: {text}")
        return signature(self._config.kit, document)


def forget_masked(folder: Path, training: str) -> None:
    """Delete the notes of a training's masked round, which is over or was released; it cannot be gone on with."""
    _file(folder, training).unlink(missing_ok=True)


def _file(folder: Path, training: str) -> Path:
    return folder / MASKED / f"{training}.notes"


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path, most=2 * MOST_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror})") from error
