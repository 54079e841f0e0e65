"""Parts of a YAML file as typed values."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationInfo,
)
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

NAME = r"^[a-z0-9][a-z0-9_-]{0,39}$"
"""Pattern of a name."""
Name = Annotated[str, Field(pattern=NAME)]
"""Lower-case letters, digits, ``-`` and ``_``, because names become folder names."""
Place = tuple[str | int, ...]
"""Keys and list positions from the top of a file to a setting."""


def _beside_the_file(path: Path, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder")
    # Path.resolve ends with a RuntimeError at a link that leads to itself; here whoever opens the file names it.
    return path if folder is None else Path(os.path.realpath(folder / path))


PathInFile = Annotated[Path, AfterValidator(_beside_the_file)]
"""A path in a settings file; a relative one starts at the file's folder."""


class Section(BaseModel):
    """A part of a YAML file: typed, frozen, and strict about unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


SectionT = TypeVar("SectionT", bound=Section)


def is_none(value: object) -> bool:
    """Whether a setting is left out of what is written (``exclude_if``), so that what was written before stays."""
    return value is None


def is_empty(value: object) -> bool:
    """The same for a setting that is a list."""
    return not value


@dataclass(frozen=True)
class OneOf:
    """Like a ``Literal`` of the names that a table has when the setting is read; a mark inside ``Annotated``."""

    names: Callable[[], Iterable[str]]
    """The names of the table."""

    def _check(self, value: Any) -> Any:
        known = list(self.names())
        if value not in known:
            *others, last = map(repr, known)
            expected = f"{', '.join(others)} or {last}" if others else last
            raise PydanticKnownError("literal_error", {"expected": expected})
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.names())}


@dataclass(frozen=True)
class SectionOf:
    """The sections of which a setting holds one; a mark inside ``Annotated``, for messages and schemas."""

    sections: Callable[[], Sequence[type[Section]]]
    """The sections."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [handler(section.__pydantic_core_schema__) for section in self.sections()]}
