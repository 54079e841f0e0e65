"""Which of the named segments of an annotation are blood."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sahfl.data.labels import is_blood
from sahfl.errors import ScanProblem

_NAMELESS = re.compile(r"(segment|segmentation|label|mask|roi|structure|object|lesion)?[ _-]*\d*", re.IGNORECASE)
"""Names that programs give by themselves, such as ``Segment_1``."""


def choose_blood(names: Sequence[str], wanted: Sequence[str | int] = ()) -> tuple[list[int], str]:
    """The segments that are named as blood, and what was chosen as a text without names ('' if all segments were).

    A single segment without a name of its own counts as blood, as the voxels of a mask do. Names in ``wanted``, or
    numbers counted from 1, are what a site says instead.

    Raises:
        ScanProblem: there is none; the message has their number, because names are free text.
    """
    asked = {str(name).strip().lower() for name in wanted}
    chosen = [
        ({name.strip().lower(), str(number)} & asked) if asked else is_blood(name)
        for number, name in enumerate(names, 1)
    ]
    blood = [index for index, counts in enumerate(chosen) if counts]
    if not blood and not asked and len(names) == 1 and _NAMELESS.fullmatch(names[0].strip()):
        return [0], ""
    if not blood:
        text = f"none of {len(names)} segment(s) is named as blood"
        raise ScanProblem("seg_segments", f"{text}; name it, such as hemorrhage, ICH or SAH")
    return blood, "" if len(blood) == len(
        names
    ) else f"{len(blood)} of {len(names)} segments are named as blood and count"
