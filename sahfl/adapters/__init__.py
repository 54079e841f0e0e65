"""Adapters: small trainable updates of a frozen network, and the one definition of what of them is exchanged."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

AdapterState = dict[str, NDArray[np.float32]]
"""Exchanged tensors by name; the only form in which trained numbers leave a site."""
