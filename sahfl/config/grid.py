"""The grid of a study: each entry stands for every combination of its values, read as methods."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

from pydantic import TypeAdapter, ValidationError

from sahfl.adapters.methods import ADAPTERS
from sahfl.config.methods import WEIGHTS, AdapterTuning, Method, WeightTuning, ZeroShot
from sahfl.config.training import MOST_REPEATS, POOLS
from sahfl.problems import placed, shown
from sahfl.section import Place, Section

MOST_METHODS = 2000
"""Most methods of one entry; more is taken for a typing error."""
EACH = "each"
"""In ``trained_at`` and ``left_out``: every fine-tuning site by itself; in ``base_of``: every pretraining site."""
OTHERS = "others"
"""Row of results of the trainings that each leave out another site."""
NO_SITES = frozenset({*POOLS, EACH, OTHERS})
"""Names that no site can have, because they mean something else in a grid or in results."""
FROM_EACH = f"from-{EACH}"
"""Row of results of the mean over the pretraining sites' own bases."""
LISTS = {"layers", "also_train", "stays"}
"""Settings whose one value is a list; several values are a list of lists."""
_method = TypeAdapter[Method](Method)


def expand(
    grid: Sequence[Mapping[str, Any]], sites: Sequence[str]
) -> tuple[list[tuple[int, Method]], list[tuple[Place, str]]]:
    """The methods of a grid, each once with the number of its entry, and the place and text of each problem.

    Each entry gives a value or a list of values for settings of a method; every combination is a method. ``repeats`` is
    how often each is trained; ``each`` in ``trained_at`` and ``left_out`` is every site of ``sites``.
    """
    methods: dict[str, tuple[int, Method]] = {}
    problems: dict[tuple[Place, str], str] = {}
    for number, entry in enumerate(grid):
        for settings in _combinations(entry, sites, number, problems):
            try:
                method = _method.validate_json(json.dumps(settings, default=str))
            except ValidationError as error:
                chosen = _chosen(entry, settings)
                for place, text in placed(error, _kind(settings), settings):
                    problems.setdefault(((number, *place), text), chosen)
            else:
                methods.setdefault(method.model_dump_json(), (number, method))
    return list(methods.values()), [(place, text + chosen) for (place, text), chosen in problems.items()]


def _combinations(
    entry: Mapping[str, Any], sites: Sequence[str], number: int, problems: dict[tuple[Place, str], str]
) -> Iterator[dict[str, Any]]:
    settings = dict(entry)
    repeats = settings.pop("repeats", 1)
    if "repeat" in settings or type(repeats) is not int or not 1 <= repeats <= MOST_REPEATS:
        expected = f"repeats, a number from 1 to {MOST_REPEATS}, and no repeat"
        problems[(number,), f"got repeats {shown(repeats)}, expected {expected}"] = ""
        return
    values = {name: _values(name, value, sites) for name, value in settings.items()}
    if repeats > 1:
        values["repeat"] = list(range(1, repeats + 1))
    if not 0 < (n_methods := prod(map(len, values.values()))) <= MOST_METHODS:
        problems[(number,), f"stands for {n_methods} methods, expected 1 to {MOST_METHODS}"] = ""
        return
    yield from (dict(zip(values, chosen, strict=True)) for chosen in product(*values.values()))


def _values(name: str, value: Any, sites: Sequence[str]) -> list[Any]:
    several = isinstance(value, list) and (name not in LISTS or any(isinstance(part, list) for part in value))
    values = value if several else [value]
    if name not in ("trained_at", "left_out"):
        return list(values)
    return [place for part in values for place in (sites if part == EACH else [part])]


def _chosen(entry: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Which combination of an entry's values it is; empty if it is the entry itself."""
    given = {name: value for name, value in settings.items() if name in entry}
    if all(entry[name] == value for name, value in given.items()):
        return ""
    return f" ({', '.join(f'{name}: {shown(value)}' for name, value in given.items())})"


def _kind(settings: Mapping[str, Any]) -> type[Section]:
    name = settings.get("method")
    if not isinstance(name, str):
        return ZeroShot
    return WeightTuning if name in WEIGHTS else AdapterTuning if name in ADAPTERS else ZeroShot
