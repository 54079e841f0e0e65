"""Answers to the third step of a masked round: the masked vector of a training, or of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from sahfl.errors import PayloadError
from sahfl.federation.metrics import read_metrics, read_seconds
from sahfl.federation.protocol import expect_records, n_bytes, read_header
from sahfl.federation.tensors import RAW, config_record, flat_array
from sahfl.masking.masks import Numbers
from sahfl.payload import Header, Layout, check_header
from sahfl.statistics.consortium import Thresholds

MOST_PATIENTS = 1000
"""Largest threshold that a site's policy may have (``config.SitePolicy``)."""


@dataclass(frozen=True)
class MaskedReply:
    """A usable answer to a training request of a masked round."""

    vector: Numbers
    """(n + 1,) uint32: the numbers of the change, and the loss."""
    n_volumes: int
    seconds: float
    n_bytes: int


def masked_reply(header: Header, layout: Layout, vector: Numbers, *, n_volumes: int, seconds: float) -> RecordDict:
    """Answer step 3: the masked vector with names and shapes of the tensors in it; no loss, because it is inside."""
    shapes = [",".join(map(str, shape)) for _, shape in layout]
    return RecordDict(
        {
            "header": ConfigRecord(header.as_dict()),
            "layout": ConfigRecord({"names": [name for name, _ in layout], "shapes": shapes}),
            "metrics": MetricRecord({"n_volumes": n_volumes, "seconds": seconds}),
            "state": ArrayRecord({"flat": Array("uint32", (int(vector.size),), RAW, vector.tobytes())}),
        }
    )


def read_masked_reply(content: RecordDict, *, header: Header, layout: Layout, most_volumes: int) -> MaskedReply:
    """Read the answer to step 3, and check it against the request."""
    expect_records(content, "header", "layout", "metrics", "state")
    check_header(read_header(content), header)
    wanted = {"names": [name for name, _ in layout], "shapes": [",".join(map(str, shape)) for _, shape in layout]}
    if dict(config_record(content, "layout")) != wanted:
        raise PayloadError("layout: is not that of the tensors of this round")
    n_volumes, _, seconds = read_metrics(content, most_volumes=most_volumes, loss="kept")
    vector = np.frombuffer(flat_array(content, "state", dtype="uint32").data, "<u4")
    n_numbers = 1 + sum(int(np.prod(shape)) for _, shape in layout)
    if vector.size != n_numbers:
        raise PayloadError(f"body: got {vector.size} masked numbers, expected {n_numbers}")
    return MaskedReply(vector, n_volumes, seconds, n_bytes(content))


@dataclass(frozen=True)
class MaskedEvaluation:
    """A usable answer to an evaluation request of a masked round."""

    vector: Numbers
    """(2 n,) uint64: the numbers of ``statistics.consortium.site_part`` in two words each."""
    thresholds: Thresholds
    """Of the site's policy, for the total."""
    seconds: float


def masked_evaluation_reply(header: Header, vector: Numbers, *, thresholds: Thresholds, seconds: float) -> RecordDict:
    """Answer step 3 of an evaluation: the masked vector, and the two thresholds that the total has to meet."""
    array = Array("uint64", (int(vector.size),), RAW, vector.tobytes())
    metrics = MetricRecord({**vars(thresholds), "seconds": seconds})
    return RecordDict(
        {
            "header": ConfigRecord(header.as_dict()),
            "metrics": metrics,
            "sums": ArrayRecord({"flat": array}),
        }
    )


def read_masked_evaluation_reply(content: RecordDict, *, header: Header, n_numbers: int) -> MaskedEvaluation:
    """Read the answer to step 3 of an evaluation, and check it against the request.

    Raises:
        PayloadError: a record is unknown or missing, or a value is of a wrong form.
    """
    expect_records(content, "header", "metrics", "sums")
    check_header(read_header(content), header)
    metrics = content.metric_records.get("metrics", MetricRecord({}))
    if set(metrics) != {"smallest_group", "smallest_bootstrap", "seconds"}:
        raise PayloadError("metrics: expected the two thresholds of the site's policy, and seconds")
    thresholds = Thresholds(*(_threshold(metrics[name]) for name in ("smallest_group", "smallest_bootstrap")))
    vector = np.frombuffer(flat_array(content, "sums", dtype="uint64").data, "<u8")
    if vector.size != 2 * n_numbers:
        raise PayloadError(f"sums: got {vector.size} masked words, expected {2 * n_numbers}")
    return MaskedEvaluation(vector, thresholds, read_seconds(metrics))


def _threshold(value: object) -> int:
    if type(value) is not int or not 1 <= value <= MOST_PATIENTS:
        raise PayloadError(f"metrics: expected thresholds from 1 to {MOST_PATIENTS}")
    return value
