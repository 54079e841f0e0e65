"""The signature on a request covers its type and every record."""

import copy

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict

from sahfl.errors import TrustError
from sahfl.federation.server.app import app
from sahfl.federation.signatures import check_signature, document, sign
from sahfl.federation.tensors import RAW
from sahfl.trust.signing import Signer

SIGNER = Signer.of(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))


def flat(values):
    array = np.asarray(values, "<f4")
    return ArrayRecord({"flat": Array("float32", array.shape, RAW, array.tobytes())})


def message():
    return RecordDict(
        {
            "task": ConfigRecord({"json": "{}", "n": 1, "names": ["a", "b"]}),
            "metrics": MetricRecord({"loss": 0.5}),
            "state": flat([1, 2, 3]),
        }
    )


def signed():
    content = message()
    sign("train", content, SIGNER)
    return content


def test_what_the_signer_signed_is_accepted_whatever_the_order_of_records():
    content = signed()
    check_signature("train", content, SIGNER.public)
    check_signature("train", RecordDict(dict(reversed(content.items()))), SIGNER.public)


def test_signing_again_gives_the_same_signature():
    content = signed()
    before = content["signature"]["signature"]
    sign("train", content, SIGNER)
    assert content["signature"]["signature"] == before


CHANGES = {
    "a setting": {"task": ConfigRecord({"json": "{} ", "n": 1, "names": ["a", "b"]})},
    "a type": {"task": ConfigRecord({"json": "{}", "n": 1.0, "names": ["a", "b"]})},
    "a list": {"task": ConfigRecord({"json": "{}", "n": 1, "names": ["a,b"]})},
    "a metric": {"metrics": MetricRecord({"loss": 0.25})},
    "a number": {"state": flat([1, 2, 4])},
    "a shape": {"state": ArrayRecord({"flat": Array("float32", (3, 1), RAW, np.ones(3, "<f4").tobytes())})},
    "one record more": {"more": ConfigRecord({})},
    "an empty array": {"state": ArrayRecord({})},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_any_change_is_refused(change):
    content = signed()
    for name, record in change.items():
        content[name] = record
    with pytest.raises(TrustError, match="signature: is not the signer's"):
        check_signature("train", content, SIGNER.public)


def test_a_request_of_one_kind_is_none_of_another():
    with pytest.raises(TrustError, match="is not the signer's"):
        check_signature("evaluate", signed(), SIGNER.public)


@pytest.mark.parametrize("record", [None, ConfigRecord({}), ConfigRecord({"signature": "text"})])
def test_a_request_without_a_signature_is_refused(record):
    content = message()
    if record is not None:
        content["signature"] = record
    with pytest.raises(
        TrustError, match=r"^request 'train': got no signature, expected that of signer 03a107bff3ce10be"
    ):
        check_signature("train", content, SIGNER.public)


def test_another_signer_is_refused():
    content = message()
    sign("train", content, Signer.of(Ed25519PrivateKey.generate()))
    with pytest.raises(TrustError, match="is not the signer's"):
        check_signature("train", content, SIGNER.public)


def test_the_document_depends_on_the_content_alone():
    assert document("train", message()) == document("train", copy.deepcopy(message()))
    assert len(document("train", RecordDict())) == 32


def test_the_server_s_app_signs_with_the_key_that_it_is_given(tmp_path):
    settings = {"run-folder": str(tmp_path), "nodes": '{"7": "sah_a"}', "signing-key": str(tmp_path / "signing.key")}
    with pytest.raises(TrustError, match=r"signing\.key: cannot be read"):
        app(None, Context(1, 0, {}, RecordDict(), settings))
