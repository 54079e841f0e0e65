"""The numbers that leave beside the tensors of a training: scans, mean loss, seconds."""

from __future__ import annotations

import math
from typing import Literal

from flwr.app import MetricRecord, RecordDict

from sahfl.errors import PayloadError
from sahfl.payload import check_training

Loss = Literal["told", "kept", "either"]
"""Whether an answer has the mean loss. A site that demands masks keeps that of what it trains alone."""


def metrics_record(n_volumes: int, loss: float | None, seconds: float) -> MetricRecord:
    """The record of an answer; a loss of None stays at the site."""
    told = {} if loss is None else {"loss": loss}
    return MetricRecord({"n_volumes": n_volumes, **told, "seconds": seconds})


def read_metrics(content: RecordDict, *, most_volumes: int, loss: Loss = "told") -> tuple[int, float | None, float]:
    """Read and check number of volumes, loss (None if it was kept) and seconds.

    Raises:
        PayloadError: names the first value that is unknown, missing, or out of its range.
    """
    metrics = content.metric_records.get("metrics", MetricRecord({}))
    kept = loss == "kept" or (loss == "either" and "loss" not in metrics)
    if unknown := sorted(metrics.keys() - {"n_volumes", "seconds", *(() if kept else ("loss",))}):
        raise PayloadError(f"metrics: has unknown value {unknown[0][:40]!r}")
    n_volumes, mean = check_training(metrics.get("n_volumes"), 0.0 if kept else metrics.get("loss"))
    if n_volumes > most_volumes:
        raise PayloadError(f"n_volumes: got {n_volumes}, the site registered {most_volumes}")
    return n_volumes, None if kept else mean, read_seconds(metrics)


def read_seconds(metrics: MetricRecord) -> float:
    """Read how long a site worked; raises PayloadError if it is no finite number from 0."""
    seconds = metrics.get("seconds")
    if type(seconds) is not float or not 0 <= seconds < math.inf:
        raise PayloadError("seconds: expected a number")
    return seconds
