"""Reading a reply: whether it is usable, and why it is not."""

from __future__ import annotations

from flwr.app import Message, RecordDict

from sahfl.errors import MaskingRefused, PayloadError, UpdateHeldBack
from sahfl.federation import flower

EXPLAINED = {
    "NoGain": "the method makes this site lose, by its own measurement; numbers",
    "StartNotConfirmed": "too few other sites confirmed the start of the round (policy.confirmations); the number",
    "UpdateHeldBack": "the site held back its update of this round, because too few slices explain it; what it saw",
    "StartTooFar": "the start of the round is farther from the one before than training moves it; the numbers",
    "PatientWithdrawn": "a patient of this study was withdrawn there, which closes the study at that site; the name",
    "SiteStateLost": "a file of the site's folder was lost or put back; its name",
    "LedgerBroken": "the site's ledger was changed, cut or put back; the line",
    "MaskingRefused": "a step of the masked round is not what the site was told or answered before; the difference",
    "RosterNotAccepted": "a site's key is not in the roster that was accepted there; the site and the command",
    "VersionsDiffer": "the request, or the site's folder, is of another version of sahfl; both versions",
    "BaseNotAccepted": "nobody there has accepted the base network; the command",
}
"""What the error class of a reply means, where its name is not enough."""


def error_text(reply: Message) -> str:
    """Reason of an error reply, cut to 120 characters."""
    return flower.reason(reply)[:120]


def reason_of(reply: Message | None, deadline_s: float) -> str | None:
    """Why a site has no usable reply; None if it has one."""
    if reply is None:
        return f"no reply within {deadline_s:g} s"
    if not reply.has_error():
        return None
    if flower.is_unreachable(reply):
        return error_text(reply)
    text = error_text(reply)
    return f"error at the site: {text} ({EXPLAINED.get(text, 'details')} in the site's log)"


def is_held_back(reply: Message | None) -> bool:
    """Whether a site trained, and held back its update."""
    return reply is not None and reply.has_error() and error_text(reply) == UpdateHeldBack.__name__


def refuses_mask(reply: Message | None) -> bool:
    """Whether a site refused a step of a masked sum."""
    return reply is not None and reply.has_error() and error_text(reply) == MaskingRefused.__name__


def content_of(reply: Message | None, deadline_s: float) -> RecordDict:
    """Content of a site's reply.

    Raises:
        PayloadError: the site has no usable reply; the message gives the reason.
    """
    if reason := reason_of(reply, deadline_s):
        raise PayloadError(reason)
    assert reply is not None
    return reply.content
