"""Lines of a run's journal: what a program reads back of an event, so that a damaged line is told from a whole one."""

from __future__ import annotations

import json
from typing import Annotated, Any, TypeGuard

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Strict


def _text(value: object) -> object:
    if value is not None and not isinstance(value, str):
        raise ValueError("expected a text")  # not a number of seconds
    return value


Moment = Annotated[AwareDatetime, Strict(False), BeforeValidator(_text)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class _Line(_Strict):
    event: str
    at: Moment | None = None


class _Site(_Strict):
    site: str


class _Training(_Line):
    stage: str
    method: str | None
    fold: int | None
    round: int
    committed: bool
    used: list[_Site]


class _Described(_Line):
    site: str
    data: str


class _Out(_Line):
    site: str
    reason: str


class _Rate(_Line):
    method: str
    fold: int
    rate: float


class _Reused(_Line):
    cell: str


class _Damaged(_Line):
    lines: int


_FORMS: dict[str, type[_Line]] = {
    "round": _Training,
    "local_phase": _Training,
    "described": _Described,
    "site_out": _Out,
}
_FORMS |= {"rate_chosen": _Rate, "reused": _Reused, "journal_damaged": _Damaged}


def read_line(text: str) -> dict[str, Any] | None:
    """The line of an event with all that is read back of it; None if the text is no such line."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return record if is_event(record) else None


def is_event(record: Any) -> TypeGuard[dict[str, Any]]:
    """Whether a value, as JSON gives it, is an event with all that is read back of it."""
    try:
        _FORMS.get(record["event"], _Line).model_validate(record)
    except (ValueError, TypeError, KeyError):  # ValidationError is a ValueError
        return False
    return isinstance(record, dict)
