"""Which sections a settings file can have, and where: the tree of the classes that read it."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from sahfl.section import OneOf, Place, Section, SectionOf


def sections_at(model: type[Section], settings: Any, place: Place) -> list[type[Section]]:
    """The sections that may stand at a place; the one that ``source`` or ``method`` chooses, if there are several."""
    kinds: list[Any] = [model]
    here = settings
    for part in (*place, None):
        sections = _chosen([kind for kind in kinds if _is_section(kind)], here)
        if part is None:
            return sections
        inner = [_annotation(section, part) for section in sections]
        inner += [_inside(kind) for kind in kinds if not _is_section(kind)]
        kinds = [kind for given in inner for kind in _kinds(given)]
        here = here.get(part) if isinstance(here, dict) else here[part] if _has(here, part) else None
    return []


def _has(here: Any, part: Any) -> bool:
    return isinstance(here, list) and isinstance(part, int) and part < len(here)


def is_section(section: type[Section], name: str) -> bool:
    """Whether a setting is a section, not a value."""
    return all(map(_is_section, _kinds(_annotation(section, name))))


def _annotation(section: type[Section], name: Any) -> Any:
    """The annotation of a field with what ``Annotated`` adds to it; None if the section has no such field."""
    field = section.model_fields.get(name) if isinstance(name, str) else None
    if field is None:
        return None
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def _inside(kind: Any) -> Any:
    """The kind of the entries of a list or of the values of a mapping."""
    arguments = get_args(kind)
    if get_origin(kind) is dict:
        return arguments[1]
    return Union[tuple(part for part in arguments if part is not ...)] if get_origin(kind) in (tuple, list) else None  # noqa: UP007


def _kinds(annotation: Any) -> Iterator[Any]:
    """The members of an annotation without ``Annotated`` and unions."""
    if get_origin(annotation) is Annotated:
        kind, *marks = get_args(annotation)
        listed = [mark for mark in marks if isinstance(mark, SectionOf)]
        yield from listed[0].sections() if listed else _kinds(kind)
    elif get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _kinds(part)
    elif annotation is not None and annotation is not type(None):
        yield annotation


def _chosen(sections: list[type[Section]], value: Any) -> list[type[Section]]:
    for name in ("source", "method"):
        if isinstance(value, dict) and name in value:
            fitting = [section for section in sections if _takes(section, name, value[name])]
            return fitting or sections
    return sections


def _takes(section: type[Section], name: str, tag: Any) -> bool:
    field = section.model_fields.get(name)
    if field is None:
        return False
    names = [tag_ for mark in field.metadata if isinstance(mark, OneOf) for tag_ in mark.names()]
    return tag in (names or get_args(field.annotation) if get_origin(field.annotation) is Literal else names)


def all_sections(model: type[Section], place: Place) -> Iterator[tuple[Place, type[Section]]]:
    """Every section below a model with its place, in which ``*`` is any entry or key."""
    yield place, model
    for name in model.model_fields:
        waiting = [((*place, name), _annotation(model, name))]
        while waiting:
            at, annotation = waiting.pop()
            for kind in _kinds(annotation):
                if _is_section(kind) and kind is not model:
                    yield from all_sections(kind, at)
                elif (inner := _inside(kind)) is not None:
                    waiting.append(((*at, "*"), inner))
