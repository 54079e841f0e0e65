"""The form of results.json, schema 3: the keys that the report reads, and their types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from itertools import pairwise
from typing import Any

from sahfl.adapters.methods import ADAPTERS
from sahfl.errors import DataError
from sahfl.report.names import PARTS, STANDARD, ZERO_SHOT
from sahfl.report.tables import METRICS, WITHHELD

SCHEMA = 3
"""The schema of results.json that this version reads."""
REMAKE = "delete results.json and go on with the run, which makes it again"
MOST_PROBLEMS = 20
"""Further problems are only counted."""

TEXT, FLAG, WHOLE, NUMBER = (str,), (bool,), (int,), (int, float)
TEXT_OR_NONE, FLAG_OR_NONE, WHOLE_OR_NONE, NUMBER_OR_NONE = (
    (*kinds, type(None)) for kinds in (TEXT, FLAG, WHOLE, NUMBER)
)
MAPPING = (dict,)
EACH = "*"
"""In the place of a key: each value of the mapping has this form."""
LARGEST = 1e18
"""Numbers beyond it are damage: no count, time or size comes near."""
HISTOGRAM = object()
"""Edges in mL and a square matrix of counts, or None."""
MOMENT = datetime
"""ISO 8601, or None."""

_INTERVAL = {"n": WHOLE_OR_NONE, "low": NUMBER_OR_NONE, "high": NUMBER_OR_NONE}
_ESTIMATE = {
    **{"stratum": TEXT, **_INTERVAL, "trainings": WHOLE, "withheld": FLAG},
    **dict.fromkeys(("mean", "sd", "median"), NUMBER_OR_NONE),
}
_GAP = {
    **{"stratum": TEXT, **_INTERVAL, "trainings": WHOLE},
    **dict.fromkeys(("difference", "p", "p_holm"), NUMBER_OR_NONE),
}
_LOST = {"site": TEXT, "reason": TEXT}
_METHOD = {
    **{"id": TEXT, "method": TEXT, "rank": WHOLE_OR_NONE, "aggregation": TEXT_OR_NONE},
    **{"trained_at": TEXT_OR_NONE, "start": TEXT_OR_NONE, "part": TEXT_OR_NONE, "plain": TEXT_OR_NONE},
    "rounds": WHOLE_OR_NONE,
    **{"trainable": WHOLE, "magnitudes": (dict, type(None)), "bytes_up_per_round": NUMBER, "failed": TEXT_OR_NONE},
    "learning_rates": [{"rate": NUMBER, "n": WHOLE}],
    **{"not_evaluated": [{"fold": WHOLE, **_LOST}], "repeats": [{"repeat": WHOLE, "dice": NUMBER_OR_NONE}]},
    **{"sd_repeats": NUMBER_OR_NONE, "withheld": [{"site": TEXT, "n_folds": WHOLE, **dict.fromkeys(WITHHELD, WHOLE)}]},
}
_MEASURED = {
    "metrics": {name: {"overall": _ESTIMATE, "by_volume": [_ESTIMATE], "by_extent": [_ESTIMATE]} for name in METRICS},
    "no_blood": {"n": WHOLE_OR_NONE, "n_false_positive": NUMBER_OR_NONE},
    "volume": {
        **{"n": WHOLE_OR_NONE, "histogram": HISTOGRAM},
        **dict.fromkeys(("pearson_r", "icc", "bias_ml", "loa_low_ml", "loa_high_ml"), NUMBER_OR_NONE),
    },
    "by_site": [{"site": TEXT, "n": WHOLE, "dice": NUMBER_OR_NONE}],
}
"""Additional keys of a method that did not fail."""
_COMPARISON = {
    **{"method": TEXT, "reference": TEXT, "verdict": TEXT, "p_margin_holm": NUMBER_OR_NONE},
    **{"dice": [NUMBER_OR_NONE], "differs": [TEXT]},
    "metrics": {name: {"overall": _GAP, "by_volume": [_GAP], "by_extent": [_GAP]} for name in METRICS},
}
_PAIR = {
    **{"name": TEXT, "verdict": TEXT, **_INTERVAL, "trainings": WHOLE},
    **dict.fromkeys(("difference", "p_holm"), NUMBER_OR_NONE),
}
_FINDING = {
    **{**dict.fromkeys(("id", "claim", "wanted", "verdict", "text"), TEXT), "paper": TEXT_OR_NONE},
    **{"supported": FLAG_OR_NONE, "difference": NUMBER_OR_NONE, **_INTERVAL, "pairs": [_PAIR]},
}
_SITE_GAIN = {
    **{**dict.fromkeys(("site", "method", "reference", "verdict"), TEXT), **_INTERVAL, "trainings": WHOLE},
    **dict.fromkeys(("difference", "dice", "dice_alone"), NUMBER_OR_NONE),
}
_OVERLAY = {
    **{"case": TEXT, "method": TEXT, "site": TEXT, "fold": WHOLE, "png": TEXT},
    **dict.fromkeys(("dice", "volume_ml", "predicted_ml"), NUMBER_OR_NONE),
}
_USED = {"site": TEXT, "n_volumes": WHOLE, "loss": NUMBER_OR_NONE, "bytes_up": NUMBER, "bytes_down": NUMBER}
_ROUND = {
    **{"stage": TEXT, "method": TEXT_OR_NONE, "fold": WHOLE_OR_NONE, "round": WHOLE, "attempt": WHOLE},
    **{"committed": FLAG, "used": [_USED], "refused": [_LOST], "missing": [_LOST]},
}
_SITE = {
    **{"site": TEXT, "role": TEXT, "source": TEXT, "out": TEXT_OR_NONE, "fold_sizes": [WHOLE]},
    "findings": {EACH: WHOLE_OR_NONE},
    **dict.fromkeys(("n_volumes", "n_patients", "n_positive", "n_refused"), WHOLE),
    "volume_ml": NUMBER_OR_NONE,
}
_DICE_OF_ROUND = {"id": TEXT, **_INTERVAL, "trainings": WHOLE, "mean": NUMBER_OR_NONE}
_BY_ROUND = {"round": WHOLE, "methods": [_DICE_OF_ROUND]}
FORM: dict[str, Any] = {
    **{"sahfl": TEXT, "name": TEXT, "fingerprint": TEXT, "study": MAPPING, "environment": MAPPING},
    **{"started": MOMENT, "finished": MOMENT, "seconds": NUMBER, "interruptions": WHOLE},
    "sites": [_SITE],
    "base": {"sha256": TEXT, "parameters": WHOLE, "bytes": NUMBER, "mode": TEXT},
    "evaluation": {"threshold": NUMBER, "replicates": WHOLE},
    "methods": [_METHOD],
    "comparisons": [_COMPARISON],
    "correction": {"n": {"dice": WHOLE}, "margin": NUMBER, "level": NUMBER},
    "gains": [_SITE_GAIN],
    "findings": [_FINDING],
    "rounds": [_ROUND],
}
"""A mapping has at least these keys, a list has items of this form, any other value has one of these types."""

OPTIONAL: dict[str, Any] = {
    **{"cells": {"total": WHOLE, "reused": WHOLE}, "overlays": [_OVERLAY]},
    **{"support": {"notes": [{"policy": TEXT, EACH: (*TEXT, *WHOLE_OR_NONE)}]}, "hostile": {EACH: TEXT}},
    "by_round": [_BY_ROUND],
}
"""Keys of some runs only: cells that can be reused, cases whose pictures may be released, folds with few patients,
hostile sites, Dice after earlier rounds."""


def check_results(results: Mapping[str, Any]) -> None:
    """Check that this version can read the results.

    Raises:
        DataError: they have another schema number, or differ from ``FORM``.
    """
    if (schema := results.get("schema")) != SCHEMA:
        known = isinstance(schema, int) and not isinstance(schema, bool) and schema < SCHEMA
        advice = REMAKE if known else "use the sahfl that wrote them"
        raise DataError(f"results: got schema {schema!r}, expected {SCHEMA}; {advice}")
    if problems := tuple(form_problems(results)):
        listed = "\n".join(f"  {problem}" for problem in problems[:MOST_PROBLEMS])
        more = f"\n  and {len(problems) - MOST_PROBLEMS} more" if len(problems) > MOST_PROBLEMS else ""
        raise DataError(f"results: {len(problems)} problem(s); {REMAKE}\n{listed}{more}")


def form_problems(results: Mapping[str, Any]) -> Iterator[str]:
    """All differences of results from ``FORM``, as ``key.path: is missing`` or ``got ..., expected ...``."""
    found = tuple(_problems(results, FORM | {key: OPTIONAL[key] for key in OPTIONAL if key in results}, ""))
    yield from found
    if not found:
        for index, method in enumerate(results["methods"]):
            if method["failed"] is None:
                yield from _problems(method, _MEASURED, f"methods.{index}")
            if (name := method.get("method")) not in (*STANDARD, ZERO_SHOT, *ADAPTERS):
                yield f"methods.{index}.method: got {name!r}, expected a method of this version of sahfl"
            if (part := method["part"]) not in PARTS and method["trained_at"] is None:
                yield f"methods.{index}.part: got {part!r}, expected null or {', '.join(filter(None, PARTS))}"


def _problems(value: Any, form: Any, path: str) -> Iterator[str]:
    kinds = (dict,) if isinstance(form, dict) else (list,) if isinstance(form, list) else form
    if kinds is MOMENT:
        if not _is_moment(value):
            yield f"{path}: got {value!r}, expected a time (ISO 8601)"
        return
    if kinds is HISTOGRAM:
        if value is not None and not _is_histogram(value):
            yield f"{path}: expected edges_ml, and counts with as many rows as columns as there are bins"
        return
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        yield f"{path}: got {type(value).__name__}, expected {expected}"
    elif isinstance(value, int | float) and not abs(value) <= LARGEST:
        yield f"{path}: got a number that is not finite, or beyond {LARGEST:g}"
    elif isinstance(form, dict):
        required = {key: part for key, part in form.items() if key != EACH}
        others = dict(value).keys() - required.keys() if EACH in form else ()
        for key, part in (required | dict.fromkeys(others, form.get(EACH))).items():
            below = f"{path}.{key}" if path else key
            if key in value:
                yield from _problems(value[key], part, below)
            else:
                yield f"{below}: is missing"
    elif isinstance(form, list):
        for index, item in enumerate(value):
            yield from _problems(item, form[0], f"{path}.{index}")


def _is_moment(value: Any) -> bool:
    try:
        return value is None or bool(datetime.fromisoformat(value))
    except (TypeError, ValueError):
        return False


def _is_histogram(value: Any) -> bool:
    """Test a histogram: its edges include the two outer ones, or only those between bins."""
    if not isinstance(value, dict) or not all(isinstance(value.get(key), list) for key in ("edges_ml", "counts")):
        return False
    edges, counts = value["edges_ml"], value["counts"]
    numbers = [*edges, *(count for row in counts if isinstance(row, list) for count in row)]
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
        return False
    square = all(isinstance(row, list) and len(row) == len(counts) for row in counts)
    rising = all(low < high for low, high in pairwise(edges))
    return square and rising and len(edges) >= 2 and len(counts) in (len(edges) - 1, len(edges) + 1)
