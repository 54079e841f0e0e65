"""Write ``reference.md`` and the JSON schemas of the settings files, from the configuration classes.

Example: python docs/reference.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from sahfl.config.files import KINDS, Kind
from sahfl.problems import FORMS
from sahfl.schemas import schema_of
from sahfl.section import Section
from sahfl.section_tree import all_sections

PAGE = Path(__file__).with_name("reference.md")
ABOUT: dict[Kind, str] = {
    "study": "What is trained, on which scans, and how it is tested: `sahfl simulate`, `sahfl study`.",
    "site": "One hospital: its scans, and what it allows: `sahfl check`, `sahfl-client`.",
    "server": "The coordinating centre's server: `sahfl-server`.",
    "consortium": "Who takes part, for keys and certificates: `sahfl provision`.",
}
HEAD = """\
# Settings

You write a settings file and want to look up a setting. `sahfl check FILE` prints a file with every default filled in.
A wrong file gives one message that names each problem with its line.

An editor completes and checks these files by their JSON schemas, in the folder `sahfl/schemas`. `sahfl init` writes the
line that names the schema: `# yaml-language-server: $schema=PATH/study.json`.

This page and the schemas are made from the code by `python docs/reference.py`. Numbers are written as in YAML 1.2:
`1e-3` is a number, `no` is text. A relative path starts at the folder of its file.
"""


def page() -> str:
    """The page as Markdown: a chapter for each kind of file, a table for each section."""
    parts = [HEAD]
    for kind, text in ABOUT.items():
        parts.append(f"## {kind.capitalize()} file\n\n{text}\n")
        parts += [_section(kind, place, section) for place, section in all_sections(KINDS[kind], ())]
    return "\n".join(parts)


def schemas() -> dict[Path, str]:
    """The content of each schema's file."""
    return {schema_of(kind): json.dumps(_schema(kind), indent=1) + "\n" for kind in KINDS}


def _schema(kind: Kind) -> dict[str, Any]:
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | KINDS[kind].model_json_schema()


def _section(kind: str, place: tuple[str | int, ...], section: type[Section]) -> str:
    schema = section.model_json_schema()
    names = ".".join("NAME" if part == "*" else str(part) for part in place)
    tag = _tag(schema)
    title = f"### {kind}: {names}{tag}\n\n" if names else ""
    about = (section.__doc__ or "").split("\n\n")[0].replace("\n", " ").replace("``", "`")
    rows = [_row(name, schema, section) for name in section.model_fields]
    lines = [f"{title}{about}\n", "| setting | value | default | meaning |", "|---|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


def _tag(schema: dict[str, Any]) -> str:
    """What chooses this section among several: its ``source`` or ``method``."""
    for name in ("source", "method"):
        found = schema["properties"].get(name, {})
        if choices := [found["const"]] if "const" in found else found.get("enum", []):
            return f", {name} {', '.join(choices)}"
    return ""


def _row(name: str, schema: dict[str, Any], section: type[Section]) -> str:
    field, found = section.model_fields[name], schema["properties"][name]
    about = (field.description or "").replace("\n", " ").replace("``", "`").replace("|", "\\|")
    default = "" if field.is_required() else _default(field.get_default(call_default_factory=True))
    return f"| `{name}` | {_value(found, schema.get('$defs', {}))} | {default} | {about} |"


def _default(value: Any) -> str:
    if value is PydanticUndefined or isinstance(value, Section):
        return "see below"
    if hasattr(value, "model_dump"):
        return "see below"
    text = json.dumps(value, default=str)
    return f"`{text}`".replace('"', "") if len(text) <= 60 else "see the example"


def _value(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """What may stand there, in words."""
    if "$ref" in schema:
        target = definitions[schema["$ref"].rsplit("/", 1)[1]]
        return "settings" if "properties" in target else _value(target, definitions)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_value(one, definitions) for one in schema["anyOf"]))
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{one}`" for one in schema["enum"])
    kind = schema.get("type")
    if kind == "array":
        inner = schema.get("items") or next(iter(schema.get("prefixItems", [{}])))
        count = schema.get("minItems") if schema.get("minItems") == schema.get("maxItems") else None
        return f"list of {f'{count} x ' if count else ''}{_value(inner, definitions)}"
    if kind == "object":
        return "settings" if "properties" in schema else "a value for each name"
    words = {"integer": "whole number", "number": "number", "boolean": "true, false", "null": "null"}
    text = words.get(str(kind), "path" if schema.get("format") == "path" else "text")
    if pattern := schema.get("pattern"):
        return FORMS.get(pattern, text)
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    bounds = [f"from {low}" if low is not None else f"above {above}" if above is not None else ""]
    bounds.append(f"to {high}" if high is not None else f"below {below}" if below is not None else "")
    return " ".join([text, *filter(None, bounds)])


def main() -> None:
    """Write the page and the schemas."""
    PAGE.write_text(page(), encoding="utf-8")
    for path, text in schemas().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
