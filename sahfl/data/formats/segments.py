"""Which of the named segments of an annotation are blood."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sahfl.data.labels import is_blood
from sahfl.errors import ScanProblem

_NAMELESS = re.compile(r"(segment|segmentation|label|mask|roi|structure|object|lesion)?[ _-]*\d*", re.IGNORECASE)
"""Names that programs give by themselves, such as ``Segment_1``."""


def choose_blood(
    names: Sequence[str], numbers: Sequence[int], wanted: Sequence[str | int] = ()
) -> tuple[list[int], str]:
    """The segments that are named as blood, and what was chosen as a text without names ('' if all segments were).

    A single segment without a name of its own counts as blood, as the voxels of a mask do. ``wanted`` has names or
    numbers that a site gives instead, and ``numbers`` those of the file: the values of its voxels, where it has some.

    Raises:
        ScanProblem: there is none, or a number stands for several; the message has their number, because names are free
            text.
    """
    asked = {str(name).strip().lower() for name in wanted}
    if twice := sorted(number for number in set(numbers) if numbers.count(number) > 1 and str(number) in asked):
        text = f"number {twice[0]} stands for {numbers.count(twice[0])} of {len(names)} segments"
        raise ScanProblem("seg_segments", f"{text}; name those that are blood")
    chosen = [
        ({name.strip().lower(), str(number)} & asked) if asked else is_blood(name)
        for number, name in zip(numbers, names, strict=True)
    ]
    blood = [index for index, counts in enumerate(chosen) if counts]
    if not blood and not asked and len(names) == 1 and _NAMELESS.fullmatch(names[0].strip()):
        return [0], ""
    if not blood:
        text = f"none of {len(names)} segment(s) is named as blood"
        raise ScanProblem("seg_segments", f"{text}; name it, such as hemorrhage, ICH or SAH")
    if len(blood) == len(names):
        return blood, ""
    return blood, f"{len(blood)} of {len(names)} segments are named as blood and count"
