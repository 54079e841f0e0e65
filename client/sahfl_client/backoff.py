"""How long to wait before the next try."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

FIRST_S, FACTOR = 0.5, 1.6
EARLY_CAP_S, LATE_CAP_S = 2.5, 20.0
EARLY_S = 60.0


class Backoff:
    """Pauses drawn between nothing and a ceiling, which grows by ``FACTOR`` up to a cap.

    The cap is 2.5 s in the first minute of failures and 20 s after it; for a lasting cause it is 20 s at once. So a
    site finds a repaired link within 20 s, and many sites that lost one server do not return all at the same moment.
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, draw: Callable[[], float] = random.random
    ) -> None:
        self._clock, self._draw = clock, draw
        self._began: float | None = None
        self._ceiling_s = FIRST_S

    def reset(self) -> None:
        """Start again with short pauses, after a success."""
        self._began, self._ceiling_s = None, FIRST_S

    def next_s(self, *, lasting: bool = False) -> float:
        """Seconds to wait after one more failure; at least 0.1, so that no loop spins."""
        now = self._clock()
        self._began = now if self._began is None else self._began
        cap_s = LATE_CAP_S if lasting or now - self._began > EARLY_S else EARLY_CAP_S
        ceiling_s = cap_s if lasting else min(self._ceiling_s, cap_s)
        self._ceiling_s = min(self._ceiling_s * FACTOR, LATE_CAP_S)
        return max(0.1, self._draw() * ceiling_s)
