"""Which of the named segments of an annotation are blood."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sahfl.data.labels import is_blood
from sahfl.errors import ScanProblem

_NAMELESS = re.compile(r"(segment|segmentation|label|mask|roi|structure|object|lesion)?[ _-]*\d*", re.IGNORECASE)
"""Names that programs give by themselves, such as ``Segment_1``."""


def choose_blood(names: Sequence[str]) -> tuple[list[int], str]:
    """The segments that are named as blood, and what was chosen as a text without names ('' if all segments were).

    A single segment without a name of its own counts as blood, as the voxels of a mask do.

    Raises:
        ScanProblem: there is none; the message has their number, because names are free text.
    """
    blood = [index for index, name in enumerate(names) if is_blood(name)]
    if not blood and len(names) == 1 and _NAMELESS.fullmatch(names[0].strip()):
        return [0], ""
    if not blood:
        text = f"none of {len(names)} segment(s) is named as blood"
        raise ScanProblem("seg_segments", f"{text}; name it, such as hemorrhage, ICH or SAH")
    return blood, "" if len(blood) == len(
        names
    ) else f"{len(blood)} of {len(names)} segments are named as blood and count"
