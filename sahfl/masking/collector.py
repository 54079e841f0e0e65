"""The server's side of one masked round: what each site answered, and the sum.

It is given each answer as it comes, refuses what cannot be right, and closes each step; sites that did not answer by
then have dropped out. It keeps one running sum, not the vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from sahfl.errors import MaskingFailed, MaskingRefused, PayloadError
from sahfl.masking.context import Context
from sahfl.masking.encoding import digest_of_names
from sahfl.masking.keys import KEY_BYTES, Pair, mask_seed, public_key
from sahfl.masking.masks import Numbers, add_mask, subtracts
from sahfl.masking.own_secrets import commitment
from sahfl.masking.party import SEALED_BYTES, Shares
from sahfl.masking.reconstruction import reconstruct
from sahfl.masking.ring import DTYPES
from sahfl.masking.sharing import read_share
from sahfl.masking.site_list import Advert, SignedAdvert, SiteList, Verify


@dataclass(frozen=True)
class Total:
    """The sum of a round."""

    numbers: Numbers
    """(n,), for ``decode``."""
    sites: tuple[str, ...]
    """Whose vectors are in it, in the order of their names."""
    wrong: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Sites that revealed a wrong share, with the sites of which it was; the sum is right all the same. It is a hint,
    no proof: sites that lie together can choose shares beside which an honest one looks wrong."""


@dataclass(frozen=True)
class Delivery:
    """What one site is sent in the third step."""

    received: dict[str, bytes]
    """Sealed shares for it, by sender."""
    sharers: tuple[str, ...]


class Collector:
    """One masked round at the server."""

    def __init__(
        self, context: Context, verify: Verify, *, length: int, bits: int, threshold: int | None = None
    ) -> None:
        """Begin a round; ``length`` and ``bits`` are those of the vectors, ``threshold`` is the study's."""
        self.context = context
        self._verify, self._threshold = verify, threshold
        self._adverts: dict[str, SignedAdvert] = {}
        self._listed: SiteList | None = None
        self._shares: dict[str, Shares] = {}
        self._sharers: frozenset[str] = frozenset()
        self._sum = np.zeros(length, DTYPES[bits])
        self._masked: set[str] = set()
        self._survivors: frozenset[str] = frozenset()
        self._confirmations: dict[str, bytes] = {}
        self._revealed: dict[str, dict[str, int]] = {}

    def advertised(self, signed: SignedAdvert) -> None:
        """Take a site's keys.

        Raises:
            PayloadError: it answered before, keys have a wrong form, or the signature is not the site's for this round.
        """
        advert = signed.advert
        self._require(advert.site not in self._adverts and self._listed is None, advert.site, "came late or twice")
        self._require(_is_usable(advert), advert.site, "has unusable public keys")
        right = self._verify(advert.site, advert.document(self.context), signed.signature)
        self._require(right, advert.site, "did not sign these keys for this round")
        self._adverts[advert.site] = signed

    def list_sites(self) -> tuple[SignedAdvert, ...]:
        """Close step 1: the list that every site in it is sent.

        Raises:
            MaskingFailed: too few sites answered.
        """
        signed = tuple(self._adverts[site] for site in sorted(self._adverts))
        try:
            self._listed = SiteList.of(self.context, (entry.advert for entry in signed), self._threshold)
        except MaskingRefused as error:
            raise MaskingFailed(f"{self.context}: {error}") from error
        return signed

    def shared(self, site: str, shares: Shares) -> None:
        """Take a site's sealed shares.

        Raises:
            PayloadError: it is not of the list, answered before, or shares are missing, too many or of a wrong size.
        """
        listed = self._list()
        self._require(site in listed.by_name and site not in self._shares and not self._sharers, site, "was not asked")
        self._require(shares.sealed.keys() == set(listed.graph.neighbours(site)), site, "has shares for other sites")
        right = (
            all(len(text) == SEALED_BYTES for text in shares.sealed.values()) and len(shares.commitment) == KEY_BYTES
        )
        self._require(right, site, "has shares of a wrong size")
        self._shares[site] = shares

    def deliver(self) -> dict[str, Delivery]:
        """Close step 2: what each sharer is sent. Sites too few of whose neighbours shared are left out.

        Raises:
            MaskingFailed: too few sites answered.
        """
        graph = self._list().graph
        self._sharers = graph.core(self._shares)
        self._require_enough(self._sharers, "shared")
        names = tuple(sorted(self._sharers))
        return {
            site: Delivery(
                {other: self._shares[other].sealed[site] for other in graph.neighbours(site) if other in self._sharers},
                names,
            )
            for site in names
        }

    def masked(self, site: str, vector: Numbers) -> None:
        """Add a site's masked vector.

        Raises:
            PayloadError: it did not share, answered before, or sent another number of numbers, or of another ring.
        """
        asked = site in self._sharers and site not in self._masked and not self._survivors
        self._require(asked, site, "was not asked for a vector")
        right = (vector.dtype, vector.shape) == (self._sum.dtype, self._sum.shape)
        self._require(right, site, f"sent {vector.shape} {vector.dtype}, not {self._sum.shape} {self._sum.dtype}")
        np.add(self._sum, vector, out=self._sum)
        self._masked.add(site)

    def survivors(self) -> tuple[str, ...]:
        """Close step 3: whose vectors came.

        Raises:
            MaskingFailed: too few sites answered.
        """
        self._require_enough(self._masked, "sent their vector")
        self._survivors = frozenset(self._masked)
        return tuple(sorted(self._survivors))

    def confirmed(self, site: str, signature: bytes) -> None:
        """Take a site's signature of who shared and survived.

        Raises:
            PayloadError: it is no survivor, answered before, or the signature is not its own of these names.
        """
        self._require(site in self._survivors and site not in self._confirmations, site, "was not asked to confirm")
        document = self._list().confirmation(self._sharers, self._survivors)
        self._require(self._verify(site, document, signature), site, "did not sign who shared and survived")
        self._confirmations[site] = signature

    def confirmations(self) -> dict[str, bytes]:
        """Close step 4: the signatures that every survivor is sent.

        Raises:
            MaskingFailed: too few sites answered.
        """
        if reason := self._list().graph.shortage(self._confirmations, of=self._survivors):
            raise MaskingFailed(f"{self.context}: too few sites confirmed the survivors: {reason}")
        return dict(sorted(self._confirmations.items()))

    def revealed(self, site: str, shares: Mapping[str, bytes]) -> None:
        """Take the shares that a site revealed.

        Raises:
            PayloadError: it did not confirm, answered before, or shares are missing, too many or outside the field.
        """
        self._require(site in self._confirmations and site not in self._revealed, site, "was not asked to reveal")
        held = {other for other in self._list().graph.holders(site) if other in self._sharers}
        self._require(shares.keys() == held, site, "revealed shares of other sites")
        self._revealed[site] = {other: read_share(share) for other, share in shares.items()}

    def total(self) -> Total:
        """Close step 5: the sum of the survivors' vectors.

        Raises:
            MaskingFailed: too few sites answered, or so many shares are wrong that a seed is lost.
        """
        if reason := self._list().graph.shortage(self._revealed, of=self._survivors):
            raise MaskingFailed(f"{self.context}: too few sites revealed their shares: {reason}")
        numbers, wrong = self._sum.copy(), dict[str, list[str]]()
        for site in sorted(self._sharers):
            survived = site in self._survivors
            secret, liars = self._secret(site, survived=survived)
            for liar in liars:
                wrong.setdefault(liar, []).append(site)
            if survived:
                add_mask(numbers, secret, subtract=True)
            else:
                self._remove_masks(numbers, site, secret)
        return Total(numbers, tuple(sorted(self._survivors)), {site: tuple(of) for site, of in sorted(wrong.items())})

    def _secret(self, site: str, *, survived: bool) -> tuple[bytes, list[str]]:
        """A survivor's seed of the self mask, or the mask key of a site that dropped out."""
        listed = self._list()
        holders = listed.graph.holders(site)
        shares = {
            holder: (x, self._revealed[holder][site]) for x, holder in enumerate(holders, 1) if holder in self._revealed
        }

        def is_right(secret: bytes) -> bool:
            if survived:
                return commitment(secret, listed=listed.digest, site=site) == self._shares[site].commitment
            return public_key(secret) == listed.by_name[site].mask_key

        what = f"{self.context}: the {'self mask' if survived else 'mask key'} of {site!r}"
        return reconstruct(shares, listed.terms.quorum, is_right, what=what)

    def _remove_masks(self, numbers: Numbers, dropped: str, private: bytes) -> None:
        """Take the masks that survivors have with a site that dropped out from the sum."""
        listed, sharers, pair = self._list(), digest_of_names(self._sharers), Pair(private)
        for site in listed.graph.neighbours(dropped):
            if site in self._survivors:
                agreed = pair.agree(listed.by_name[site].mask_key, site=site)
                seed = mask_seed(agreed, listed=listed.digest, sharers=sharers, sites=(site, dropped))
                add_mask(numbers, seed, subtract=not subtracts(site, dropped))

    def _list(self) -> SiteList:
        if self._listed is None:
            raise PayloadError(f"{self.context}: an answer came before the list of sites was made")
        return self._listed

    def _require(self, holds: bool, site: str, problem: str) -> None:
        if not holds:
            raise PayloadError(f"{self.context}: site {site!r} {problem}")

    def _require_enough(self, sites: set[str] | frozenset[str], what: str) -> None:
        if reason := self._list().graph.shortage(sites):
            raise MaskingFailed(f"{self.context}: too few sites {what}: {reason}")


def _is_usable(advert: Advert) -> bool:
    """Whether both keys have 32 bytes, differ, and are not one of those with which every secret is zero."""
    keys = (advert.mask_key, advert.share_key)
    if any(len(key) != KEY_BYTES for key in keys) or keys[0] == keys[1]:
        return False
    try:
        for key in keys:
            Pair(bytes(KEY_BYTES)).agree(key, site=advert.site)
    except MaskingRefused:
        return False
    return True
