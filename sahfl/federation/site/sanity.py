"""A check of an update before it leaves: whether a few slices explain it, so that these could be read from it.

A crafted base network can close its layers for all slices but one, and make gradients so small that the optimiser adds
them up unchanged. The update of a row (an output channel, or one term of a factor) is then the gradient of one slice,
however many steps and slices the round had. Rows are those of every tensor that leaves, along its first two axes. The
site watches the gradients of its training, and holds the update back if they look like that. An alarm costs this site
one round; the training goes on.

The check stands beside the limits of the policy and is no proof: an update that passes it can still tell something.
What it finds of attacks and of honest rounds is measured in ``benchmarks/inversion.py`` and ``benchmarks/egress.py``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sahfl.errors import UpdateHeldBack
from sahfl.log_lines import LogLine
from sahfl.training import CLIP_NORM

log = logging.getLogger(__name__)
LEAST_SHARE = 1 / 16
"""Smallest number of effective steps of a row, as a share of the steps in which its tensor trains."""
LOWER = 0.1
"""A tensor is judged by the row at this place from below, so that an attack cannot hide behind rows of another kind."""
SILENT = 0.01
"""A row is silent in a step in which its gradient is below this share of its largest."""
MOST_SILENT = 0.5
"""Largest share of a tensor's rows and steps that may be silent."""
LEAST_SIZE = 2e-7
"""Smallest gradient of a row, as the root mean square of its numbers in its largest step. Near AdamW's epsilon, 1e-8,
the optimiser no longer makes steps alike, and adds up gradients as they are."""


@dataclass(frozen=True)
class Measured:
    """What the gradients of a round looked like, in the tensor where each number is worst."""

    steps: float
    """Effective number of steps of a row near the lower end: (sum of norms)^2 / sum of squared norms; 1 if one step
    explains the row, and all steps if they count alike."""
    share: float
    """The same as a share of the steps in which the tensor trains."""
    silent: float
    """Share of rows and of the steps in which they train, in which a row is silent."""
    size: float
    """Largest gradient of a row near the lower end, as the root mean square of its numbers."""

    def problems(self, least: float) -> list[str]:
        """What speaks for few slices, in words; ``least`` is the policy's least number of effective steps."""
        found = []
        if self.steps < least:
            found.append(f"{self.steps:.2f} effective steps explain a row, expected at least {least:g}")
        if self.share < LEAST_SHARE:
            found.append(f"{self.share:.1%} of its steps explain a row, expected at least {LEAST_SHARE:.1%}")
        if self.silent > MOST_SILENT:
            found.append(f"rows are silent in {self.silent:.0%} of their steps, expected at most {MOST_SILENT:.0%}")
        if self.size < LEAST_SIZE:
            found.append(f"the gradient of a row is {self.size:.3g}, expected at least {LEAST_SIZE:g}")
        return found


NOTHING = Measured(math.inf, 1.0, 0.0, math.inf)
"""Where there is no row to judge: nothing is suspicious."""


class Watch:
    """Watches the gradients of a network's training during one round, at the length that clipping leaves them.

    Args:
        net: the network.
        names: of the tensors that leave. Those with one axis have no rows.
    """

    def __init__(self, net: nn.Module, names: Collection[str]) -> None:
        self._trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
        watched = (parameter for name, parameter in net.named_parameters() if name in names and parameter.dim() > 1)
        self._rows = [(parameter, axis) for parameter in watched for axis in (0, 1)]
        self._norms: list[list[Tensor]] = [[] for _ in self._rows]

    def note(self) -> None:
        """Add the gradients of one step; a parameter without one, whose view was not drawn, adds nothing."""
        gradients = [parameter.grad for parameter in self._trainable if parameter.grad is not None]
        scale = min(1.0, CLIP_NORM / max(float(nn.utils.get_total_norm(gradients)), 1e-30))
        for (parameter, axis), norms in zip(self._rows, self._norms, strict=True):
            if parameter.grad is not None:
                rows = parameter.grad.movedim(axis, 0).flatten(1).float()
                norms.append(torch.linalg.vector_norm(rows, dim=1).cpu() * scale)

    def measure(self) -> Measured:
        """What the round looked like; without any tensor that has rows, nothing is suspicious."""
        found = [
            _of_tensor(torch.stack(norms), parameter.numel() // parameter.shape[axis])
            for (parameter, axis), norms in zip(self._rows, self._norms, strict=True)
            if norms
        ]
        if not found:
            return NOTHING
        return Measured(
            min(one.steps for one in found),
            min(one.share for one in found),
            max(one.silent for one in found),
            min(one.size for one in found),
        )

    def require(self, least: tuple[str, float], *, where: Mapping[str, str | float]) -> None:
        """Log what was measured, and hold back an update that few slices explain.

        Args:
            least: the policy's least number of effective steps, its name and value; 0 turns the check off.
            where: the round, as fields of a log line.

        Raises:
            UpdateHeldBack: names what was measured, and what is expected.
        """
        (name, wanted), found = least, self.measure()
        numbers = {"effective_steps": round(found.steps, 3), "share": round(found.share, 3)}
        numbers |= {"silent": round(found.silent, 3), "size": float(f"{found.size:.3g}")}
        log.info(LogLine("measured", **where, **numbers))
        if wanted and (problems := found.problems(wanted)):
            text = f"policy.{name}: few slices explain this update ({'; '.join(problems)})"
            raise UpdateHeldBack(f"{text}; nothing of this round leaves")


def _of_tensor(norms: Tensor, n_numbers: int) -> Measured:
    """What one tensor looked like: ``norms`` is (steps, rows), ``n_numbers`` the size of a row."""
    alive = norms[:, norms.amax(0) > 0]
    if not alive.numel():
        return NOTHING
    steps = float((alive.sum(0) ** 2 / alive.square().sum(0)).quantile(LOWER))
    silent = float((alive < SILENT * alive.amax(0)).float().mean())
    size = float(alive.amax(0).quantile(LOWER)) / n_numbers**0.5
    return Measured(steps, steps / len(alive), silent, size)
