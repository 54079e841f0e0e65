"""Names and looks of methods: a colour per family, a marker per rank, a line per aggregation rule."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from sahfl.adapters.methods import ADAPTERS
from sahfl.report.text import Results, count

ZERO_SHOT = "zero_shot"
STANDARD = {
    "full": "Full fine-tuning",
    "encoder": "Fine-tuning of the encoder",
    "bottleneck": "Fine-tuning of the bottleneck",
    "decoder": "Fine-tuning of the decoder",
    "last_layer": "Fine-tuning of the last layer",
    "norm_bias": "Fine-tuning of norms and biases",
}
REPEAT = "-repeat"
EACH, OTHERS, POOLED, POOLED_STEPS = "each", "others", "pooled", "pooled_steps"
FROM_EACH = "from-each"
"""Values of ``trained_at`` that are not names of sites."""

PARTS = {
    None: "",
    "personal": "each site with its own part",
    "shared": "what the sites share",
    "mean": "shared, and the mean of the sites' parts",
}
"""Words for ``part`` of a method of which a part stays at each site."""
PLACES = {
    POOLED: "pooled",
    POOLED_STEPS: "pooled, one site's steps",
    EACH: "each site alone",
    OTHERS: "all other sites",
    FROM_EACH: "each trauma centre's own base",
}
"""Words for ``trained_at``, where it is no site and no part of one."""
COUNTS = {"private": "private term", "local": "local step", "rounds": "round"}
"""Words for options with a number in the id of a method."""
STAYS = {"norm": "norms", "out": "output factors", "inner": "inner factors"}
"""Words for what stays at a site, where it is no part of the network."""
STAYING = re.compile(rf"\bstays((?: (?:{'|'.join(STAYS)}|(?:encoder|decoder)\d?|bottleneck|head)\b)+)")
"""What stays at a site, in the id of a method."""


@dataclass(frozen=True)
class Family:
    """Methods of one kind, at all ranks and under all aggregation rules."""

    key: str
    name: str
    colour: str
    """On a white page; see ``theme`` for a dark one."""


UNTRAINED = Family(ZERO_SHOT, "Zero-shot", "#6B6B6B")
WHOLE_WEIGHTS = Family("standard", "Standard fine-tuning", "#C9500C")
PRETRAINING = Family("other", "Other", "#24292F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
LINES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Look:
    """How a method is drawn."""

    family: Family
    marker: str
    """By rank, or by part of the network in standard fine-tuning."""
    line: str
    """By aggregation rule."""
    filled: bool
    """Whether it was trained by the federation."""


def families() -> tuple[Family, ...]:
    """All families, in the order of tables and figures; what is no method's comes last.

    Markers and lines differ too, so that colour is not needed.
    """
    adapters = (Family(method.name, method.label, method.colour) for method in ADAPTERS.values())
    return (UNTRAINED, WHOLE_WEIGHTS, *adapters, PRETRAINING)


def family_of(method: Results) -> Family:
    """The family of a method."""
    key = WHOLE_WEIGHTS.key if method["method"] in STANDARD else method["method"]
    return {family.key: family for family in families()}[key]


def looks(methods: Iterable[Results]) -> dict[str, Look]:
    """Look by method id, the same in every figure and table of one report."""
    methods = tuple(methods)
    ranks = sorted({m["rank"] for m in methods if m["rank"] is not None})
    rules = list(dict.fromkeys(m["aggregation"] for m in methods if m["rank"] is not None))
    found = {}
    for method in methods:
        rank, kind = method["rank"], method["method"]
        place = ranks.index(rank) if rank is not None else list(STANDARD).index(kind) if kind in STANDARD else 0
        place = len(STANDARD) if method["start"] == "scratch" else place
        rule = rules.index(method["aggregation"]) if rank is not None else 0
        line = LINES[rule % len(LINES)]
        found[method["id"]] = Look(
            family_of(method), MARKERS[place % len(MARKERS)], line, filled=method["trained_at"] is None
        )
    return found


def method_name(method: Results) -> str:
    """``CP-LoRA (rank 8, pooled)``."""
    name = STANDARD.get(method["method"]) or family_of(method).name
    rank, at = method["rank"], method["trained_at"]
    plain = method["method"] if rank is None else f"{method['method']}-r{rank}"
    own = method["id"] if at is None else method["id"].removesuffix(f"-at-{at}").replace(f"-{at}", "")
    # The rest of the id contains the settings in which two methods of the same kind differ.
    own = own.removesuffix(f"-{method['part']}")
    rest = own.removeprefix(plain).strip("-").replace("-", " ").replace("_", " ") if own.startswith(plain) else ""
    for option, noun in COUNTS.items():
        rest = re.sub(rf"\b{option}(\d+)\b", lambda found, noun=noun: f";{count(int(found[1]), noun)};", rest)
    rest = STAYING.sub(lambda found: f";{_staying(found)};", re.sub(r"\bscratch\b", "from scratch", rest))
    rest = ", ".join(filter(None, (part.strip() for part in rest.split(";"))))
    details = ", ".join(filter(None, [rank and f"rank {rank}", rest, _place_name(at, method["part"])]))
    return f"{name} ({details})" if details else name


def _staying(found: re.Match[str]) -> str:
    """``norms and decoder stay`` for ``stays norm decoder``."""
    parts = [STAYS.get(part, part) for part in found[1].split()]
    return f"{' and '.join(parts)} {'stays' if len(parts) == 1 and parts[0] not in STAYS.values() else 'stay'}"


def _place_name(at: str | None, part: str | None) -> str:
    """Words for ``trained_at`` of a method, and for ``part`` of one that all sites trained together."""
    if at is None or at in PLACES:
        return PARTS[part] if at is None else PLACES[at]
    kind, _, site = at.partition("-")
    return {"without": f"without {site}", "from": f"base of {site}"}.get(kind if site else "", f"{at} alone")


def left_out(results: Results) -> bool:
    """Whether a hospital was evaluated with networks that were trained without it."""
    places = [method["trained_at"] or "" for method in results["methods"]]
    return any(place.startswith("without-") for place in places)


def names(results: Results) -> dict[str | None, str]:
    """Name by method id, including ids in the rounds: None is pretraining, and repeats have individual names."""
    found: dict[str | None, str] = {None: "Pretraining"}
    found |= {method["id"]: method_name(method) for method in results["methods"]}
    for id_ in dict.fromkeys(entry["method"] for entry in results["rounds"]):
        if id_ not in found and (method := row_of_training(results, id_)) is not None:
            found[id_] = f"{method_name(method)}, repeat {id_.rsplit(REPEAT, 1)[1]}"
    return found


def name_methods(text: str, results: Results) -> str:
    """Replace the ids of methods in a text by their names, and hyphens by minus signs."""
    titles = {id_: name for id_, name in names(results).items() if id_ is not None}
    ids = "|".join(re.escape(id_) for id_ in sorted(titles, key=len, reverse=True))
    named = re.sub(rf"(?<![\w-])({ids})(?![\w-])", lambda found: titles[found[1]], text) if ids else text
    return re.sub(r"(?<![\w-])-(?=\d)", "−", named).replace(">=", "≥")


def row_of_training(results: Results, id_: str) -> Results | None:
    """The row of ``methods`` to which a training in the rounds belongs; repeats belong to the row of the first."""
    plain, _, number = id_.rpartition(REPEAT)
    return method_named(results, id_) or (method_named(results, plain) if number.isdecimal() else None)


def by_family(methods: Iterable[Results]) -> list[Results]:
    """Methods sorted by family; within a family in the order of the study file."""
    order = families()
    return sorted(methods, key=lambda method: order.index(family_of(method)))


def measured(results: Results) -> list[Results]:
    """Methods that have a result, sorted by family."""
    return by_family(method for method in results["methods"] if method["failed"] is None)


def method_named(results: Results, name: str) -> Results | None:
    """The method with this id, or None."""
    return next((method for method in results["methods"] if method["id"] == name), None)


def measured_method(results: Results, name: str) -> Results | None:
    """The method with this id if it has a result, otherwise None."""
    return next((method for method in measured(results) if method["id"] == name), None)


def with_dice(results: Results) -> list[Results]:
    """Methods that have a mean Dice, sorted by family."""
    return [method for method in measured(results) if dice_of(method)["mean"] is not None]


def dice_of(method: Results) -> Results:
    """The estimate of Dice over all cases with blood."""
    overall: Results = method["metrics"]["dice"]["overall"]
    return overall
