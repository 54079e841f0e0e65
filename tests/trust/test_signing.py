import pytest
from hypothesis import given
from hypothesis import strategies as st

from sahfl.errors import TrustError
from sahfl.trust import keys
from sahfl.trust.keys import Ed25519PrivateKey
from sahfl.trust.signing import Signer, verify

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SIGNER = Signer.of(KEY)


@given(st.binary(max_size=300))
def test_a_signature_is_believed_for_its_document(document):
    verify(SIGNER.public, document, SIGNER.sign(document))


@given(st.binary(min_size=1, max_size=100), st.integers(0, 99), st.integers(1, 255))
def test_c04_a_document_with_one_changed_byte_is_refused(document, place, change):
    changed = bytearray(document)
    changed[place % len(document)] ^= change
    with pytest.raises(TrustError, match="is not the signer's"):
        verify(SIGNER.public, bytes(changed), SIGNER.sign(document))


@given(st.binary(max_size=130))
def test_bytes_that_are_no_signature_are_refused_whatever_their_length(signature):
    with pytest.raises(TrustError, match=r"is not the signer's \(03a107bff3ce10be...\) of these 4 bytes"):
        verify(SIGNER.public, b"read", signature)


def test_the_signature_of_another_key_is_refused():
    other = Signer.of(Ed25519PrivateKey.generate())
    with pytest.raises(TrustError, match="is not the signer's"):
        verify(SIGNER.public, b"train", other.sign(b"train"))


@pytest.mark.parametrize("public", ["", "ab", "g" * 64, "00" * 31, "é", "00" * 33])
def test_what_is_no_public_key_is_refused(public):
    with pytest.raises(TrustError, match="expected 64 hex digits of an Ed25519 public key"):
        verify(public, b"", b"")


def test_the_public_key_is_the_one_that_belongs_to_the_private_key():
    """Computed from the seed 00 01 ... 1f with the formulas of RFC 8032, section 5.1, in plain Python."""
    assert SIGNER.public == "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"


def test_a_signer_is_read_from_its_file_and_shows_no_secret(tmp_path):
    keys.write_private(tmp_path / "signing.key", keys.key_pem(KEY))
    signer = Signer.load(tmp_path / "signing.key")
    assert signer == SIGNER
    verify(signer.public, b"x", signer.sign(b"x"))
    assert repr(signer) == f"Signer(public={SIGNER.public!r})"


def test_c10_a_signing_key_that_others_can_read_is_refused_with_the_remedy(tmp_path):
    path = tmp_path / "signing.key"
    path.write_bytes(keys.key_pem(KEY))
    path.chmod(0o640)
    with pytest.raises(TrustError, match=f"has mode 0640, expected 0600: run `chmod 600 {path}`"):
        Signer.load(path)


@pytest.mark.parametrize(
    "content", [b"", b"-----BEGIN PRIVATE KEY-----\nSECRET\n", b"\xff", keys.key_pem(keys.new_node_key())]
)
def test_a_damaged_or_other_key_is_refused_without_quoting_it(tmp_path, content):
    keys.write_private(tmp_path / "signing.key", content)
    with pytest.raises(TrustError, match="is damaged, or not an Ed25519 private key") as info:
        Signer.load(tmp_path / "signing.key")
    assert "SECRET" not in str(info.value)
    assert info.value.__context__ is None


def test_a_missing_key_says_what_was_expected(tmp_path):
    with pytest.raises(
        TrustError, match=r"signing.key: cannot be read \(No such file or directory\); expected a whole kit"
    ):
        Signer.load(tmp_path / "signing.key")
