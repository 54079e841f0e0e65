"""Fuzzed messages: requests at a site and answers at the server, as the bytes of their records."""

from collections.abc import Callable
from pathlib import Path
from random import Random

from flwr.app import Message, RecordDict
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from google.protobuf.json_format import MessageToDict, ParseDict

from harness.asking import STUDY, evaluating, header_of, training
from harness.fuzz.mutations import MOST_BYTES, changed_values, damaged, mutated
from harness.fuzz.of_sites import HEADER, STATE, site_of
from harness.fuzz.outcome import Reader
from harness.trust_kits import make_consortium
from sahfl.config import LocalTraining
from sahfl.errors import PayloadError
from sahfl.federation import confirmations, flower, protocol
from sahfl.federation.flower.parcels import from_bytes, to_bytes
from sahfl.federation.signatures import check_signature, document, sign
from sahfl.federation.site.policy import check_request
from sahfl.federation.tensors import read_state
from sahfl.statistics.cases import CaseResult
from sahfl.statistics.sums import EvaluationSums
from sahfl.task import SiteDescription
from sahfl.trust.attestation import attest, who_attests
from sahfl.trust.kit import ServerKit

ENCODINGS = ("float32", "float16", "int8")


def answers(folder: Path) -> Reader:
    """Answers of a site to every kind of request."""
    kit = make_consortium(folder, sites=("bern",)).sites["bern"]
    settings, signed = STUDY.evaluation, confirmations.document(HEADER, "c" * 64)
    cases = [CaseResult(f"k{case}", 5.0 + case, 4.0, 0.5, 0.5, 4.0, 0.5, 40.0) for case in range(6)]
    sums = EvaluationSums.of(cases, settings, seed=3).to_array()
    numbers = {"n_volumes": 3, "loss": 0.5, "seconds": 1.0}
    made = {f"{name}.train": protocol.train_reply(HEADER, STATE, encoding=name, **numbers) for name in ENCODINGS}
    made["a.local_phase"] = protocol.local_phase_reply(HEADER, **numbers)
    made["a.evaluate"] = protocol.evaluation_reply(HEADER, sums)
    made["a.describe"] = protocol.description_reply(described())
    made["a.scan_keys"] = protocol.scan_keys_reply(HEADER, ["0" * 16, "1" * 16])
    made["a.private_part"] = protocol.private_part_reply(HEADER, "2" * 16)
    made["a.confirm"] = confirmations.reply(HEADER, attest(kit, signed))
    readers: dict[str, Callable[[RecordDict, str], object]] = {
        "train": lambda content, name: protocol.read_train_reply(
            content, header=HEADER, like=STATE, most_volumes=3, encoding=name
        ),
        "local_phase": lambda content, _: protocol.read_local_phase_reply(content, header=HEADER, most_volumes=3),
        "evaluate": lambda content, _: EvaluationSums.from_array(
            protocol.read_evaluation_reply(content, header=HEADER), settings
        ),
        "describe": lambda content, _: protocol.read_description(content),
        "scan_keys": lambda content, _: protocol.read_scan_keys(content, header=HEADER, n_volumes=2),
        "private_part": lambda content, _: protocol.read_private_part(content, header=HEADER),
        "confirm": lambda content, _: who_attests(confirmations.read_reply(content), signed, kit=kit),
    }

    def read(name: str, content: bytes) -> None:
        encoding, _, kind = name.partition(".")
        readers[kind](from_bytes(content), encoding)

    return Reader({name: to_bytes(content) for name, content in made.items()}, read, changed_records)


def requests(folder: Path) -> Reader:
    """Requests of a server, read as a site reads them before any work: signature, task, header, tensors, policy."""
    signer = ServerKit.load(make_consortium(folder, sites=("bern",)).server).signer
    config, made = site_of(folder), {}
    local = LocalTraining(steps=8, batch_size=8)
    for kind, task in ((protocol.TRAIN, training(local=local)), (protocol.EVALUATE, evaluating())):
        made[kind] = protocol.request(task, header_of(task, base="b" * 64), STATE)
        made[kind] = protocol.with_earlier(made[kind], study="d" * 64, mark="3" * 16)
        made[kind] = confirmations.attach(made[kind], [])
        sign(kind, made[kind], signer)

    def read(name: str, content: bytes) -> None:
        found = from_bytes(content)
        document(name, found)
        task, header = protocol.read_request(found)
        confirmations.attached(found)
        protocol.read_earlier(found)
        check_request(config, name, task, header)
        read_state(found, like=STATE)
        check_signature(name, found, signer.public)

    return Reader({name: to_bytes(content) for name, content in made.items()}, read, changed_records)


def parts(folder: Path) -> Reader:
    """The objects into which Flower takes a message apart, put together again as server and site do it."""
    flower.enter_run(1)
    message = flower.new_message(protocol.request(training(), HEADER, STATE), 7, protocol.TRAIN, "", None)
    flower.give_id(message)
    whole = {id_: item.deflate() for id_, item in get_all_nested_objects(message).items()}
    names = {f"{place}.part": id_ for place, id_ in enumerate(whole)}

    def read(name: str, content: bytes) -> None:
        try:
            found = inflate_object_from_contents(message.object_id, whole | {names[name]: content})
        except Exception as error:  # as where it is called: whatever a peer's bytes make Flower raise
            raise PayloadError(f"message: cannot be read ({type(error).__name__})") from error
        if isinstance(found, Message):
            protocol.read_request(found.content)

    return Reader({name: whole[id_] for name, id_ in names.items()}, read)


def changed_records(name: str, content: bytes, rng: Random, others: tuple[bytes, ...] = ()) -> bytes:
    """Records with other values, as Protocol Buffers, or with other bytes."""
    if rng.random() < 0.5:
        return mutated(name, content, rng, others)
    values = changed_values(MessageToDict(RecordDictProto.FromString(content)), rng)
    try:
        changed = bytes(ParseDict(values, RecordDictProto(), ignore_unknown_fields=True).SerializeToString())
        return changed[:MOST_BYTES]
    except Exception:  # values that the format cannot hold
        return damaged(content, rng, others)


def described() -> SiteDescription:
    """What a site with six patients says of itself."""
    numbers = {"n_volumes": 6, "n_patients": 6, "n_positive": 6, "volume_ml": 60.0, "fold_sizes": (3, 3)}
    hashes = dict.fromkeys(("data", "software", "batches"), "0" * 16)
    return SiteDescription(
        site="bern",
        source="NIfTI",
        fold_positive=(3, 3),
        confirmations=0,
        n_refused=0,
        findings={},
        **numbers,
        **hashes,
    )
