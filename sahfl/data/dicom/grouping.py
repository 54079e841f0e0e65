"""From the images of a folder to series: by their UIDs, if these can be believed.

Anonymisers give each slice a series UID of its own. Archives and consoles put screens, reformats and whole
reconstructions under one UID.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from sahfl.data.dicom.survey import Found

FEWEST, MOST_SINGLES = 5, 2
"""Beside a series of at least the first number of slices, one of at most the second is no series of its own."""
SCRAMBLED = 3
"""As many single images of one geometry with a series UID each are one series, whose UIDs were scrambled."""


def group(images: Iterable[Found]) -> list[list[Found]]:
    """The images of each series; slices with a series UID each, which were scrambled, are one if they have one form."""
    by_uid: dict[str, list[Found]] = {}
    for item in images:
        by_uid.setdefault(item.series, []).append(item)
    singles: dict[object, list[Found]] = {}
    for items in by_uid.values():
        if len(items) == 1 and items[0].kind == "slice":
            singles.setdefault(_geometry(items[0]), []).append(items[0])
    merged = [items for items in singles.values() if len(items) >= SCRAMBLED]
    gone = {item.series for items in merged for item in items}
    kept = [part for uid, items in by_uid.items() if uid not in gone for part in _without_odd(items)]
    kept = [part for items in kept for part in _reconstructions(items)]
    return [*kept, *merged]


def _geometry(item: Found) -> object:
    orientation = tuple(round(part, 2) + 0.0 for part in item.orientation)
    return (orientation, item.shape, item.kernel, round(item.thickness_mm, 2), item.derived, item.agent)


def _without_odd(items: list[Found]) -> list[list[Found]]:
    """A series whose UID a screen or another plane shares, in two parts; any other series as it is."""
    usual = Counter((item.derived, _plane(item)) for item in items).most_common(1)[0][0]
    odd = [item for item in items if (item.derived, _plane(item)) != usual]
    few = len(odd) <= MOST_SINGLES and len(items) - len(odd) >= FEWEST
    return [[item for item in items if item not in odd], odd] if odd and few else [items]


def _reconstructions(items: list[Found]) -> list[list[Found]]:
    """The reconstructions that share a series UID, if their slices lie between each other; else the series as it is.

    A series may change its thickness or kernel once, above the skull's base.
    """
    normal = normal_of(items[0])
    parts: dict[tuple[str, str, float], list[Found]] = {}
    for item in items:
        parts.setdefault((item.kernel, item.agent, round(item.thickness_mm, 2)), []).append(item)
    if len(parts) < 2 or normal is None or not all(item.position_mm for item in items):
        return [items]
    ends = sorted((min(along), max(along)) for part in parts.values() for along in [_along(part, normal)])
    apart = all(first[1] < second[0] for first, second in itertools.pairwise(ends))
    return [items] if apart or min(map(len, parts.values())) < FEWEST else list(parts.values())


def _along(items: Sequence[Found], normal: np.ndarray) -> list[float]:
    return [float(normal @ item.position_mm) for item in items]


def _plane(item: Found) -> int:
    """The axis of the patient that the slices' normal is nearest to: 2 for axial; -1 if it is not known."""
    normal = normal_of(item)
    return -1 if normal is None else int(np.abs(normal).argmax())


def normal_of(item: Found) -> np.ndarray | None:
    """A vector along the normal of an image, in LPS; None if it is not known."""
    if not item.orientation:
        return None
    with np.errstate(all="ignore"):  # of numbers beyond every float, which give none
        normal = np.cross(item.orientation[:3], item.orientation[3:])
        length = np.linalg.norm(normal)
    return normal if np.isfinite(length) and length > 0 else None
