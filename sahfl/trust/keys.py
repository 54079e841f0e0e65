"""Private keys as files: made once, readable by their owner alone, and never written over."""

from __future__ import annotations

import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
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
from sahfl.errors import TrustError

PrivateKey = ec.EllipticCurvePrivateKey | Ed25519PrivateKey
NodeKey = ec.EllipticCurvePrivateKey
"""A site's key towards Flower: a NIST curve, as Flower's node authentication wants it."""
PRIVATE = 0o600


def new_node_key() -> NodeKey:
    """A new key of a site."""
    return ec.generate_private_key(ec.SECP384R1())


def read_file(path: Path) -> bytes:
    """Read a file of a kit.

    Raises:
        TrustError: it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise TrustError(
            f"{path}: cannot be read ({error.strerror}); expected a whole kit as `sahfl provision` writes it"
        ) from error


def read_private(path: Path) -> bytes:
    """Read a key file that nobody but its owner may read.

    Raises:
        TrustError: it is missing, or others may read or change it.
    """
    content = read_file(path)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & ~PRIVATE:
        raise TrustError(f"{path}: has mode {mode:04o}, expected 0600: run `chmod 600 {path}`")
    return content


def write_private(path: Path, content: bytes) -> None:
    """Write a key file that is readable by its owner alone from its first byte on.

    Raises:
        TrustError: there is a file already; a private key is never written over.
    """
    if path.exists():
        raise TrustError(f"{path}: exists already, and a private key is never written over; move it away first")
    write_atomic(path, content, mode=PRIVATE)


def key_pem(key: PrivateKey) -> bytes:
    """A private key as PKCS8 PEM."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def node_key_text(key: NodeKey) -> bytes:
    """A site's private key in OpenSSH's form."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def node_key_line(key: NodeKey) -> str:
    """A site's public key as a line of OpenSSH."""
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def load_ec_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read the private key of a certificate.

    Raises:
        TrustError: it is missing, open to others, or no EC key in PEM.
    """
    return _an_ec_key(path, ssh=False)


def load_node_key(path: Path) -> NodeKey:
    """Read a site's private key.

    Raises:
        TrustError: it is missing, open to others, or no EC key in OpenSSH's form.
    """
    return _an_ec_key(path, ssh=True)


def _an_ec_key(path: Path, *, ssh: bool) -> ec.EllipticCurvePrivateKey:
    content = read_private(path)
    try:
        key = load_ssh_private_key(content, None) if ssh else load_pem_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):  # raised out here: the reason could quote what it read
        raise TrustError(f"{path}: is damaged, or not an EC private key without a password; put the kit's file back")
    return key


def load_ed25519_key(path: Path) -> Ed25519PrivateKey:
    """Read a key that signs.

    Raises:
        TrustError: it is missing, open to others, or no Ed25519 key in PEM.
    """
    content = read_private(path)
    try:
        key = load_pem_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise TrustError(f"{path}: is damaged, or not an Ed25519 private key without a password; put the file back")
    return key


def public_pem(line: str, *, where: str) -> bytes:
    """A site's public key, a line of OpenSSH, in the PEM form that Flower compares.

    Raises:
        TrustError: the line is no public key on a NIST curve.
    """
    try:
        key = load_ssh_public_key(line.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TrustError(f"{where}: node_key is not an EC public key in OpenSSH's form")
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
