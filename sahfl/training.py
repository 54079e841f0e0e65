"""Local training: what a site does with a network in one round. Both stages use this one function."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from monai.losses import DiceCELoss
from torch import nn

from sahfl.data.sampler import SliceSampler
from sahfl.errors import RunFailed
from sahfl.model import device_of

WARM_UP_STEPS = 5
"""AdamW starts each round without history; its first steps are shortened, or they would undo the last average."""
CLIP_NORM = 1.0


@dataclass(frozen=True)
class Schedule:
    """Where this round lies in the whole training."""

    learning_rate: float
    """Peak of the cosine over all rounds."""
    weight_decay: float
    steps: int
    """Optimiser steps in this round."""
    round: int
    """1 to ``rounds``."""
    rounds: int

    def rate(self, step: int) -> float:
        """Learning rate of a step (0-based) of this round: cosine over all rounds, short warm-up within each."""
        progress = (self.round - 1 + step / self.steps) / self.rounds
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress)) * min(1.0, (step + 1) / WARM_UP_STEPS)


def train(
    net: nn.Module,
    sampler: SliceSampler,
    schedule: Schedule,
    *,
    precision: Literal["float32", "bfloat16"] = "float32",
    on_step: Callable[[int, int, float], None] = lambda done, total, loss: None,
) -> float:
    """Train the trainable parameters of a network for one round, in place.

    The loss is Dice plus cross-entropy, with Dice pooled over the batch: the Dice of a slice without blood is
    undefined, and a batch nearly always has some blood. The loss is float32 in every precision, and so are the
    parameters and the optimiser.

    Guarantees: parameters that do not require a gradient are unchanged; with one thread the result is a function of
    the arguments alone.

    Args:
        net: network with logits out; the batches move to the device of its parameters.
        sampler: batches of the site's own training cases.
        schedule: steps and learning rates.
        precision: of the network's own computation; bfloat16 is autocast.
        on_step: called after each step with (steps done, steps in all, mean loss so far).

    Returns:
        Mean loss of the round.

    Raises:
        RunFailed: the loss is not finite; nothing that follows could be trusted.
    """
    net.train()
    trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
    loss_function = DiceCELoss(sigmoid=True, batch=True)
    device = device_of(net)
    total = 0.0
    for step in range(schedule.steps):
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(step)
        image, label = (tensor.to(device) for tensor in sampler.batch())
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            logits = net(image)
        loss = loss_function(logits.float(), label)
        total += loss.item()
        if not math.isfinite(total):
            raise RunFailed(f"the loss is {total} at step {step + 1} of round {schedule.round}, expected a number")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, CLIP_NORM)
        optimiser.step()
        on_step(step + 1, schedule.steps, total / (step + 1))
    return total / schedule.steps
