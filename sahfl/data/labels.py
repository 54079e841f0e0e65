"""Which labels of an annotation are blood: by their names, or because the site says so."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

_BLOOD = re.compile(
    r"ha?emorrh?ag|\bemorrag|ha?ematom|hamatom|hamorrhag|\bematom|bleed|blood|blutung|\bblut\b|sangrado|saignement"
    r"|sanguinament|\bsangu?re?\b|\bsang\b|clot|caillot|coagul|gerinnsel|[ck]ontusi|subarach?noid|sous arach?noid"
    r"|subdural|sous dural|sottodural|epidural|extra ?dural|intra ?ventri[ck]ul|intraparench[iy]m|intra[cz]erebral"
    r"|\b(ich|iph|ivh|sah|sdh|edh|eah|cph|sab|icb|hsa|hsd|hed|esa)\b"
)
"""Words for blood in English, German, French, Spanish and Italian, without accents."""
_OTHER = re.compile(
    r"o?edem|odem|\bperi|hygrom|higrom|igrom|effusion|vessel|gefass|vaisseau|\bvas[io]s?\b|infar[ck]t|infart"
    r"|\b(no|non|not|without|kein|keine|ohne|nicht|sans|pas|aucune?|sin|ningun|ninguna|senza|nessuna?)\b"
)
MOST_LETTERS = 200
"""Letters of a name that are read; the expressions take a time that grows with the square of their number."""
_THING = re.compile(
    r"\b\w*(arach?noid|dural|ventri[ck]ul|cerebral|parench[iy]m)\w*?( \w+)? ?"
    r"(empyem|absc|abszess|ascess|[ck]athet|drain|shunt|ele[ck]trod|tumou?r|[ck]yst|zyste|(space|raum|csf|liquor)\b)\w*"
)
"""Something else in a place where blood lies too, such as a subdural empyema or an intraventricular catheter."""


def is_blood(name: str) -> bool:
    """Test whether a label's name is a word for blood or one of IPH, IVH, SAH, SDH, EDH; False for unknown names.

    Names may be English, German, French, Spanish or Italian, such as ``Blutung``, ``SAB`` or ``hématome sous-dural``.
    Of a longer one, the first ``MOST_LETTERS`` count.
    """
    words = re.sub(r"[^a-z]+", " ", _plain(name[:MOST_LETTERS]))
    return bool(_BLOOD.search(_THING.sub(" ", words))) and not _OTHER.search(words)


def _plain(name: str) -> str:
    """A name in lower case without accents."""
    folded = unicodedata.normalize("NFKD", name.casefold().replace("œ", "oe").replace("æ", "ae"))
    return "".join(letter for letter in folded if not unicodedata.combining(letter))


@dataclass(frozen=True)
class LabelClasses:
    """The values of one annotation."""

    voxels: Mapping[int, int]
    """Number of voxels of each value above 0."""
    counted: tuple[int, ...]
    """The values among them that count as blood."""
    known: bool
    """Whether the list of cases or the site says which values are blood."""

    @property
    def left_out(self) -> tuple[int, ...]:
        """The values that do not count."""
        return tuple(value for value in self.voxels if value not in self.counted)


def _other_parts(
    region: str, labels: Mapping[str, Sequence[int]], chosen: Sequence[str], numbers: Sequence[int]
) -> Iterator[str]:
    """A problem for each label with values of a chosen one that has no name of blood, such as oedema.

    No problem is a label that holds all of the chosen one and more, or that the site chose too, by name or values.
    """
    values = set(labels[region])
    others = {
        name: sorted(values & set(part))
        for name, part in labels.items()
        if values & set(part) and not (set(part) > values or set(part) <= set(numbers))
        if name not in chosen and not is_blood(name)
    }
    rest = sorted(values.difference(*others.values()))
    named = ", ".join(name[:40] for name in (region, *others))
    remedy = f"if it is blood too: blood: [{named}]" + (f"; if not, the values that are: blood: {rest}" if rest else "")
    for name, both in others.items():
        yield f"blood: {region[:40]!r} holds {', '.join(map(str, both))}, which is {name[:40]!r}; {remedy}"


def choose_blood(
    labels: Mapping[str, Sequence[int]], blood: Sequence[int | str] | None, source: str
) -> tuple[tuple[int, ...] | None, list[str]]:
    """The values that are blood of those that a list of cases declares, and all problems.

    Args:
        labels: values by name, without the background; a region of nnU-Net has several.
        blood: the site's choice, by names or values; without it every label has to be named as blood, and the values
            are None, which means all.
        source: the file that declares them, for messages.
    """
    if blood is None:
        named = [name[:40] for name in labels if is_blood(name)]
        example = ", ".join(named) or "NAME"
        remedy = f"name those that are in the data section of the site or study (blood: [{example}])"
        return None, [f"labels.{name[:80]}: is not named as blood; {remedy}" for name in labels if not is_blood(name)]
    by_name: dict[str, list[str]] = {}
    for name in labels:
        by_name.setdefault(_plain(name), []).append(name)
    # Names that differ in their case or accents are several labels; one of the very letters is meant before them.
    names = {one: [one] if one in labels else by_name.get(_plain(one), []) for one in blood if isinstance(one, str)}
    numbers = [wanted for wanted in blood if isinstance(wanted, int)]
    chosen = [name for found in names.values() for name in found]
    declared = {value for found in labels.values() for value in found}
    values: list[int] = []
    problems = []
    for wanted in blood:
        same = names[wanted] if isinstance(wanted, str) else []
        found = [value for name in same for value in labels[name]] if isinstance(wanted, str) else [wanted]
        if not found or not declared.issuperset(found):
            listed = list(labels.items())[:20]
            known = ", ".join(f"{name[:40]}: {part[0] if len(part) == 1 else list(part)}" for name, part in listed)
            problems.append(f"blood: {wanted!r} is no label of {source}, which has {known}")
        elif len(same) > 1:
            listed_names = ", ".join(name[:40] for name in same[:20])
            problems.append(f"blood: {wanted!r} is the name of several labels, {listed_names}; give their values")
        else:
            problems += [text for name in same for text in _other_parts(name, labels, chosen, numbers)]
        values += found
    return tuple(dict.fromkeys(values)), problems
