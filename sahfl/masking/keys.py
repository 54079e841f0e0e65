"""From two sites' ephemeral keys to a secret that only these two know, for one purpose in one round.

X25519 (RFC 7748), HKDF with SHA-256 (RFC 5869) and ChaCha20-Poly1305 (RFC 8439), all by ``cryptography``. Bonawitz et
al. 2017, section 3.2 to 3.4, ask for these three. A site has two pairs of keys: one for masks, whose private key is
shared, so that others can remove its masks if it drops out; one for the encryption of shares, which nobody else gets.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from sahfl.errors import MaskingRefused
from sahfl.masking.encoding import pack

KEY_BYTES = 32
"""Bytes of a public key, a private key and a seed."""
TAG_BYTES = 16
"""Bytes by which a sealed text is longer than the text."""
NO_NONCE = bytes(12)
"""A key of ``share_key`` seals a single text, so its nonce may be constant."""


def derive(key: bytes, *, info: bytes, length: int = KEY_BYTES, salt: bytes = b"") -> bytes:
    """HKDF-SHA-256: ``length`` bytes for the purpose that ``info`` names."""
    return HKDF(hashes.SHA256(), length, salt or None, info).derive(key)


def public_key(private: bytes) -> bytes:
    """The public key, 32 bytes, of a private key of 32 bytes."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


class Pair:
    """A site's pair of keys; no repr shows the private one."""

    def __init__(self, private: bytes) -> None:
        self.private = private
        self._key = X25519PrivateKey.from_private_bytes(private)
        self.public = self._key.public_key().public_bytes_raw()

    def agree(self, theirs: bytes, *, site: str) -> bytes:
        """The secret, 32 bytes, that this pair has with another site's public key.

        Raises:
            MaskingRefused: the key is one of the few with which every secret is zero; ``site`` is named.
        """
        try:
            return self._key.exchange(X25519PublicKey.from_public_bytes(theirs))
        except ValueError as error:  # RFC 7748, section 6.1: a point of low order, or not 32 bytes
            raise MaskingRefused(f"site {site!r}: its public key gives everybody the same secret") from error


def mask_seed(agreed: bytes, *, listed: bytes, sharers: bytes, sites: tuple[str, str]) -> bytes:
    """The seed of the mask that two sites have in common.

    Args:
        agreed: what their mask keys agree on.
        listed: digest of the list of sites, which the context is a part of.
        sharers: digest of the names of those who shared. Sites that were told other names have other masks, which do
            not cancel: a sum over them stays closed.
        sites: the two names, in any order.
    """
    names = (site.encode() for site in sorted(sites))
    return derive(agreed, info=pack(b"mask", listed, sharers, *names))


def share_key(agreed: bytes, *, listed: bytes, sender: str, receiver: str) -> bytes:
    """The key under which one site seals its shares for another; each direction has its own."""
    return derive(agreed, info=pack(b"shares", listed, sender.encode(), receiver.encode()))


def seal(key: bytes, text: bytes, *, associated: bytes, nonce: bytes = NO_NONCE) -> bytes:
    """Encrypt and authenticate a text; ``associated`` is authenticated only. The result is 16 bytes longer."""
    return ChaCha20Poly1305(key).encrypt(nonce, text, associated)


def unseal(key: bytes, sealed: bytes, *, associated: bytes, site: str, nonce: bytes = NO_NONCE) -> bytes:
    """Decrypt what ``seal`` encrypted.

    Raises:
        MaskingRefused: it was changed, or sealed by another site, for another site, list or round.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(nonce, sealed, associated)
    except InvalidTag as error:
        raise MaskingRefused(f"shares of {site!r}: were not sealed by it for this site, list and round") from error
