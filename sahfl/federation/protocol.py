"""Messages between the server and the sites, as Flower records. Nothing in them becomes a path, an import or code.

A request contains a task (settings, which pydantic checks at the site), a header and a state. A reply repeats the
header and contains a state or sums. A state is sent as one flat array with its layout (``payload``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray
from pydantic import ValidationError

from sahfl.adapters import AdapterState
from sahfl.errors import PayloadError
from sahfl.federation.metrics import Loss, metrics_record, read_metrics
from sahfl.federation.tensors import RAW, config_record, flat_array, read_state, state_records
from sahfl.payload import FINGERPRINT, Encoding, Header, check_header, require_own_version
from sahfl.task import SiteDescription, Task

DESCRIBE, INSTALL_BASE, TRAIN, EVALUATE = "query.describe", "query.install_base", "train", "evaluate"
EVALUATE_MASKED, EVALUATE_OWN = "evaluate.masked", "evaluate.own"
EVALUATIONS = (EVALUATE, EVALUATE_MASKED, EVALUATE_OWN)
LOCAL_PHASE = "train.local_phase"
SCAN_KEYS, PRIVATE_PART = "query.scan_keys", "query.private_part"
CONFIRM_START = "query.confirm_start"
KEY = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class TrainReply:
    """A usable answer of a site to a training request."""

    state: AdapterState
    n_volumes: int
    loss: float | None
    """None where it is inside a masked sum, or left out."""
    seconds: float
    n_bytes: int


def request(task: Task, header: Header, state: AdapterState) -> RecordDict:
    """Make the content of a request of any kind."""
    return RecordDict({"task": ConfigRecord({"json": task.model_dump_json()}), **state_records(header, state)})


def read_task(content: RecordDict) -> Task:
    """Read the task of a request.

    Raises:
        PayloadError: the task is missing, or breaks a rule of ``Task``.
    """
    try:
        return Task.model_validate_json(str(config_record(content, "task").get("json")))
    except ValidationError as error:
        raise PayloadError(f"task{_first_problem(error)}") from error


def read_header(content: RecordDict) -> dict[str, Any]:
    """Read the header without checks; ``payload.check_header`` checks it."""
    return dict(config_record(content, "header"))


def read_request(content: RecordDict) -> tuple[Task, Header]:
    """Read the task and the header of a request.

    Raises:
        VersionsDiffer: another version made the request, whose fields may mean something else.
        PayloadError: one of them is missing, or has missing, unknown or wrong fields.
    """
    found = read_header(content)
    require_own_version(found)
    task = read_task(content)
    try:
        header = Header(**found)
    except TypeError as error:
        raise PayloadError("header: has missing or unknown fields") from error
    numbers = {"fold", "round", "schema"}
    if not all(type(value) is (int if name in numbers else str) for name, value in header.as_dict().items()):
        raise PayloadError(
            "header: has a field of another type, expected numbers for fold, round and schema, else text"
        )
    return task, header


def train_reply(
    header: Header,
    state: AdapterState,
    *,
    n_volumes: int,
    loss: float | None,
    seconds: float,
    encoding: Encoding = "float32",
) -> RecordDict:
    """Make the answer to a training request: the state in float32, or its rounded change in another encoding."""
    metrics = metrics_record(n_volumes, loss, seconds)
    return RecordDict({"metrics": metrics, **state_records(header, state, encoding)})


def read_train_reply(
    content: RecordDict, *, header: Header, like: AdapterState, most_volumes: int, encoding: Encoding = "float32"
) -> TrainReply:
    """Read a site's answer to a training request, and check it against the request.

    Raises:
        PayloadError: names the first value that does not fit the request.
    """
    expect_records(content, "header", "layout", "metrics", "state")
    check_header(read_header(content), header)
    n_volumes, loss, seconds = read_metrics(content, most_volumes=most_volumes, loss="told" if like else "either")
    state = read_state(content, like=like, encoding=encoding)
    if encoding != "float32":
        state = {name: value + state[name] for name, value in like.items()}
    return TrainReply(state, n_volumes, loss, seconds, n_bytes(content))


def local_phase_reply(header: Header, *, n_volumes: int, loss: float | None, seconds: float) -> RecordDict:
    """Make the answer to a request for the last phase at a site, without tensors; the loss may stay there."""
    metrics = metrics_record(n_volumes, loss, seconds)
    return RecordDict({"header": ConfigRecord(header.as_dict()), "metrics": metrics})


def read_local_phase_reply(
    content: RecordDict, *, header: Header, most_volumes: int, masked: bool = False
) -> TrainReply:
    """Read a site's answer to a request for its last phase, as ``read_train_reply``; its state is empty.

    It has no loss in a ``masked`` training, and in another one if the site keeps it.

    Raises:
        PayloadError: names the first value that does not fit the request.
    """
    expect_records(content, "header", "metrics")
    check_header(read_header(content), header)
    loss: Loss = "kept" if masked else "either"
    return TrainReply({}, *read_metrics(content, most_volumes=most_volumes, loss=loss), n_bytes(content))


def evaluation_reply(header: Header, sums: NDArray[np.float64]) -> RecordDict:
    """Make the answer to an evaluation request, with sums over the site's cases and no single case."""
    array = Array("float64", (int(sums.size),), RAW, sums.astype("<f8", copy=False).tobytes())
    return RecordDict({"header": ConfigRecord(header.as_dict()), "sums": ArrayRecord({"flat": array})})


def read_evaluation_reply(content: RecordDict, *, header: Header) -> NDArray[np.float64]:
    """Read the sums of an answer; ``statistics.sums.EvaluationSums.from_array`` checks the numbers.

    Raises:
        PayloadError: the header differs from the request's, or there is no float64 array.
    """
    expect_records(content, "header", "sums")
    check_header(read_header(content), header)
    array = flat_array(content, "sums", dtype="float64")
    return np.frombuffer(array.data, "<f8").astype(np.float64)


def stays_reply(header: Header) -> RecordDict:
    """Make the answer to a request whose result stays at the site: that it was done."""
    return RecordDict({"header": ConfigRecord(header.as_dict())})


def read_stays_reply(content: RecordDict, *, header: Header) -> None:
    """Read the answer to a request whose result stays at the site.

    Raises:
        PayloadError: the header differs from the request's, or there is anything else.
    """
    expect_records(content, "header")
    check_header(read_header(content), header)


def description_reply(description: SiteDescription) -> RecordDict:
    """Make the answer to a request for a description."""
    return RecordDict({"description": ConfigRecord({"json": description.model_dump_json()})})


def read_description(content: RecordDict) -> SiteDescription:
    """Read a site's description.

    Raises:
        PayloadError: the description is missing, or breaks a rule of ``SiteDescription``.
    """
    try:
        return SiteDescription.model_validate_json(str(config_record(content, "description").get("json")))
    except ValidationError as error:
        raise PayloadError(f"description{_first_problem(error)}") from error


def scan_keys_reply(header: Header, keys: Iterable[str]) -> RecordDict:
    """Make the answer to a request for scan keys: a salted key of each scan, sorted."""
    keys_record = ConfigRecord({"keys": sorted(keys)})
    return RecordDict({"header": ConfigRecord(header.as_dict()), "scan_keys": keys_record})


def read_scan_keys(content: RecordDict, *, header: Header, n_volumes: int) -> frozenset[str]:
    """Read the keys of a site's scans.

    Raises:
        PayloadError: the header differs from the request's, or there is not one key of 16 hex digits for each volume.
    """
    check_header(read_header(content), header)
    keys = config_record(content, "scan_keys").get("keys")
    if not isinstance(keys, list) or len(keys) != n_volumes or len(set(keys)) != n_volumes:
        raise PayloadError(f"scan keys: expected {n_volumes} different keys, one for each volume")
    if not all(isinstance(key, str) and KEY.fullmatch(key) for key in keys):
        raise PayloadError("scan keys: expected 16 hex digits each")
    return frozenset(str(key) for key in keys)


def with_earlier(content: RecordDict, *, study: str, mark: str) -> RecordDict:
    """Add to a request the fingerprint of an earlier study, and the mark of a network of it at the site."""
    return RecordDict({**content, "earlier": ConfigRecord({"study": study, "mark": mark})})


def read_earlier(content: RecordDict) -> tuple[str, str]:
    """Read the fingerprint of an earlier study and a mark from a request; both are empty if it names none.

    Raises:
        PayloadError: one of them is no hash.
    """
    if "earlier" not in content:
        return "", ""
    record = config_record(content, "earlier")
    study, mark = str(record.get("study")), str(record.get("mark"))
    if not FINGERPRINT.fullmatch(study) or not KEY.fullmatch(mark):
        raise PayloadError("earlier: expected the fingerprint of a study and the mark of a network")
    return study, mark


def private_part_reply(header: Header, mark: str) -> RecordDict:
    """Make the answer whether a site has a network: its mark, or nothing."""
    return RecordDict({"header": ConfigRecord(header.as_dict()), "mark": ConfigRecord({"mark": mark})})


def read_private_part(content: RecordDict, *, header: Header | None) -> str:
    """Read the mark of a site's network, 16 hex digits; empty if the site has none.

    Raises:
        PayloadError: the header differs from the request's (None: it is not compared), or there is another record.
    """
    expect_records(content, "header", "mark")
    if header is not None:
        check_header(read_header(content), header)
    record = config_record(content, "mark")
    mark = record.get("mark")
    if set(record) != {"mark"} or not isinstance(mark, str) or (mark and not KEY.fullmatch(mark)):
        raise PayloadError("mark: expected 16 hex digits, or nothing")
    return mark


def n_bytes(content: RecordDict) -> int:
    """Number of bytes of arrays, header, layout and metrics of a message, as the report counts them."""
    arrays = sum(len(array.data) for record in content.array_records.values() for array in record.values())
    settings = sum(
        len(str(name)) + _size(value) for record in content.config_records.values() for name, value in record.items()
    )
    return arrays + settings + sum(8 * len(record) for record in content.metric_records.values())


def _size(value: Any) -> int:
    if isinstance(value, bytes):
        return len(value)
    return sum(_size(part) for part in value) if isinstance(value, list) else len(str(value))


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    where = ".".join(map(str, problem["loc"]))[:80]
    return f"{where and ' ' + where}: {problem['msg'][:300]}"


def expect_records(content: RecordDict, *names: str) -> None:
    """Raise PayloadError if a message has a record of another name."""
    if unknown := sorted(content.keys() - set(names)):
        raise PayloadError(f"reply: has unknown record {unknown[0][:40]!r}")
