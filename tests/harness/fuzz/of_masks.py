"""Fuzzed messages of masked sums, as server and site read them of each other, and the files in which both keep them."""

from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
from flwr.app import RecordDict

from harness.asking import STUDY, training
from harness.fuzz.mutations import mutated
from harness.fuzz.of_messages import changed_records
from harness.fuzz.of_sites import HEADER, STATE
from harness.fuzz.outcome import Reader
from harness.masked_round import CONTEXT, NAMES, Round, secret_of
from sahfl.federation import masked_messages as messages
from sahfl.federation import protocol
from sahfl.federation.flower.parcels import from_bytes, to_bytes
from sahfl.federation.masked_terms import Terms, read_terms
from sahfl.federation.masked_vectors import (
    masked_evaluation_reply,
    masked_reply,
    read_masked_evaluation_reply,
    read_masked_reply,
)
from sahfl.federation.server.masked_progress import Answered, Progress, read_progress, write_progress
from sahfl.masking.party import Party
from sahfl.payload import layout
from sahfl.statistics.consortium import Thresholds, total_length
from sahfl.trust.records import RosterNote
from sahfl.trust.roster import read_roster

TERMS = Terms(1, dict.fromkeys(NAMES, 3), "c" * 64)
SITE = "bern"
Readers = dict[str, Callable[[RecordDict], object]]


def masks(folder: Path) -> Reader:
    """Each message of the five steps, and the files that a server and a site keep between them."""
    whole = Round().until("reveal")
    answers, of_answers = _answers(whole)
    requests, of_requests = _requests(whole)
    readers = of_answers | of_requests
    files = _files(folder, whole)

    def read(name: str, content: bytes) -> None:
        if name in readers:
            readers[name](from_bytes(content))
        elif name == "progress":
            (folder / name).write_bytes(content)
            found = read_progress(folder / name, TERMS, CONTEXT.round)
            found.collector(CONTEXT, lambda *_: True, length=whole.length, threshold=3)
        elif name == "party":
            Party.from_bytes(content, secret=secret_of(SITE))
        else:
            read_roster(content, where=folder / name)

    def change(name: str, content: bytes, rng: Random, others: tuple[bytes, ...] = ()) -> bytes:
        return (changed_records if name in readers else mutated)(name, content, rng, others)

    return Reader({name: to_bytes(content) for name, content in (answers | requests).items()} | files, read, change)


def _answers(whole: Round) -> tuple[dict[str, RecordDict], Readers]:
    names, n_numbers = layout(STATE), total_length(STUDY.evaluation)
    vector = np.arange(1 + sum(value.size for value in STATE.values()), dtype="<u4")
    words, least = np.arange(2 * n_numbers, dtype="<u8"), Thresholds(5, 20)
    made = {
        "a.keys": messages.keys_reply(HEADER, next(one for one in whole.listed if one.advert.site == SITE)),
        "a.shares": messages.shares_reply(HEADER, whole.shares[SITE]),
        "a.train": masked_reply(HEADER, names, vector, n_volumes=3, seconds=1.0),
        "a.evaluate": masked_evaluation_reply(HEADER, words, thresholds=least, seconds=1.0),
        "a.survivors": messages.survivors_reply(HEADER, b"signature"),
        "a.reveal": messages.reveal_reply(HEADER, whole.revealed[SITE]),
    }
    return made, {
        "a.keys": lambda content: messages.read_keys_reply(content, HEADER, SITE),
        "a.shares": lambda content: messages.read_shares_reply(content, HEADER),
        "a.train": lambda content: read_masked_reply(content, header=HEADER, layout=names, most_volumes=3),
        "a.evaluate": lambda content: read_masked_evaluation_reply(content, header=HEADER, n_numbers=n_numbers),
        "a.survivors": lambda content: messages.read_survivors_reply(content, HEADER),
        "a.reveal": lambda content: messages.read_reveal_reply(content, HEADER),
    }


def _requests(whole: Round) -> tuple[dict[str, RecordDict], Readers]:
    asked, delivery = protocol.request(training(), HEADER, {}), whole.deliveries[SITE]
    records = {
        "r.keys": TERMS.record(),
        "r.shares": messages.listed_record(TERMS, whole.listed),
        "r.train": messages.delivery_record(TERMS, delivery.sharers, delivery.received),
        "r.survivors": messages.survivors_record(TERMS, whole.survivors),
        "r.reveal": messages.survivors_record(TERMS, whole.survivors, whole.confirmations),
    }
    parts: Readers = {
        "r.keys": read_terms,
        "r.shares": messages.read_listed,
        "r.train": messages.read_delivery,
        "r.survivors": messages.read_survivors,
        "r.reveal": messages.read_confirmations,
    }

    def reader_of(name: str) -> Callable[[RecordDict], object]:
        return lambda content: (protocol.read_request(content), read_terms(content), parts[name](content))

    made = {name: messages.with_record(asked, record) for name, record in records.items()}
    return made, {name: reader_of(name) for name in made}


def _files(folder: Path, whole: Round) -> dict[str, bytes]:
    total = np.arange(whole.length, dtype="<u4")
    answered = {site: Answered(3, 1.0) for site in whole.survivors}
    write_progress(folder / "progress", Progress(CONTEXT.round, TERMS, whole.listed, whole.shares, answered, total))
    roster = RosterNote(consortium="test", sites={site: f"{n}" * 64 for n, site in enumerate(NAMES)})
    party, text = whole.parties[SITE].to_bytes(), roster.text().encode()
    return {"progress": (folder / "progress").read_bytes(), "party": party, "roster.json": text}
