"""How large a volume may be. Its size is read from its headers before its voxels are unpacked."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sahfl.errors import ScanProblem

MOST_VOXELS = 512 * 512 * 512
"""512 x 512 pixels in 512 slices: three times a head CT in slices of 1 mm, and 0.5 GB as the numbers of a scan."""


def require_size(shape: Sequence[int]) -> None:
    """Check the number of voxels that headers claim.

    Raises:
        ScanProblem: they are more than a head CT has.
    """
    n_voxels = math.prod(abs(int(n)) for n in shape)  # a damaged header can have lengths below 0
    if n_voxels > MOST_VOXELS:
        claimed = " x ".join(str(int(n)) for n in shape)
        raise ScanProblem("too_large", f"got {claimed} voxels, expected at most {MOST_VOXELS} (512 x 512 x 512)")
