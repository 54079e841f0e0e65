"""Likely repeat scans of a patient, found in the names of cases of which only the name is known."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from sahfl.data.manifest import Case

_WORDS = "admission base baseline control day discharge early fu follow-up followup late post postop pre preop rep"
_WORDS += " repeat rescan run scan series ses session time timepoint visit"
_LAST_PART = re.compile(
    rf"""
    (?: [_.\ -]+ (?:19|20)\d\d[-_.]?[01]\d[-_.]?[0-3]\d (?:[_.\ -]?\d{{4,6}})?      # a date: year first, and a time
      | [_.\ -]+ [0-3]?\d[-_.][01]?\d[-_.](?:19|20)\d\d                             # a date: year last
      | [_.\ -]+ \d{{6}}                                                            # a date of six digits
      | [_.\ -]+ \d{{1,2}}                                                          # a short number
      | (?<=\d\d\d) [_.\ -]+ \d{{3,4}}                                              # a number after a long number
      | (?:[_.\ -]+|(?<=\d)) (?:{"|".join(_WORDS.split())}) [_.\ -]* \d{{0,3}}      # ses-2, day7, 012followup
      | [_.\ -]+ (?:ct|d|t|tp|v) [_.\ -]* \d{{0,3}}                                # _t1, _d7
      | (?:[_.\ -]+|(?<=\d)) [a-h]                                                  # 012b
    )$""",
    re.VERBOSE | re.IGNORECASE,
)


def repeat_scans(cases: Iterable[Case]) -> list[tuple[Case, ...]]:
    """Groups of cases that are likely scans of one patient each, but count as scans of different patients.

    Only cases without a known patient are compared (``Case.patient_from_name``). Names that differ in their last part
    alone are one group: a number, letter, date or word such as ``followup``. A group that has more cases than there
    would be patients is a serial number (``ICH_1`` to ``ICH_30``), and no group.
    """
    unknown = [case for case in cases if case.patient_from_name]
    return _groups([(case, _stems(case.patient)) for case in unknown], level=0)


def warn_of_repeat_scans(cases: Iterable[Case]) -> str:
    """A warning with the number of likely repeat scans and what to do; empty if there are none. It has no names."""
    groups = repeat_scans(cases)
    if not groups:
        return ""
    n_cases = sum(map(len, groups))
    return (
        f"by their names, {n_cases} cases look like repeat scans of {len(groups)} patient(s), but each counts as "
        "another patient, so that scans of one patient may be in training and in the held-out fold; list the patients "
        "(patients.json of an nnU-Net folder, 'patient' in a datalist), or rename the cases to sub-ID_ses-NUMBER"
    )


def _stems(name: str) -> tuple[str, ...]:
    """The name without its last parts, the shortest first; the whole name is last."""
    stems = [name]
    while (shorter := _LAST_PART.sub("", stems[0])) not in ("", stems[0]):
        stems.insert(0, shorter)
    return tuple(stems)


def _groups(named: Sequence[tuple[Case, tuple[str, ...]]], level: int) -> list[tuple[Case, ...]]:
    """The groups of equal stems; what is no group here is compared again by stems that are one part longer."""
    by_stem: dict[str, list[tuple[Case, tuple[str, ...]]]] = {}
    for case, stems in named:
        by_stem.setdefault(stems[min(level, len(stems) - 1)], []).append((case, stems))
    alike = [members for members in by_stem.values() if len({stems[-1] for _, stems in members}) > 1]
    found = [tuple(case for case, _ in members) for members in alike if len(members) <= len(by_stem)]
    serial = [entry for members in alike if len(members) > len(by_stem) for entry in members]
    return [*found, *(_groups(serial, level + 1) if serial else [])]
