"""Reading a settings file: YAML 1.2, as a section, with all problems and their lines in one message."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml
from pydantic import ValidationError

from sahfl import regular_files
from sahfl.errors import ConfigError, SahflError
from sahfl.problems import describe, where_text
from sahfl.regular_files import SETTINGS_BYTES
from sahfl.section import Place, Section, SectionT

MOST_LEVELS = 32
"""Most levels of settings within settings; the deepest setting of a study has six."""


@dataclass(frozen=True)
class SettingsFile:
    """The content of a settings file, and where each setting stands in it."""

    path: Path
    """The file."""
    content: dict[str, Any]
    """The mapping in the file."""
    lines: Mapping[Place, int] = field(default_factory=dict)
    """Line of each key and list entry, counted from 1."""


class _NotSettings(yaml.MarkedYAMLError):
    """YAML that no settings file needs, and that could fill the memory."""


class _Loader(yaml.SafeLoader):
    """YAML with the scalars of the core schema of YAML 1.2, in which a key that is given twice is an error.

    PyYAML follows YAML 1.1, which reads ``1e-3`` and ``0o17`` as text, ``1:30`` as 90, and ``no`` as false.
    Source: YAML 1.2.2, section 10.3.2.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]  # none of YAML 1.1
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Read a value; one that repeats another place (an alias), or lies too deep, is an error.

        Nine levels of aliases, each of nine to the one before, would be read as a billion values.
        """
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        mark = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            found = f"got the alias *{event.anchor}, expected each value in full"
            remedy = f"write what stands at &{event.anchor} here too"
            raise _NotSettings(None, None, f"{found}; {remedy}", mark)
        self.depth += 1
        if self.depth > MOST_LEVELS:
            problem = f"got more than {MOST_LEVELS} levels of settings within settings; settings need fewer"
            raise _NotSettings(None, None, problem, mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        times = Counter(key.value for key in keys)
        if twice := [key for key in keys if times[key.value] > 1 and key.value != "<<"]:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {twice[-1].value!r} is given twice", twice[-1].start_mark
            )
        self.flatten_mapping(node)
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):  # a name is text: 01 is another name than 1
                key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Read a whole number of YAML 1.2: decimal, ``0o`` and ``0x``."""
        text = self.construct_scalar(node)
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        """Read a number of YAML 1.2, with or without a point."""
        text = self.construct_scalar(node).lower()
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))


_SCALARS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
)
for _name, _form, _first in _SCALARS:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_form})$"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)


class _Dumper(yaml.SafeDumper):
    """YAML that ``_Loader`` reads back as it was; an entry of a list stands on one line if it fits."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        """Write each value in full."""
        return True

    def represent_list(self, data: Iterable[Any]) -> yaml.SequenceNode:
        node = super().represent_list(data)
        for entry in node.value:
            if isinstance(entry, yaml.CollectionNode):
                entry.flow_style = True
        return node

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Write a text with escapes if it does not print as it is: PyYAML loses a next-line character elsewhere."""
        style = None if data.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_Dumper.add_representer(list, _Dumper.represent_list)
_Dumper.add_representer(str, _Dumper.represent_str)

_REMEDIES = {
    "'\\t'": "; indent with spaces, not with tabs",
    "mapping values are not allowed": "; put a text that contains ': ' between quotes",
}
"""What to do about a problem that the parser names."""


def read_settings(path: Path) -> SettingsFile:
    """Read a YAML file that holds a mapping.

    Raises:
        ConfigError: it cannot be read, is not YAML, gives a key twice, or holds something else than a mapping.
    """
    try:
        return read_text(regular_files.read_text(path, most=SETTINGS_BYTES), path)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        text = "is a folder, expected a settings file (YAML); sahfl init writes one for a folder of scans"
        raise ConfigError(f"{path}: {text if path.is_dir() else f'cannot be read ({reason})'}") from error


def read_text(text: str, path: Path) -> SettingsFile:
    """Read the text of a YAML file that holds a mapping, as ``read_settings``; ``path`` is for messages."""
    try:
        loader = _Loader(text)
        top = loader.get_single_node()
        content = None if top is None else loader.construct_document(top)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        problem = str(getattr(error, "problem", error))
        remedy = next((remedy for found, remedy in _REMEDIES.items() if found in problem), "")
        what = "" if isinstance(error, _NotSettings) else "is not YAML: "
        raise ConfigError(f"{path}{place}: {what}{problem}{remedy}") from error
    except ValueError as error:  # a number of thousands of digits
        raise ConfigError(f"{path}: is not YAML: {error}") from error
    except (LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: is not YAML: a value does not fit its tag (!!...); leave the tag out") from error
    if top is None or not isinstance(content, dict):
        found = "is empty" if content is None else f"got {type(content).__name__}"
        raise ConfigError(f"{path}: {found}, expected a mapping of settings (lines like name: value)")
    return SettingsFile(path, content, dict(_lines(top)))


def as_yaml(section: Section) -> str:
    """Text of a settings file that gives every setting of a section."""
    content = section.model_dump(mode="json")
    return yaml.dump(content, Dumper=_Dumper, default_flow_style=None, sort_keys=False, allow_unicode=True, width=110)


def quoted(text: str) -> str:
    """A text between quotes, so that YAML reads ``null``, ``1e3``, a colon or a control character as text."""
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=math.inf).rstrip("\n")


def _lines(top: yaml.Node) -> Iterator[tuple[Place, int]]:
    """The line of each key and entry."""
    waiting: list[tuple[Place, yaml.Node]] = [((), top)]
    while waiting:
        place, node = waiting.pop()
        if isinstance(node, yaml.MappingNode):
            parts = [(key.value, key, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)]
        elif isinstance(node, yaml.SequenceNode):
            parts = [(number, value, value) for number, value in enumerate(node.value)]
        else:
            continue
        for name, marked, value in parts:
            yield (*place, name), marked.start_mark.line + 1
            waiting.append(((*place, name), value))


def parse(
    model: type[SectionT],
    settings: Any,
    *,
    where: str,
    folder: Path | None = None,
    lines: Mapping[Place, int] | None = None,
) -> SectionT:
    """Check settings against a section.

    Args:
        model: the section.
        settings: the content of a file.
        where: the file's name, for messages.
        folder: where relative paths (``PathInFile``) start; without it they stay as they are.
        lines: the line of each setting, for messages.

    Raises:
        ConfigError: all problems in one message, each with its line, its key, the value found and the expected one.
    """
    try:
        # From JSON, strict mode takes a list for a tuple and a string for a path.
        text = json.dumps(settings, default=str)
    except (TypeError, ValueError, RecursionError) as error:  # a key that JSON does not have
        raise ConfigError(f"{where}: holds what a settings file cannot: {error}") from error
    try:
        return model.model_validate_json(text, context={"folder": folder})
    except ValidationError as error:
        n_problems, problems = describe(error, model, json.loads(text), lines)
    count = f"{n_problems} problem{'s' if n_problems > 1 else ''}"
    raise ConfigError("\n  ".join([f"{where}: {count}", *problems]))


def load(model: type[SectionT], path: Path) -> SectionT:
    """Read a settings file; relative paths in it start at the file's folder.

    Raises:
        ConfigError: the file cannot be read, or has problems: every unknown key and bad value, in one message.
    """
    file = read_settings(path)
    return parse(model, file.content, where=str(path), folder=path.parent, lines=file.lines)


def load_trusted(model: type[SectionT], path: Path) -> SectionT:
    """Read a file that decides whom this machine trusts, as ``load``.

    Raises:
        ConfigError: as ``load``.
        UnfitFile: others than its owner may change it.
    """
    settings = load(model, path)
    regular_files.check_writers(path)
    return settings


@contextmanager
def about_setting(*place: str) -> Iterator[None]:
    """Mark errors of the block as being about the setting at this place, for ``naming_lines``."""
    try:
        yield
    except SahflError as error:
        error.settings = error.settings or {place: str(error)}
        raise


@contextmanager
def naming_lines(file: Path | str) -> Iterator[None]:
    """Let errors of the block that are about settings name the file, and the line and name of each setting.

    ``file`` is a text for settings that stand in no file.
    """
    try:
        yield
    except SahflError as error:
        if error.settings:
            lines = read_settings(file).lines if isinstance(file, Path) else None
            each = [f"{file}, {where_text(place, lines)}: {text}" for place, text in error.settings.items()]
            error.args, error.settings = ("\n".join(each),), {}
        raise
