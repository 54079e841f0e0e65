"""What only one site knows in a round, all derived from one secret of 32 bytes.

So a site that lost its process, not its notes, gives the same bytes again, and a simulation is reproducible. What
follows from this:

- Who learns the secret opens what the site sent in its rounds. Take one for each round from ``secrets.token_bytes`` and
  delete it with the notes when the round is over; a simulation derives it from its seed.
- The same secret in the same context must never meet two lists: the mask key does not depend on the list, so the shares
  of one list would open the vector of the other. Only the notes prevent it. A site whose notes are lost or were put
  back leaves the round; it does not begin it again with the same secret.
"""

from __future__ import annotations

import hmac
from functools import cached_property
from hashlib import sha256

from sahfl.errors import MaskingRefused
from sahfl.masking.context import Context
from sahfl.masking.encoding import pack
from sahfl.masking.keys import KEY_BYTES, Pair, derive
from sahfl.masking.masks import chacha20
from sahfl.masking.sharing import Random


class OwnSecrets:
    """A site's private keys and seeds of one round; no repr shows them."""

    def __init__(self, secret: bytes, context: Context) -> None:
        if len(secret) != KEY_BYTES:
            raise MaskingRefused(f"{context}: got a secret of {len(secret)} bytes, expected {KEY_BYTES}")
        self._root = derive(secret, info=pack(b"root", context.encode()))

    @cached_property
    def mask_pair(self) -> Pair:
        """The keys from which the masks with other sites come; shares of the private one go to the neighbours."""
        return Pair(self._derived(b"mask key"))

    @cached_property
    def share_pair(self) -> Pair:
        """The keys for which shares are sealed; the private one stays here."""
        return Pair(self._derived(b"share key"))

    def self_seed(self, listed: bytes) -> bytes:
        """The seed of the self mask, 32 bytes, under the list of this digest."""
        return self._derived(b"self seed", listed)

    def coefficients(self, listed: bytes, kind: bytes) -> Random:
        """The random bytes of the shares of one kind."""
        return chacha20(self._derived(b"coefficients", kind, listed))

    def tag(self, *fields: bytes) -> bytes:
        """HMAC-SHA-256 of fields, to recognise them again."""
        return hmac.digest(self._derived(b"tag"), pack(*fields), sha256)

    def _derived(self, *labels: bytes) -> bytes:
        return derive(self._root, info=pack(*labels))


def commitment(seed: bytes, *, listed: bytes, site: str) -> bytes:
    """What the server keeps of a self mask's seed, to see whether shares give back the right one."""
    return sha256(pack(b"commitment", listed, site.encode(), seed)).digest()
