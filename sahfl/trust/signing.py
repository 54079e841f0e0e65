"""Signatures of the server's requests to the sites: Ed25519, with one key per consortium."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sahfl.errors import TrustError
from sahfl.trust.keys import load_ed25519_key


@dataclass(frozen=True)
class Signer:
    """Signs the requests of a consortium's studies; no repr shows its private key."""

    public: str
    """The public key, 64 hex digits; every kit names it."""
    _key: Ed25519PrivateKey = field(repr=False, compare=False)

    @classmethod
    def load(cls, path: Path) -> Signer:
        """Read the key.

        Raises:
            TrustError: it is missing, readable by others than its owner, or not an Ed25519 key.
        """
        return cls.of(load_ed25519_key(path))

    @classmethod
    def of(cls, key: Ed25519PrivateKey) -> Signer:
        """Make a signer from a key."""
        return cls(key.public_key().public_bytes_raw().hex(), key)

    def sign(self, document: bytes) -> bytes:
        """Sign a document; the signature has 64 bytes."""
        return self._key.sign(document)


def verify(public: str, document: bytes, signature: bytes) -> None:
    """Check that the holder of a key signed exactly these bytes; a signature of any other length is refused.

    Raises:
        TrustError: ``public`` is not a key in 64 hex digits, or the signature does not match the document.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
    except ValueError as error:
        raise TrustError(f"signer: got {public[:80]!r}, expected 64 hex digits of an Ed25519 public key") from error
    try:
        key.verify(signature, document)
    except InvalidSignature:
        raise TrustError(f"signature: is not the signer's ({public[:16]}...) of these {len(document)} bytes") from None
