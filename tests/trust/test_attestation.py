"""A site's signature on a document: who made it, and what is none."""

from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from harness.trust_kits import make_consortium

from sahfl.errors import TrustError
from sahfl.trust.attestation import MOST_BYTES, Attestation, attest, key_of, who_attests, who_signed

DOCUMENT = b"the start of round 2"


@pytest.fixture(scope="module")
def consortium(tmp_path_factory):
    return make_consortium(tmp_path_factory.mktemp("keys"), sites=("bern", "graz"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    return make_consortium(tmp_path_factory.mktemp("others"), sites=("bern", "graz"))


def test_a_site_of_the_consortium_is_named(consortium):
    made = attest(consortium.sites["graz"], DOCUMENT)
    assert who_attests(made, DOCUMENT, kit=consortium.sites["bern"]) == "graz"


def server_s(consortium, stranger):
    certificate = x509.load_pem_x509_certificate((consortium.server / "server.crt").read_bytes())
    key = (consortium.server / "server.key").read_bytes()
    from cryptography.hazmat.primitives.hashes import SHA384
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    signature = load_pem_private_key(key, None).sign(DOCUMENT, ec.ECDSA(SHA384()))
    return Attestation(certificate.public_bytes(Encoding.DER), signature)


FORGED = {
    "another-document": lambda own, other: attest(own.sites["graz"], DOCUMENT + b"!"),
    "another-consortium": lambda own, other: attest(other.sites["graz"], DOCUMENT),
    "another-site-s-certificate": lambda own, other: replace(
        attest(own.sites["graz"], DOCUMENT), certificate=attest(own.sites["bern"], DOCUMENT).certificate
    ),
    "the-server": server_s,
    "no-certificate": lambda own, other: Attestation(b"", attest(own.sites["graz"], DOCUMENT).signature),
    "no-signature": lambda own, other: replace(attest(own.sites["graz"], DOCUMENT), signature=b""),
    "too-long": lambda own, other: replace(attest(own.sites["graz"], DOCUMENT), signature=bytes(MOST_BYTES + 1)),
    "the-authority": lambda own, other: replace(
        attest(own.sites["graz"], DOCUMENT),
        certificate=x509.load_pem_x509_certificate((own.server / "ca.crt").read_bytes()).public_bytes(Encoding.DER),
    ),
}


def signed_part(attestation):
    return x509.load_der_x509_certificate(attestation.certificate).tbs_certificate_bytes


@pytest.mark.parametrize("change", [0x01, 0x04, 0x80], ids=hex)
def test_a_certificate_with_a_changed_byte_is_refused_unless_what_the_authority_signed_is_unchanged(consortium, change):
    made, kit = attest(consortium.sites["graz"], DOCUMENT), consortium.sites["bern"]
    for place in range(len(made.certificate)):
        changed = bytearray(made.certificate)
        changed[place] ^= change
        damaged = replace(made, certificate=bytes(changed))
        try:
            who_attests(damaged, DOCUMENT, kit=kit)
        except TrustError:
            pass
        else:  # such as the number of unused bits of the authority's signature
            assert signed_part(damaged) == signed_part(made)
        for read in (lambda: who_signed(damaged, DOCUMENT), lambda: key_of(damaged)):  # noqa: B023  # read at once
            with suppress(TrustError):  # neither looks at the issuer
                read()


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED.keys())
def test_what_no_site_of_the_consortium_signed_is_refused(consortium, stranger, forge):
    with pytest.raises(TrustError, match="attestation"):
        who_attests(forge(consortium, stranger), DOCUMENT, kit=consortium.sites["bern"])


@pytest.mark.parametrize("days", [-2, 400])
def test_a_certificate_counts_only_while_it_is_valid(consortium, days):
    made = attest(consortium.sites["graz"], DOCUMENT)
    with pytest.raises(TrustError, match="the certificate of graz is not valid now"):
        who_attests(made, DOCUMENT, kit=consortium.sites["bern"], now=datetime.now(UTC) + timedelta(days=days))
