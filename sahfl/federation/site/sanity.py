"""A check of an update before it leaves: whether too few steps explain it, so that it could be read as a few slices.

A crafted base network can close its layers for all slices but one. The update of a row (an output channel, or one term
of a factor) is then the gradient of one slice, however many steps and slices the round had. The site measures in how
many steps each row got its gradient, and holds the update back if many rows got theirs in few steps.

The check stands beside the limits of the policy and is no proof: an update that passes it can still tell something.
An alarm costs this site one round; the training goes on.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sahfl.errors import UpdateHeldBack

log = logging.getLogger(__name__)
LEAST_ROWS = 4
"""Tensors with fewer rows are not judged: one row can honestly be that of a rare finding."""


@dataclass(frozen=True)
class Measured:
    """What a round's gradients looked like."""

    steps: float
    """Effective number of steps, of the row in the middle of those that got a gradient: (sum of norms)^2 / sum of
    squared norms; 1 if one step explains a row, and all steps if they count alike."""
    few: float
    """Share of these rows that got their gradient in fewer than ``Watch.least`` effective steps."""
    silent: float
    """Share of a training's rows that got no gradient in any step."""


class Watch:
    """Watches the gradients of a training's rows during one round.

    Args:
        net: the network; its trainable tensors of two and more dimensions are watched, by their first axis.
    """

    def __init__(self, net: nn.Module) -> None:
        self._parameters = [p for p in net.parameters() if p.requires_grad and p.dim() > 1 and len(p) >= LEAST_ROWS]
        self._sums = [torch.zeros(len(parameter)) for parameter in self._parameters]
        self._squares = [torch.zeros(len(parameter)) for parameter in self._parameters]

    def note(self) -> None:
        """Add the gradients of one step; a parameter without one, whose view was not drawn, adds nothing."""
        for parameter, total, squares in zip(self._parameters, self._sums, self._squares, strict=True):
            if parameter.grad is not None:
                norms = _norms(parameter.grad)
                total += norms
                squares += norms**2

    def measure(self, *, least: float) -> Measured:
        """What the round looked like; rows below ``least`` effective steps count as ``few``."""
        if not self._parameters:
            return Measured(float("inf"), 0.0, 0.0)
        total, squares = torch.cat(self._sums), torch.cat(self._squares)
        alive = squares > 0
        steps = total[alive] ** 2 / squares[alive]
        if not len(steps):
            return Measured(0.0, 1.0, 1.0)
        few, silent = (steps < least).float().mean(), (~alive).float().mean()
        return Measured(float(steps.median()), float(few), float(silent))

    def require(self, least: tuple[str, float], *, where: str) -> None:
        """Log what was measured, and hold back an update that too few steps explain.

        Args:
            least: the policy's setting, its name and value.
            where: names the round in the log.

        Raises:
            UpdateHeldBack: names the setting, and what was measured.
        """
        name, wanted = least
        measured = self.measure(least=wanted)
        numbers = f"effective_steps={measured.steps:.3f} few={measured.few:.3f} silent={measured.silent:.3f}"
        log.info("event=measured %s %s", where, numbers)
        if measured.steps < wanted:
            found = f"{name}: the middle row of this update is explained by {measured.steps:.2f} steps"
            raise UpdateHeldBack(f"policy.{found}, expected at least {wanted:g}; nothing of this round leaves")


def _norms(gradient: Tensor) -> Tensor:
    return torch.linalg.vector_norm(gradient.detach().flatten(1).float(), dim=1).cpu()
