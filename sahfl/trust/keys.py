"""Private keys as files: created once, readable only by their owner, and never overwritten."""

from __future__ import annotations

import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)

from sahfl.atomic import write_atomic
from sahfl.errors import TrustError, UnfitFile
from sahfl.regular_files import LIST_BYTES, OWNER_ONLY, check_writers, read_bytes

PrivateKey = ec.EllipticCurvePrivateKey | Ed25519PrivateKey
DAMAGED_KEY = (ValueError, TypeError, UnsupportedAlgorithm, NotImplementedError, InternalError)
"""What ``cryptography`` raises for a key that is damaged, or of a kind unknown to it."""
NodeKey = ec.EllipticCurvePrivateKey
"""A site's key for Flower: on a NIST curve, as Flower's node authentication requires."""


def new_node_key() -> NodeKey:
    """Create a new key for a site."""
    return ec.generate_private_key(ec.SECP384R1())


def read_file(path: Path) -> bytes:
    """Read a file of a kit, whose folder and which itself nobody but their owner may change.

    Raises:
        TrustError: it is missing or cannot be read, or others may change it.
    """
    try:
        check_writers(path.parent)
        check_writers(path)
        return read_bytes(path, most=LIST_BYTES)
    except UnfitFile as error:
        raise TrustError(str(error)) from error
    except OSError as error:
        raise TrustError(
            f"{path}: cannot be read ({error.strerror}); expected a whole kit as `sahfl provision` writes it"
        ) from error


def read_private(path: Path) -> bytes:
    """Read a key file that only its owner may read.

    Raises:
        TrustError: it is missing, or others may read or change it.
    """
    with suppress(OSError):  # read_file names what is missing
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & ~OWNER_ONLY:
            raise TrustError(f"{path}: has mode {mode:04o}, expected 0600: run `chmod 600 {path}`")
    return read_file(path)


def write_private(path: Path, content: bytes) -> None:
    """Write a key file that only its owner can read, from the first byte on.

    Raises:
        TrustError: the file exists; a private key is never overwritten.
    """
    if path.exists():
        raise TrustError(f"{path}: exists already, and a private key is never written over; move it away first")
    write_atomic(path, content)


def key_pem(key: PrivateKey) -> bytes:
    """Encode a private key as PKCS8 PEM."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def node_key_text(key: NodeKey) -> bytes:
    """Encode a site's private key in OpenSSH format."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def node_key_line(key: NodeKey) -> str:
    """Encode a site's public key as a line in OpenSSH format."""
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def load_ec_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read the private key of a certificate.

    Raises:
        TrustError: it is missing, readable by others, or not an EC key in PEM.
    """
    return _ec_key(path, load_pem_private_key)


def load_node_key(path: Path) -> NodeKey:
    """Read a site's private key.

    Raises:
        TrustError: it is missing, readable by others, or not an EC key in OpenSSH format.
    """
    return _ec_key(path, load_ssh_private_key)


def _ec_key(path: Path, read: Callable[[bytes, None], object]) -> ec.EllipticCurvePrivateKey:
    key = _read_key(path, read)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TrustError(f"{path}: is damaged, or not an EC private key without a password; put the kit's file back")
    return key


def load_ed25519_key(path: Path) -> Ed25519PrivateKey:
    """Read a signing key.

    Raises:
        TrustError: it is missing, readable by others, or not an Ed25519 key in PEM.
    """
    key = _read_key(path, load_pem_private_key)
    if not isinstance(key, Ed25519PrivateKey):
        raise TrustError(f"{path}: is damaged, or not an Ed25519 private key without a password; put the file back")
    return key


def _read_key(path: Path, read: Callable[[bytes, None], object]) -> object:
    """The key in a file, or None; the error of ``read`` could quote the key and must not be shown."""
    content = read_private(path)
    try:
        return read(content, None)
    except DAMAGED_KEY:
        return None


def public_pem(line: str, *, where: str) -> bytes:
    """Convert a site's public key from an OpenSSH line to the PEM form that Flower compares.

    Raises:
        TrustError: the line is not a public key on a NIST curve.
    """
    try:
        key = load_ssh_public_key(line.encode())
    except DAMAGED_KEY:
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TrustError(f"{where}: node_key is not an EC public key in OpenSSH's form")
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
