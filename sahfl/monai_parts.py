"""The parts of MONAI that sahfl uses, imported without transformers, which takes longer than all of MONAI by itself.

MONAI imports all of its own modules at once, and with them transformers, where it is installed, for one network. Here
it finds none, so that each process starts seconds earlier. There, MONAI's ``Transchex`` reports transformers
as missing; all else of MONAI, and transformers itself, work as always.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import cast

if hidden := {"monai", "transformers"}.isdisjoint(sys.modules):
    sys.modules["transformers"] = cast("ModuleType", None)  # Python's sign for a module that cannot be imported
try:
    from monai.data.meta_obj import set_track_meta
    from monai.losses import DiceCELoss
    from monai.metrics.utils import get_surface_distance
    from monai.transforms import (
        Compose,
        RandAffined,
        RandFlipd,
        RandGaussianNoised,
        RandGaussianSmoothd,
        RandScaleIntensityd,
        RandShiftIntensityd,
    )
finally:
    if hidden:
        del sys.modules["transformers"]

__all__ = [
    "Compose",
    "DiceCELoss",
    "RandAffined",
    "RandFlipd",
    "RandGaussianNoised",
    "RandGaussianSmoothd",
    "RandScaleIntensityd",
    "RandShiftIntensityd",
    "get_surface_distance",
    "set_track_meta",
]
