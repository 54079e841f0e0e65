"""How far the server is in a masked round, on disk: what it has told the sites, and must not tell in another way.

A site answers one list, one set of sharers and one set of survivors. So each is written down before the first site is
told, and a server that starts anew goes on from there. Nothing here is secret: signed public keys, sealed shares, and
the sum of masked vectors.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sahfl.atomic import write_atomic
from sahfl.errors import MaskingFailed, PayloadError
from sahfl.events import Warned, emit
from sahfl.federation.masked_terms import Terms
from sahfl.masking.collector import Collector
from sahfl.masking.context import Context
from sahfl.masking.encoding import pack, unpack
from sahfl.masking.masks import Numbers
from sahfl.masking.party import Shares
from sahfl.masking.ring import DTYPES
from sahfl.masking.site_list import Advert, SignedAdvert, Verify
from sahfl.regular_files import LIST_BYTES, TENSORS_BYTES, read_bytes
from sahfl.run.storing import storing

LABEL = b"sahfl masked progress 2"


@dataclass(frozen=True)
class Answered:
    """What the server notes of a site whose masked vector came."""

    n_volumes: int
    seconds: float
    smallest_group: int = 1
    """Threshold of the site's policy for the total of an evaluation, and so is the next one."""
    smallest_bootstrap: int = 1


@dataclass(frozen=True)
class Progress:
    """One attempt at a masked round. A step that is closed never changes."""

    round: int
    terms: Terms
    listed: tuple[SignedAdvert, ...] = ()
    """Step 1: the list of sites."""
    shares: Mapping[str, Shares] = field(default_factory=dict)
    """Step 2: who shared, with the sealed shares."""
    answered: Mapping[str, Answered] = field(default_factory=dict)
    """Step 3: the survivors."""
    total: Numbers = field(default_factory=lambda: np.zeros(0, DTYPES[32]))
    """Step 3: the sum of their vectors."""
    bits: int = 32
    """Of the ring of the vectors."""

    def next_attempt(self) -> Progress:
        """A new attempt, with keys of its own."""
        return Progress(self.round, replace(self.terms, attempt=self.terms.attempt + 1), bits=self.bits)

    def collector(self, context: Context, verify: Verify, *, length: int, threshold: int | None) -> Collector:
        """The server's side of the round, with all closed steps.

        Raises:
            MaskingFailed: what is on disk does not fit the round.
        """
        collector = Collector(context, verify, length=length, bits=self.bits, threshold=threshold)
        try:
            for signed in self.listed:
                collector.advertised(signed)
            if self.listed:
                collector.list_sites()
            for site, shares in self.shares.items():
                collector.shared(site, shares)
            if self.shares:
                collector.deliver()
            for index, site in enumerate(self.answered):  # the sum stands for the first vector, and zeros for the rest
                collector.masked(site, self.total if index == 0 else np.zeros_like(self.total))
            if self.answered:
                collector.survivors()
        except PayloadError as error:
            raise MaskingFailed(f"{context}: the file of this round does not fit it ({error})") from error
        return collector


def read_sites_of_fold(run: Path, fold: int) -> tuple[str, ...] | None:
    """The sites in all masked sums over the patients of a held-out fold; None before the first one.

    Two such sums over other sites have the results of the sites in one of them alone as their difference, if the
    networks are the same or almost the same. So all have the same sites, and each site accepts no other ones.

    Raises:
        MaskingFailed: the file of the first sum is damaged.
    """
    path = path_of_fold(run, fold)
    try:
        sites = json.loads(read_bytes(path, most=LIST_BYTES))
        if not isinstance(sites, list) or not all(isinstance(site, str) for site in sites):
            raise ValueError
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        text = "is damaged; it has the sites of all masked evaluations of this fold, as a list of names in JSON"
        raise MaskingFailed(f"{path}: {text}. Restore it, or write it anew from results.json") from error
    return tuple(sites)


def write_sites_of_fold(run: Path, fold: int, sites: Iterable[str]) -> None:
    """Note the sites of the first masked sum over a held-out fold, before a site is told; StorageError: as above."""
    path = path_of_fold(run, fold)
    with storing(path):
        write_atomic(path, json.dumps(sorted(sites)) + "\n")


def path_of_fold(run: Path, fold: int) -> Path:
    """The file with the sites in all masked sums over a held-out fold, in the folder of a run."""
    return run / "state" / f"masked-fold-{fold}.json"


def file_of(run: Path, cell: str, sum_: str = "round") -> Path:
    """The file of a cell's masked round, or of another of its masked sums, in the folder of a run."""
    return run / "state" / cell / f"masked.{sum_}"


def read_progress(path: Path, terms: Terms, round_: int, *, bits: int = 32) -> Progress:
    """How far a round is; its beginning if the file is of another round, of another start, missing or damaged.

    From another start it is a further attempt, because the sites gave their keys for the earlier one.
    """
    try:
        found = _from_bytes(read_bytes(path, most=TENSORS_BYTES))
    except FileNotFoundError:
        return Progress(round_, terms, bits=bits)
    except (OSError, PayloadError, ValueError, KeyError, TypeError):
        emit(Warned(f"{path}: is damaged; the masked round begins anew, which sites that went on refuse once or more"))
        return Progress(round_, terms, bits=bits)
    if (found.round, found.bits) != (round_, bits):
        return Progress(round_, terms, bits=bits)
    if found.terms.start != terms.start:
        return Progress(round_, replace(terms, attempt=found.terms.attempt + 1), bits=bits)
    if found.listed:
        return found
    return Progress(round_, replace(terms, attempt=found.terms.attempt), bits=bits)


def write_progress(path: Path, progress: Progress) -> None:
    """Write how far a round is, before a site is told.

    Raises:
        StorageError: the disk is full.
    """
    with storing(path):
        write_atomic(path, _to_bytes(progress))


def _to_bytes(progress: Progress) -> bytes:
    head = {
        "round": progress.round,
        "attempt": progress.terms.attempt,
        "volumes": dict(progress.terms.volumes),
        "start": progress.terms.start,
        "bits": progress.bits,
        "answered": {site: asdict(one) for site, one in progress.answered.items()},
    }
    listed = (
        pack(one.advert.site.encode(), one.advert.mask_key, one.advert.share_key, one.signature)
        for one in progress.listed
    )
    shares = (
        pack(site.encode(), one.commitment, *(part for pair in one.sealed.items() for part in _pair(pair)))
        for site, one in progress.shares.items()
    )
    return pack(LABEL, json.dumps(head).encode(), pack(*listed), pack(*shares), progress.total.tobytes())


def _pair(pair: tuple[str, bytes]) -> Iterator[bytes]:
    yield pair[0].encode()
    yield pair[1]


def _from_bytes(data: bytes) -> Progress:
    label, head, listed, shares, total = unpack(data)
    if label != LABEL:
        raise PayloadError("is of another version")
    known: dict[str, Any] = json.loads(head)
    terms = Terms(known["attempt"], known["volumes"], known["start"])
    answered = {site: Answered(**one) for site, one in known["answered"].items()}
    adverts = tuple(_advert(one) for one in unpack(listed))
    shared = dict(_shares(one) for one in unpack(shares))
    bits = int(known["bits"])
    return Progress(known["round"], terms, adverts, shared, answered, np.frombuffer(total, DTYPES[bits]), bits)


def _advert(data: bytes) -> SignedAdvert:
    site, mask_key, share_key, signature = unpack(data)
    return SignedAdvert(Advert(site.decode(), mask_key, share_key), signature)


def _shares(data: bytes) -> tuple[str, Shares]:
    site, commitment, *rest = unpack(data)
    sealed = {name.decode(): text for name, text in zip(rest[::2], rest[1::2], strict=True)}
    return site.decode(), Shares(commitment, sealed)
