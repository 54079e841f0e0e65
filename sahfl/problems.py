"""The problems of a settings file in words: where, what was found, what is expected, and what was probably meant."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import groupby
from typing import Any

from pydantic import ValidationError

from sahfl.meant import meant
from sahfl.section import NAME, Place, Section
from sahfl.section_tree import all_sections, is_section, sections_at

MOST_SHOWN = 80
"""Characters of a wrong value that a message repeats."""
MOST_PROBLEMS = 100
"""Problems of one file that a message explains."""
FORMS = {
    NAME: "1 to 40 lower-case letters, digits, '-' and '_'",
    r"^[0-9a-f]{64}$": "64 hexadecimal digits",
    r"^(auto|cpu|cuda(:[0-9]{1,2})?)$": "auto, cpu, cuda or one of several GPUs such as cuda:1",
}
"""Words for the patterns of texts."""
WORDS = {
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a finite number",
    "bool": "true or false",
    "string": "text",
    "path": "a path",
    "tuple": "a list",
    "list": "a list",
    "dict": "settings (name: value)",
    "model": "settings (name: value)",
}
"""Words for a kind of value, by the start of pydantic's type of error."""
BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}
SYNONYMS = {
    "aggregator": "aggregation",
    "arch": "model",
    "batch": "batch_size",
    "bs": "batch_size",
    "client": "sites",
    "clients": "sites",
    "dropout": "rank_dropout",
    "epoch": "rounds",
    "epochs": "rounds",
    "fedprox": "proximal",
    "hospitals": "sites",
    "iterations": "steps",
    "k_folds": "folds",
    "local_epochs": "steps",
    "lora_alpha": "alpha",
    "lora_dropout": "rank_dropout",
    "lr": "learning_rate",
    "min_clients": "quorum",
    "modules_to_save": "also_train",
    "mu": "proximal",
    "n_folds": "folds",
    "n_rounds": "rounds",
    "network": "model",
    "num_folds": "folds",
    "num_rounds": "rounds",
    "patch_size": "size",
    "r": "rank",
    "random_seed": "seed",
    "spacing": "spacing_mm",
    "strategy": "aggregation",
    "target_modules": "layers",
    "timeout": "deadline_s",
    "train_batch_size": "batch_size",
    "wd": "weight_decay",
    "windows": "windows_hu",
}
"""Names that other programs give to a setting."""
METHODS = "finetune.methods or finetune.grid"
"""Where the settings of a method stand."""
NOTES = {
    "epochs": "a site trains local.steps steps in each of the rounds",
    "epoch": "a site trains local.steps steps in each of the rounds",
    "local_epochs": "the same number of steps at every site",
    "device": "a site file has it; a simulation computes on the processor",
    "gpu": "a site file has device; a simulation computes on the processor",
    "gpus": "a site file has device; a simulation computes on the processor",
    "repeats": "an entry of finetune.grid has it, such as {method: cp_lora, rank: 8, repeats: 2}",
    "optimizer": "the optimiser is always AdamW",
    "optimiser": "the optimiser is always AdamW",
    "loss": "the loss is always Dice with cross-entropy",
}
"""What a message adds about an unknown name."""


class PlacedProblems(ValueError):
    """What a section's own check found, each problem with its place below the section."""

    def __init__(self, problems: Sequence[tuple[Place, str]]) -> None:
        super().__init__("; ".join(".".join(map(str, place)) + f": {text}" * bool(text) for place, text in problems))
        self.problems = problems


def describe(
    error: ValidationError, model: type[Section], settings: Any, lines: Mapping[Place, int] | None = None
) -> tuple[int, list[str]]:
    """The number of problems, and a text for each, in the order of the file; the last text counts those beyond many.

    Args:
        error: what pydantic found.
        model: the section that the settings were read as.
        settings: the content of the file.
        lines: the line of each setting, if it is known.
    """
    texts = []
    found = sorted(placed(error, model, settings), key=lambda one: _line(one[0], lines or {}))
    for place, text in found[:MOST_PROBLEMS]:
        where = where_text(place, lines)
        texts.append((f"{where}: " if where else "") + text)
    more = max(error.error_count(), len(found), MOST_PROBLEMS) - MOST_PROBLEMS
    return len(texts) + more, texts + [f"and {more} more"] * (more > 0)


def placed(error: ValidationError, model: type[Section], settings: Any) -> Iterator[tuple[Place, str]]:
    """The place of each problem in the settings, and a text without it; arguments as of ``describe``."""
    found = [(_place(item, settings), item) for item in error.errors(include_url=False)[:MOST_PROBLEMS]]
    found = [(place, item) for place, item in found if not _is_explained(place, item, found)]
    found.sort(key=lambda one: tuple(map(str, one[0])))
    for place, group in groupby(found, key=lambda one: one[0]):
        items = [item for _, item in group]
        for item in items:
            yield from ((place + below, text) for below, text in _placed_below(item))
        if rest := [item for item in items if not _placed_below(item)]:
            yield place, _text(rest, place, model, settings)


def _placed_below(item: Any) -> Sequence[tuple[Place, str]]:
    check = item.get("ctx", {}).get("error")
    return check.problems if isinstance(check, PlacedProblems) else ()


def _place(item: Any, settings: Any) -> Place:
    """Where a problem lies in the file: pydantic's place without the names of classes and kinds."""
    place: list[str | int] = []
    here = settings
    for part in item["loc"]:
        if (isinstance(here, dict) and part in here) or (isinstance(here, list) and isinstance(part, int)):
            place.append(part)
            here = here[part] if isinstance(here, dict) or part < len(here) else None
    if item["type"] == "missing" and item["loc"][-1:] != tuple(place[-1:]):
        place.append(item["loc"][-1])
    if item["type"] in ("union_tag_invalid", "union_tag_not_found"):
        place.append(item["ctx"]["discriminator"].strip("'"))
    return tuple(place)


def _is_explained(place: Place, item: Any, all_: Sequence[tuple[Place, Any]]) -> bool:
    """Whether the problem is that one kind of value does not fit, and another kind has problems further inside."""
    outer = item["type"].endswith("_type") or item["type"] in ("too_short", "literal_error")
    return outer and any(other[: len(place)] == place != other for other, _ in all_)


def _line(place: Place, lines: Mapping[Place, int]) -> int:
    """The line of a setting, or of the nearest section around it; 0 for the whole file."""
    return next((lines[place[:end]] for end in range(len(place), 0, -1) if place[:end] in lines), 0)


def where_text(place: Place, lines: Mapping[Place, int] | None) -> str:
    """``line 7, data.path``: line and name of a setting, as far as they are known."""
    line = _line(place, lines or {})
    return ", ".join(filter(None, (f"line {line}" if line else "", ".".join(map(str, place)))))


def _text(items: Sequence[Any], place: Place, model: type[Section], settings: Any) -> str:
    first = items[0]
    if first["type"] == "extra_forbidden":
        return _unknown(str(place[-1]), place[:-1], model, settings)
    texts = list(dict.fromkeys(_expected(item, place, model, settings) for item in items))
    joined = "; ".join(texts)
    if all(text.startswith("expected ") for text in texts):
        joined = "expected " + " or ".join(text.removeprefix("expected ") for text in texts)
    if first["type"] in ("missing", "union_tag_not_found") or isinstance(first["input"], dict | list):
        value = first["ctx"].get("tag") if first["type"] == "union_tag_invalid" else None
        return joined + (f", got {shown(value)}" if value is not None else "") + meant(first, place)
    return f"{joined}, got {shown(first['input'])}{meant(first, place)}"


def _expected(item: Any, place: Place, model: type[Section], settings: Any) -> str:
    kind, context = item["type"], item.get("ctx", {})
    if kind == "missing":
        section = next(iter(sections_at(model, settings, place[:-1])), None)
        field = section.model_fields.get(str(place[-1])) if section else None
        about = (field.description or "").split("\n\n")[0].replace("\n", " ").replace("``", "") if field else ""
        return f"is missing ({about.rstrip('.')})" if about else "is missing"
    if kind == "union_tag_not_found":
        return "is missing"
    if kind in BOUNDS:
        word, name = BOUNDS[kind]
        return f"expected {word} {context[name]:g}"
    if kind == "literal_error":
        return f"expected {context['expected']}"
    if kind == "union_tag_invalid":
        return f"expected {' or '.join(context['expected_tags'].rsplit(', ', 1))}"
    if kind == "string_pattern_mismatch":
        return f"expected {FORMS.get(context['pattern'], 'text of the form ' + context['pattern'])}"
    if kind in ("too_short", "too_long"):
        bound = context["min_length"] if kind == "too_short" else context["max_length"]
        word = "at least" if kind == "too_short" else "at most"
        return f"expected {word} {bound} entr{'y' if bound == 1 else 'ies'}"
    if kind == "value_error":
        return item["msg"].removeprefix("Value error, ")
    known = [words for start, words in WORDS.items() if kind.startswith(start)]
    return f"expected {known[0]}" if known else item["msg"][:1].lower() + item["msg"][1:]


def shown(value: Any) -> str:
    """A value as in YAML, cut after ``MOST_SHOWN`` characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested as deeply as JSON could be read, or a number of thousands of digits
        return f"{type(value).__name__} that is too long to show"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _unknown(name: str, section: Place, model: type[Section], settings: Any) -> str:
    """What was probably meant by a setting that its section does not have."""
    sections = sections_at(model, settings, section)
    here = [field for known in sections for field in known.model_fields]
    wanted = SYNONYMS.get(name.lower(), name)
    note = f" ({NOTES[name.lower()]})" if name.lower() in NOTES else ""
    if any(_has_value(known, wanted) for known in sections):
        return f"is called {wanted} here{note}"
    places = [place for place, known in all_sections(model, ()) if _has_value(known, wanted) and place != section]
    nested = [place for place in places if place[: len(section)] == section]
    found = list(dict.fromkeys(_section_text(place) for place in nested or places))
    renamed = "" if wanted == name else f"is called {wanted}, and "
    belongs = f"{renamed}belongs {' or '.join(found[:3])}{note}"
    if nested:
        return belongs
    if note and not found:
        return f"is not a setting here{note}"
    if wanted == name and (close := get_close_matches(name.lower().replace("-", "_"), here, 1)):
        return f"is not a setting; did you mean {close[0]}?{note}"
    if kind := _kind(settings, section):
        return f"is not a setting of {kind}, which has {', '.join(here)}"
    if found:
        return belongs
    listed = f"; its section has {', '.join(here)}" if here else ""
    return f"is not a setting{listed}"


def _has_value(section: type[Section], name: str) -> bool:
    return name in section.model_fields and (name not in SYNONYMS.values() or not is_section(section, name))


def _kind(settings: Any, place: Place) -> str | None:
    """The kind of an entry of a list, by its ``method``."""
    for part in place:
        settings = settings[part] if isinstance(settings, dict | list) else None  # type: ignore[index]
    kind = settings.get("method") if isinstance(settings, dict) else None
    return kind if isinstance(kind, str) else None


def _section_text(place: Place) -> str:
    if not place:
        return "at the top of the file"
    names = ".".join(str(part) for part in place if part != "*")
    names = METHODS if place == ("finetune", "methods", "*") else names
    return f"in an entry of {names}" if place[-1] == "*" else f"under {names}"
