"""The form of results.json, schema 1: which keys the report reads, and what lies under them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

TEXT, FLAG, WHOLE, NUMBER = (str,), (bool,), (int,), (int, float)
TEXT_OR_NONE, WHOLE_OR_NONE, NUMBER_OR_NONE = ((*kinds, type(None)) for kinds in (TEXT, WHOLE, NUMBER))
MAPPING = (dict,)
MOMENT = datetime
"""ISO 8601, or None."""

_INTERVAL = {"n": WHOLE, "low": NUMBER_OR_NONE, "high": NUMBER_OR_NONE}
_DICE = {"stratum": TEXT, "dice": NUMBER_OR_NONE, "sd": NUMBER_OR_NONE, **_INTERVAL}
_GAIN = {"difference": NUMBER_OR_NONE, **_INTERVAL}
_LOST = {"site": TEXT, "reason": TEXT}
_METHOD = {
    **{"id": TEXT, "method": TEXT, "rank": WHOLE_OR_NONE, "trainable": WHOLE, "bytes_up_per_round": NUMBER},
    **{"failed": TEXT_OR_NONE, "not_evaluated": [{"fold": WHOLE, **_LOST}]},
}
_MEASURED = {
    "overall": _DICE,
    "strata": [_DICE],
    "no_blood": {"n": WHOLE, "n_false_positive": WHOLE},
    "volume": {
        "n": WHOLE,
        **dict.fromkeys(("pearson_r", "bias_ml", "loa_low_ml", "loa_high_ml"), NUMBER_OR_NONE),
    },
    "by_site": [{"site": TEXT, "n": WHOLE, "dice": NUMBER_OR_NONE}],
}
"""What a method has besides, unless it failed."""
_USED = {"site": TEXT, "n_volumes": WHOLE, "loss": NUMBER_OR_NONE, "bytes_up": NUMBER, "bytes_down": NUMBER}
_ROUND = {
    **{"stage": TEXT, "method": TEXT_OR_NONE, "fold": WHOLE_OR_NONE, "round": WHOLE, "attempt": WHOLE},
    **{"committed": FLAG, "used": [_USED], "refused": [_LOST], "missing": [_LOST]},
}
_SITE = {
    **{"site": TEXT, "role": TEXT, "source": TEXT, "out": TEXT_OR_NONE, "findings": MAPPING, "fold_sizes": [WHOLE]},
    **dict.fromkeys(("n_volumes", "n_patients", "n_positive", "n_refused"), WHOLE),
    "volume_ml": NUMBER_OR_NONE,
}
FORM: dict[str, Any] = {
    **{"sahfl": TEXT, "name": TEXT, "fingerprint": TEXT, "study": MAPPING, "environment": MAPPING},
    **{"started": MOMENT, "finished": MOMENT, "seconds": NUMBER, "interruptions": WHOLE},
    "sites": [_SITE],
    "base": {"sha256": TEXT, "parameters": WHOLE, "bytes": NUMBER, "mode": TEXT},
    "evaluation": {"threshold": NUMBER, "replicates": WHOLE},
    "methods": [_METHOD],
    "comparisons": [{"method": TEXT, "reference": TEXT, **_GAIN, "strata": [{"stratum": TEXT, **_GAIN}]}],
    "rounds": [_ROUND],
}
"""A mapping holds these keys at least, a list items of this form, any other value one of these types."""


def form_problems(results: Mapping[str, Any]) -> Iterator[str]:
    """Every place at which results depart from ``FORM``, as ``key.path: is missing`` or ``got ..., expected ...``."""
    found = tuple(_problems(results, FORM, ""))
    yield from found
    if not found:
        for index, method in enumerate(results["methods"]):
            if method["failed"] is None:
                yield from _problems(method, _MEASURED, f"methods.{index}")


def _problems(value: Any, form: Any, path: str) -> Iterator[str]:
    kinds = (dict,) if isinstance(form, dict) else (list,) if isinstance(form, list) else form
    if kinds is MOMENT:
        if not _is_moment(value):
            yield f"{path}: got {value!r}, expected a time (ISO 8601)"
        return
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        yield f"{path}: got {type(value).__name__}, expected {expected}"
    elif isinstance(form, dict):
        for key, part in form.items():
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
