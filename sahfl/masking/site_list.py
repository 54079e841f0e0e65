"""The list of sites of a round: their ephemeral public keys, each signed by its site."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

from sahfl.errors import MaskingRefused
from sahfl.masking.context import Context
from sahfl.masking.encoding import digest_of_names, pack
from sahfl.masking.graph import Graph, Terms, terms_of
from sahfl.masking.keys import KEY_BYTES

Verify = Callable[[str, bytes, bytes], bool]
"""Whether the site of this name signed this document with the key of its certificate: name, document, signature."""
MOST_NAME_BYTES = 200


@dataclass(frozen=True)
class Advert:
    """A site's public keys for one round, made anew for it."""

    site: str
    mask_key: bytes
    """X25519, 32 bytes; from it come the masks."""
    share_key: bytes
    """X25519, 32 bytes; shares are sealed for it."""

    def fields(self) -> bytes:
        """Name and keys as bytes."""
        return pack(self.site.encode(), self.mask_key, self.share_key)

    def document(self, context: Context) -> bytes:
        """What the site signs; its signature is valid in this round only."""
        return pack(b"advert", context.encode(), self.fields())


@dataclass(frozen=True)
class SignedAdvert:
    """A site's keys with its signature of their document."""

    advert: Advert
    signature: bytes


@dataclass(frozen=True)
class SiteList:
    """The sites of a round, in the order of their names."""

    context: Context
    adverts: tuple[Advert, ...]
    terms: Terms

    @classmethod
    def of(cls, context: Context, adverts: Iterable[Advert], threshold: int | None = None) -> SiteList:
        """Check a list, and compute its terms.

        Raises:
            MaskingRefused: names are not in order, occur twice or are too long, a key has not 32 bytes or occurs twice,
                there are fewer than three sites, or the threshold does not fit them.
        """
        listed = tuple(adverts)
        names = [advert.site for advert in listed]
        if names != sorted(set(names)):
            raise MaskingRefused(f"{context}: the list of sites is not in order, or a site occurs twice")
        if long := [name for name in names if not 0 < len(name.encode()) <= MOST_NAME_BYTES]:
            raise MaskingRefused(f"{context}: a site's name has {len(long[0])} characters")
        keys = [key for advert in listed for key in (advert.mask_key, advert.share_key)]
        if any(len(key) != KEY_BYTES for key in keys) or len(set(keys)) != len(keys):
            raise MaskingRefused(f"{context}: a public key has not {KEY_BYTES} bytes, or occurs twice in the list")
        return cls(context, listed, terms_of(len(listed), threshold))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the sites."""
        return tuple(advert.site for advert in self.adverts)

    @cached_property
    def by_name(self) -> dict[str, Advert]:
        """The sites' keys, by name."""
        return {advert.site: advert for advert in self.adverts}

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of context, threshold, names and keys: every secret of the round depends on it."""
        threshold = self.terms.threshold.to_bytes(4, "big")
        fields = (advert.fields() for advert in self.adverts)
        return sha256(pack(b"list", self.context.encode(), threshold, *fields)).digest()

    @cached_property
    def graph(self) -> Graph:
        """Who holds whose shares."""
        return Graph(self.names, self.terms, sha256(b"graph" + self.digest).digest())

    def confirmation(self, sharers: Collection[str], survivors: Collection[str]) -> bytes:
        """What a survivor signs before it reveals anything: list, sharers and survivors."""
        return pack(b"confirm", self.digest, digest_of_names(sharers), digest_of_names(survivors))
