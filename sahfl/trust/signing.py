"""Signatures on what the server asks of the sites: Ed25519, by one key of the consortium."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sahfl.errors import TrustError
from sahfl.trust.keys import load_ed25519_key


@dataclass(frozen=True)
class Signer:
    """Who signs the requests of a consortium's studies; the private key shows in no repr."""

    public: str
    """The public key, 64 hex digits; every kit names it."""
    _key: Ed25519PrivateKey = field(repr=False, compare=False)

    @classmethod
    def load(cls, path: Path) -> Signer:
        """Read the key.

        Raises:
            TrustError: it is missing, open to others than its owner, or no Ed25519 key.
        """
        return cls.of(load_ed25519_key(path))

    @classmethod
    def of(cls, key: Ed25519PrivateKey) -> Signer:
        """Sign with this key."""
        return cls(key.public_key().public_bytes_raw().hex(), key)

    def sign(self, document: bytes) -> bytes:
        """The signature of a document, 64 bytes."""
        return self._key.sign(document)


def verify(public: str, document: bytes, signature: bytes) -> None:
    """Check that the holder of a key signed exactly these bytes.

    Args:
        public: the public key, 64 hex digits.
        document: what was signed.
        signature: what ``Signer.sign`` gave for it; any other bytes are refused, whatever their length.

    Raises:
        TrustError: the key is no key, or the signature is not its signature of the document.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
    except ValueError as error:
        raise TrustError(f"signer: got {public[:80]!r}, expected 64 hex digits of an Ed25519 public key") from error
    try:
        key.verify(signature, document)
    except InvalidSignature:
        raise TrustError(f"signature: is not the signer's ({public[:16]}...) of these {len(document)} bytes") from None
