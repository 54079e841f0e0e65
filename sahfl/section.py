"""Parts of a YAML file as typed values, and reading them with all problems in one message."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo
from pydantic_core import PydanticKnownError

from sahfl.errors import ConfigError

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]
"""Lower-case letters, digits, ``-`` and ``_``, because names become folder names."""


def _beside_the_file(path: Path, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder")
    return path if folder is None else (folder / path).resolve()


PathInFile = Annotated[Path, AfterValidator(_beside_the_file)]
"""A path in a settings file; a relative one starts at the file's folder."""


class Section(BaseModel):
    """A part of a YAML file: typed, frozen, and strict about unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def one_of(names: Callable[[], Iterable[str]]) -> BeforeValidator:
    """Like a ``Literal`` of the names that a table has when the setting is read."""

    def check(value: Any) -> Any:
        known = list(names())
        if value not in known:
            *others, last = map(repr, known)
            expected = f"{', '.join(others)} or {last}" if others else last
            raise PydanticKnownError("literal_error", {"expected": expected})
        return value

    return BeforeValidator(check)


SectionT = TypeVar("SectionT", bound=Section)


class _Loader(yaml.SafeLoader):
    """YAML in which a key that is given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for key, _ in node.value if keys.count(key.value) > 1 and key.value != "<<"]:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {twice[-1].value!r} is given twice", twice[-1].start_mark
            )
        return super().construct_mapping(node, deep)


def parse(model: type[SectionT], settings: Any, *, where: str, folder: Path | None = None) -> SectionT:
    """Check settings against a section.

    Args:
        model: the section.
        settings: the content of a file.
        where: the file's name, for messages.
        folder: where relative paths (``PathInFile``) start; without it they stay as they are.

    Raises:
        ConfigError: all problems in one message, each with its key, the value found and the expected one.
    """
    try:
        # From JSON, strict mode takes a list for a tuple and a string for a path.
        text = json.dumps(settings, default=str)
    except (TypeError, ValueError, RecursionError) as error:  # a date as a key, an anchor that contains itself
        raise ConfigError(f"{where}: holds what a settings file cannot: {error}") from error
    try:
        return model.model_validate_json(text, context={"folder": folder})
    except ValidationError as error:
        raise ConfigError(f"{where}: {_describe(error)}") from error


def load(model: type[SectionT], path: Path) -> SectionT:
    """Read a settings file; relative paths in it start at the file's folder.

    Raises:
        ConfigError: the file cannot be read, or has problems: every unknown key and bad value, in one message.
    """
    return parse(model, read_mapping(path), where=str(path), folder=path.parent)


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        ConfigError: it cannot be read, is not YAML, gives a key twice, or holds something else than a mapping.
    """
    try:
        settings = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise ConfigError(f"{path}: cannot be read ({reason})") from error
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{place}: is not YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: got {type(settings).__name__}, expected a mapping of settings")
    return settings


def _describe(error: ValidationError) -> str:
    problems = [
        f"  {'.'.join(map(str, problem['loc'])) or 'study'}: {problem['msg']}{_found(problem)}"
        for problem in error.errors(include_url=False)
    ]
    return f"{len(problems)} problem(s)\n" + "\n".join(problems)


def _found(problem: Any) -> str:
    if problem["type"] == "missing" or isinstance(problem["input"], (dict, list)):
        return ""
    return f", got {problem['input']!r}"
