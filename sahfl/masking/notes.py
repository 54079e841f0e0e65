"""What a site keeps of a round on disk: nothing that is secret by itself, since the keys come from the round's secret.

The bytes end with a tag under that secret, so that damaged notes, those of another round and those with another secret
are told from good ones.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field

from sahfl.errors import PayloadError, SiteStateLost
from sahfl.masking.context import Context
from sahfl.masking.encoding import pack, pack_names, unpack, unpack_names
from sahfl.masking.own_secrets import OwnSecrets
from sahfl.masking.site_list import Advert, SiteList

LABEL = b"sahfl masking notes 1"
MOST_BYTES = 8_000_000
"""Most bytes of notes that are read; those of a round with 10 000 sites have about 2 million."""
TAG_BYTES = 32


@dataclass
class Notes:
    """How far a site is in a round. What is set is never set to anything else."""

    context: Context
    site: str
    threshold: int | None = None
    """The study's; None for the default."""
    listed: SiteList | None = None
    """From ``share`` on."""
    sharers: frozenset[str] | None = None
    """From ``mask`` on."""
    sealed: dict[str, bytes] = field(default_factory=dict)
    """The neighbours' shares as they came, by sender; from ``mask`` on."""
    vector: bytes = b""
    """Tag of the vector that was masked, which tells nothing about it without the secret."""
    survivors: frozenset[str] | None = None
    """From ``confirm`` on."""


def write_notes(notes: Notes, own: OwnSecrets) -> bytes:
    """The notes as bytes; the same notes give the same bytes."""
    listed = notes.listed
    body = pack(
        LABEL,
        notes.context.encode(),
        notes.site.encode(),
        _number(notes.threshold),
        pack(*(advert.fields() for advert in listed.adverts)) if listed else b"",
        _names(notes.sharers),
        pack(*(field for site, text in sorted(notes.sealed.items()) for field in (site.encode(), text))),
        notes.vector,
        _names(notes.survivors),
    )
    return body + own.tag(b"notes", body)


def read_notes(data: bytes, secret: bytes) -> tuple[Notes, OwnSecrets]:
    """Read what ``write_notes`` wrote.

    Raises:
        SiteStateLost: the notes are damaged, too large, of another version, or were written with another secret.
    """
    if len(data) > MOST_BYTES:
        raise SiteStateLost(f"notes of a masked round: got {len(data)} bytes, expected at most {MOST_BYTES}")
    body, tag = data[:-TAG_BYTES], data[-TAG_BYTES:]
    try:
        fields = unpack(body)
        if len(fields) != 9 or fields[0] != LABEL:
            raise PayloadError("they are damaged, or of another version")
        own = OwnSecrets(secret, Context.decode(fields[1]))
        if not hmac.compare_digest(own.tag(b"notes", body), tag):
            raise PayloadError("they were changed, or another secret wrote them")
        return _read(fields), own
    except (PayloadError, UnicodeDecodeError) as error:
        text = "the site leaves this round, and must not begin it again with the same secret"
        raise SiteStateLost(f"notes of a masked round: {error}; {text}") from error


def _read(fields: list[bytes]) -> Notes:
    context, threshold = Context.decode(fields[1]), int.from_bytes(fields[3], "big") if fields[3] else None
    sealed = unpack(fields[6])
    return Notes(
        context,
        fields[2].decode(),
        threshold,
        SiteList.of(context, map(_advert, unpack(fields[4])), threshold) if fields[4] else None,
        _read_names(fields[5]),
        dict(zip((name.decode() for name in sealed[::2]), sealed[1::2], strict=True)),
        fields[7],
        _read_names(fields[8]),
    )


def _advert(data: bytes) -> Advert:
    site, mask_key, share_key = unpack(data)
    return Advert(site.decode(), mask_key, share_key)


def _number(value: int | None) -> bytes:
    return b"" if value is None else value.to_bytes(4, "big")


def _names(names: frozenset[str] | None) -> bytes:
    return b"" if names is None else pack_names(sorted(names))


def _read_names(data: bytes) -> frozenset[str] | None:
    return frozenset(unpack_names(data)) if data else None
