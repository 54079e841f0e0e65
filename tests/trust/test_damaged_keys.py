"""A certificate whose form is right and whose key is not."""

from base64 import encodebytes

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from harness.trust_kits import make_consortium

from sahfl.errors import TrustError
from sahfl.trust.certificates import load_certificate


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
