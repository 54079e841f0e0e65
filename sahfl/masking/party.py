"""A site's side of one masked round: five steps, each of which it takes in one way only.

A step that is asked for again in the same way gets the same bytes; in another way it is refused, for ever. So a caller
writes ``to_bytes`` to disk before the answer of a step leaves, and a site that starts again goes on from there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from sahfl.errors import MaskingRefused, PayloadError
from sahfl.masking.context import Context
from sahfl.masking.encoding import digest_of_names, pack
from sahfl.masking.keys import TAG_BYTES, mask_seed, seal, share_key, unseal
from sahfl.masking.masks import Numbers, add_mask, subtracts
from sahfl.masking.notes import Notes, read_notes, write_notes
from sahfl.masking.own_secrets import OwnSecrets, commitment
from sahfl.masking.ring import DTYPES
from sahfl.masking.sharing import SHARE_BYTES, read_share, split_bytes
from sahfl.masking.site_list import Advert, SignedAdvert, SiteList, Verify

SEALED_BYTES = 2 * SHARE_BYTES + TAG_BYTES
"""Bytes of the two shares that a site sends a neighbour."""


@dataclass(frozen=True)
class Shares:
    """What a site sends to the server in the second step."""

    commitment: bytes
    """Of the self mask's seed, 32 bytes, for the server."""
    sealed: dict[str, bytes]
    """For each neighbour, 82 bytes that only it can read."""


class Party:
    """One site in one masked round."""

    def __init__(self, context: Context, site: str, *, secret: bytes, threshold: int | None = None) -> None:
        """Take part in a round.

        Args:
            context: the round; everybody must have the same.
            site: this site's name.
            secret: 32 bytes for this round alone (see ``own_secrets``).
            threshold: the study's; None for ``graph.default_threshold`` of the sites in the list.
        """
        self._notes = Notes(context, site, threshold)
        self._own = OwnSecrets(secret, context)
        self._agreed: dict[bytes, bytes] = {}
        self._opened: dict[str, tuple[bytes, bytes]] = {}

    @classmethod
    def from_bytes(cls, data: bytes, *, secret: bytes) -> Party:
        """Go on where ``to_bytes`` was called.

        Raises:
            SiteStateLost: the notes are damaged, too large, of another version, or were written with another secret.
        """
        notes, own = read_notes(data, secret)
        party = cls(notes.context, notes.site, secret=secret, threshold=notes.threshold)
        party._notes, party._own = notes, own
        return party

    @property
    def threshold(self) -> int:
        """How many sites of the list that was answered must stay; MaskingRefused before ``share``."""
        return self._listed().terms.threshold

    def to_bytes(self) -> bytes:
        """The notes of this round; without the secret they tell nothing that the server does not know."""
        return write_notes(self._notes, self._own)

    def advertise(self) -> Advert:
        """Step 1: this site's public keys. The caller signs ``document(context)`` with its certificate's key."""
        return Advert(self._notes.site, self._own.mask_pair.public, self._own.share_pair.public)

    def share(self, signed: Iterable[SignedAdvert], verify: Verify) -> Shares:
        """Step 2: shares of this site's two seeds for its neighbours, under a list of sites.

        Raises:
            MaskingRefused: another list was answered before, a signature is not of its site for this round, this site
                is not in the list with its own keys, or the list is not as ``SiteList.of`` wants it.
        """
        notes, entries = self._notes, list(signed)
        listed = SiteList.of(notes.context, (entry.advert for entry in entries), notes.threshold)
        if listed.by_name.get(notes.site) != self.advertise():
            raise MaskingRefused(f"{notes.context}: the list does not have this site with its own keys")
        for entry in entries:
            if not verify(entry.advert.site, entry.advert.document(notes.context), entry.signature):
                raise MaskingRefused(f"{notes.context}: {entry.advert.site!r} did not sign these keys for this round")
        if notes.listed is not None and notes.listed.digest != listed.digest:
            raise MaskingRefused(f"{notes.context}: got another list of sites than was answered")
        sealed = self._sealed(listed)
        notes.listed = listed
        made = commitment(self._own.self_seed(listed.digest), listed=listed.digest, site=notes.site)
        return Shares(made, sealed)

    def mask(self, vector: Numbers, received: Mapping[str, bytes], sharers: Iterable[str]) -> Numbers:
        """Step 3: the vector with this site's masks.

        Args:
            vector: (n,) uint16, uint32 or uint64, as ``ring`` wrote it; it is not changed.
            received: the sealed shares of each neighbour that shared.
            sharers: the names of all sites that shared.

        Raises:
            MaskingRefused: it comes before ``share``; sharers, shares or vector differ from those that were answered;
                the sharers are too few, without this site, or not of the list; a share is missing or cannot be read.
        """
        listed, named = self._listed(), self._named(sharers, "sharers")
        self._same(self._notes.sharers, named, "other sharers")
        neighbours = [site for site in listed.graph.neighbours(self._notes.site) if site in named]
        if sorted(received) != sorted(neighbours):
            raise MaskingRefused(f"{self._notes.context}: got shares of {len(received)} neighbours, not of all sharers")
        if vector.ndim != 1 or vector.dtype.str not in DTYPES.values():
            raise MaskingRefused(
                f"{self._notes.context}: got a vector of {vector.dtype}, expected unsigned numbers (n,)"
            )
        tag = self._own.tag(b"vector", vector.dtype.str.encode(), vector.tobytes())
        self._same(self._notes.vector or None, tag, "another vector")
        self._same(self._notes.sealed or None, dict(received), "other shares")
        self._opened = {site: self._open(listed, site, received[site]) for site in neighbours}
        masked = self._masked(vector, listed, neighbours, named)
        self._notes.sharers, self._notes.sealed, self._notes.vector = named, dict(received), tag
        return masked

    def confirm(self, survivors: Iterable[str]) -> bytes:
        """Step 4: the document about sharers and survivors that the caller signs with its certificate's key.

        Raises:
            MaskingRefused: it comes before ``mask``; other survivors were confirmed; they are too few, without this
                site, or did not share.
        """
        sharers, named = self._sharers(), self._named(survivors, "survivors")
        if not named <= sharers:
            raise MaskingRefused(
                f"{self._notes.context}: {min(named - sharers)!r} did not share, and is said to survive"
            )
        self._same(self._notes.survivors, named, "other survivors")
        self._notes.survivors = named
        return self._listed().confirmation(sharers, named)

    def reveal(self, survivors: Iterable[str], confirmations: Mapping[str, bytes], verify: Verify) -> dict[str, bytes]:
        """Step 5: of each sharer of which this site holds shares, one share of 33 bytes.

        Of a survivor it is one of the self mask's seed, of the others one of the mask key.

        Args:
            survivors: those that this site confirmed.
            confirmations: signatures of survivors of the same document, by name; this site's own may be missing.
            verify: checks them.

        Raises:
            MaskingRefused: it comes before ``confirm``, or for other survivors; a signature is not of a survivor, or
                not of the same sharers and survivors; there are too few.
        """
        notes, listed, sharers = self._notes, self._listed(), self._sharers()
        named = frozenset(survivors)
        if notes.survivors is None or named != notes.survivors:
            raise MaskingRefused(f"{notes.context}: got other survivors than this site confirmed")
        document = listed.confirmation(sharers, named)
        for site, signature in confirmations.items():
            if site not in named or not verify(site, document, signature):
                raise MaskingRefused(f"{notes.context}: {site!r} did not confirm the same sharers and survivors")
        confirmed = {*confirmations, notes.site}
        if reason := listed.graph.shortage(confirmed, of=named):
            raise MaskingRefused(f"{notes.context}: too few confirmed the survivors: {reason}")
        return {site: self._share_of(listed, site, survived=site in named) for site in self._held(listed, sharers)}

    def _listed(self) -> SiteList:
        if self._notes.listed is None:
            raise MaskingRefused(f"{self._notes.context}: asked for a step before the list of sites was answered")
        return self._notes.listed

    def _sharers(self) -> frozenset[str]:
        if self._notes.sharers is None:
            raise MaskingRefused(f"{self._notes.context}: asked for a step before this site sent its vector")
        return self._notes.sharers

    def _named(self, sites: Iterable[str], what: str) -> frozenset[str]:
        """Names that a step is about: of the list, with this site, and enough."""
        listed, names = self._listed(), list(sites)
        named = frozenset(names)
        if len(named) != len(names) or not named <= listed.by_name.keys() or self._notes.site not in named:
            text = "are not of the list, occur twice, or are without this site"
            raise MaskingRefused(f"{self._notes.context}: the {what} {text}")
        if reason := listed.graph.shortage(named):
            raise MaskingRefused(f"{self._notes.context}: too few {what}: {reason}")
        return named

    def _same(self, before: object, now: object, what: str) -> None:
        if before is not None and before != now:
            raise MaskingRefused(f"{self._notes.context}: got {what} than this step was answered for")

    def _held(self, listed: SiteList, sharers: Collection[str]) -> list[str]:
        """The sharers of which this site holds shares, itself among them."""
        return [site for site in listed.graph.holders(self._notes.site) if site in sharers]

    def _own_shares(self, listed: SiteList) -> dict[str, tuple[bytes, bytes]]:
        """Shares of the self mask's seed and of the mask key, by holder."""
        holders, quorum = listed.graph.holders(self._notes.site), listed.terms.quorum
        secrets = {b"self seed": self._own.self_seed(listed.digest), b"mask key": self._own.mask_pair.private}
        selves, keys = (
            split_bytes(secret, len(holders), quorum, random=self._own.coefficients(listed.digest, kind))
            for kind, secret in secrets.items()
        )
        return dict(zip(holders, zip(selves, keys, strict=True), strict=True))

    def _agree(self, listed: SiteList, other: str) -> bytes:
        """What this site's and another one's keys for shares agree on."""
        theirs = listed.by_name[other].share_key
        if theirs not in self._agreed:
            self._agreed[theirs] = self._own.share_pair.agree(theirs, site=other)
        return self._agreed[theirs]

    def _sealed(self, listed: SiteList) -> dict[str, bytes]:
        site = self._notes.site
        shares, sealed = self._own_shares(listed), {}
        for other in listed.graph.neighbours(site):
            key = share_key(self._agree(listed, other), listed=listed.digest, sender=site, receiver=other)
            sealed[other] = seal(key, b"".join(shares[other]), associated=_associated(listed, site, other))
        return sealed

    def _open(self, listed: SiteList, sender: str, sealed: bytes) -> tuple[bytes, bytes]:
        """A neighbour's shares of its self mask's seed and of its mask key."""
        site = self._notes.site
        key = share_key(self._agree(listed, sender), listed=listed.digest, sender=sender, receiver=site)
        text = unseal(key, sealed, associated=_associated(listed, sender, site), site=sender)
        try:
            of_self, of_key = text[:SHARE_BYTES], text[SHARE_BYTES:]
            read_share(of_self)
            read_share(of_key)
        except PayloadError as error:
            raise MaskingRefused(f"shares of {sender!r}: are not two numbers of the field") from error
        return of_self, of_key

    def _share_of(self, listed: SiteList, site: str, *, survived: bool) -> bytes:
        if site == self._notes.site:
            return self._own_shares(listed)[site][0]
        if site not in self._opened:  # after a restart
            self._opened[site] = self._open(listed, site, self._notes.sealed[site])
        return self._opened[site][0 if survived else 1]

    def _masked(
        self, vector: Numbers, listed: SiteList, neighbours: Collection[str], sharers: frozenset[str]
    ) -> Numbers:
        site, digest = self._notes.site, digest_of_names(sharers)
        masked = np.array(vector)
        add_mask(masked, self._own.self_seed(listed.digest))
        for other in neighbours:
            agreed = self._own.mask_pair.agree(listed.by_name[other].mask_key, site=other)
            seed = mask_seed(agreed, listed=listed.digest, sharers=digest, sites=(site, other))
            add_mask(masked, seed, subtract=subtracts(site, other))
        return masked


def _associated(listed: SiteList, sender: str, receiver: str) -> bytes:
    return pack(listed.digest, sender.encode(), receiver.encode())
