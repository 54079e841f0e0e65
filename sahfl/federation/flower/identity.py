"""The site that a request comes from: its key signed the time, over a connection with its certificate."""

from __future__ import annotations

from base64 import b64decode
from datetime import datetime

from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature

from sahfl.federation.flower.calls import Call, Refusal
from sahfl.federation.flower.fleet import Fleet
from sahfl.process import now


def identify(call: Call, fleet: Fleet) -> None:
    """Find the seat whose key signed the request, and note it in the call.

    Flower verifies the signature again, but gives no reasons.

    Raises:
        Refusal: the signature is wrong or old, the key is unknown, revoked, or not of the connection's certificate.
    """
    headers = call.headers
    try:
        key = b64decode(headers[FLEET_HTTP_PUBLIC_KEY_HEADER], validate=True)
        signature = b64decode(headers[FLEET_HTTP_SIGNATURE_HEADER], validate=True)
        stamp = headers[TIMESTAMP_HEADER]
        signed_at = datetime.fromisoformat(stamp)
        signed = verify_signature(bytes_to_public_key(key), stamp.encode("ascii"), signature)
    except Exception as error:  # whatever a peer's key and signature make the libraries raise
        raise Refusal(401, "signature") from error
    seat = fleet.of_key(key)
    if seat is None or not signed:
        raise Refusal(401, "unknown key" if signed else "signature")
    if call.caller is not None and call.caller.site not in (None, seat.site):
        raise Refusal(401, "certificate")
    call.seat = seat
    if not seat.active:
        raise Refusal(401, "revoked")
    at = now()
    if signed_at.tzinfo is None or not _in_time((at - signed_at).total_seconds()):
        raise Refusal(401, "clock", server=at.isoformat(timespec="seconds"), client=stamp[:40])


def _in_time(age_s: float) -> bool:
    return -SYSTEM_TIME_TOLERANCE < age_s < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE
