"""A certificate whose form is right and whose key is not."""

import ssl
from base64 import b64decode, b64encode, encodebytes

import pytest
from cryptography.exceptions import InternalError
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from harness.trust_kits import make_consortium

from sahfl.errors import TrustError
from sahfl.trust.certificates import load_certificate
from sahfl.trust.keys import _ec_key, new_node_key, public_pem
from sahfl.trust.kit import ServerKit, _context
from sahfl.trust.records import Record, read_note


def test_a_certificate_with_a_damaged_key_is_refused_when_it_is_read(tmp_path):
    path = make_consortium(tmp_path / "consortium", sites=["a"]).sites["a"] / "ca.crt"
    certificate = load_certificate(path)
    content, x = certificate.public_bytes(Encoding.DER), certificate.public_key().public_numbers().x
    point = x.to_bytes(48, "big")
    assert content.count(point) == 1
    broken = content.replace(point, bytes(48))  # a point that is on no curve
    path.write_bytes(b"-----BEGIN CERTIFICATE-----\n" + encodebytes(broken) + b"-----END CERTIFICATE-----\n")
    with pytest.raises(TrustError, match=r"ca\.crt: is damaged"):
        load_certificate(path)


def test_a_node_key_with_a_compressed_point_is_refused():
    line = new_node_key().public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    kind, content = line.split()
    compressed = b64decode(content).replace(b"\0\0\0\x61\x04", b"\0\0\0\x61\x02")
    assert compressed != b64decode(content)
    with pytest.raises(TrustError, match=r"sites\.json: bern: node_key is not an EC public key in OpenSSH's form"):
        public_pem(f"{kind} {b64encode(compressed).decode()}", where="sites.json: bern")


class ReadByCryptographyAlone:
    def public_bytes(self, encoding):
        return b"\x30\x00"


def test_an_authority_that_openssl_cannot_read_is_refused():
    with pytest.raises(TrustError, match=r"ca\.crt: is damaged, expected a certificate in PEM"):
        _context(ssl.PROTOCOL_TLS_CLIENT, ReadByCryptographyAlone())


def test_a_revocation_list_that_openssl_cannot_read_is_refused(tmp_path, monkeypatch):
    kit = ServerKit.load(make_consortium(tmp_path / "consortium", sites=["a"]).server)
    (kit.folder / "revoked.crl").write_text("-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n")
    monkeypatch.setattr("sahfl.trust.kit.load_revoked", lambda path, **more: frozenset())
    with pytest.raises(TrustError, match=r"revoked\.crl: is damaged, expected a revocation list in PEM"):
        kit.tls()


def test_a_record_whose_holder_has_no_name_of_a_site_is_refused(tmp_path):
    folder = make_consortium(tmp_path / "consortium", sites=["a"]).folder
    path = next(folder.rglob("issued.json"))
    path.write_text(path.read_text().replace('"a":', '"__class__":'))
    with pytest.raises(TrustError, match=r"holders\.__class__: expected 1 to 40 lower-case letters"):
        read_note(Record, path)


@pytest.mark.parametrize("error", [NotImplementedError(), InternalError("Unknown OpenSSL error", [])])
def test_a_key_on_which_the_library_fails_is_refused(tmp_path, error):
    def read(content, password):
        raise error

    (tmp_path / "node.key").touch(mode=0o600)
    with pytest.raises(TrustError, match=r"node\.key: is damaged, or not an EC private key"):
        _ec_key(tmp_path / "node.key", read)
