"""Local training: one round of training a network at a site, in pretraining and fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from sahfl.data.sampler import SliceSampler
from sahfl.errors import RunFailed
from sahfl.model import device_of
from sahfl.monai_parts import DiceCELoss
from sahfl.seeds import derive_seed

WARM_UP_STEPS = 5
"""AdamW starts each round without history; without shortened first steps it would undo the last average."""
CLIP_NORM = 1.0
BETAS = 0.9, 0.999
"""AdamW's decay of its two moments, for each step."""


@dataclass(frozen=True)
class Schedule:
    """A round's position in the whole training, and its optimiser settings."""

    learning_rate: float
    """Peak learning rate, at the start of the cosine over all rounds."""
    weight_decay: float
    steps: int
    """Optimiser steps in this round."""
    round: int
    """1 to ``rounds``, or ``rounds + 1`` for the last phase at the site."""
    rounds: int
    proximal: float = 0.0
    """mu of FedProx: strength of the pull of the parameters back to the start of the round; 0 means none."""
    local_steps: int = 0
    """Steps of the last phase at the site by itself, which is round ``rounds + 1``."""

    @property
    def n_steps(self) -> int:
        """Steps of this round, or of the last phase."""
        return self.local_steps if self.round > self.rounds else self.steps

    def rate(self, step: int) -> float:
        """Learning rate of a step (0-based) of this round: cosine over all steps, short warm-up within each round."""
        progress = (self.round - 1 + step / self.steps) / (self.rounds + self.local_steps / self.steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress)) * min(1.0, (step + 1) / WARM_UP_STEPS)

    def most_moved(self) -> float:
        """The farthest that a round can move a number whose learning rate has the factor 1, without weight decay.

        A step of Adam is at most sqrt(sum of a^2 / b) times its rate, by the Cauchy-Schwarz inequality, where a and b
        are the weights of past gradients in the two moments.
        """
        first, second = BETAS
        moved = 0.0
        for step in range(self.n_steps):
            squares = (1 - (first**2 / second) ** (step + 1)) / (1 - first**2 / second)
            weights = (1 - first) ** 2 / (1 - first ** (step + 1)) ** 2 * (1 - second ** (step + 1)) / (1 - second)
            moved += self.rate(step) * math.sqrt(weights * squares)
        return moved


def train(
    net: nn.Module,
    sampler: SliceSampler,
    schedule: Schedule,
    *,
    precision: Literal["float32", "bfloat16"] = "float32",
    rate_of: Callable[[str], float] = lambda name: 1.0,
    on_step: Callable[[int, int, float], None] = lambda done, total, loss: None,
    on_gradients: Callable[[], None] = lambda: None,
) -> float:
    """Train the trainable parameters of a network for one round, in place.

    Guarantees: parameters that do not require a gradient, or whose view is not drawn, are unchanged. With one thread
    the result depends only on the arguments, dropout included. PyTorch's random state is restored. The loss, the
    parameters and the optimiser are float32 in every precision.

    Args:
        net: takes a batch of slices and the name of their view; returns the logits for ``supervised_loss``.
        sampler: batches of the site's own training cases.
        schedule: steps and learning rates.
        precision: number format of the network's own computation; bfloat16 is autocast.
        rate_of: from the full name of a trainable parameter to the factor of its learning rate, 0 or more; its weight
            decay, which AdamW multiplies by the learning rate, changes by the same factor.
        on_step: called after each step with (steps done, steps in all, mean loss so far).
        on_gradients: called in each step while the parameters have their gradients of the loss alone.

    Returns:
        Mean loss of the round, without the proximal term.

    Raises:
        RunFailed: the loss is not finite.
    """
    devices = {parameter.device.index for parameter in net.parameters() if parameter.is_cuda}
    with torch.random.fork_rng(devices):
        torch.manual_seed(derive_seed("training", sampler.seed, schedule.round))
        return _train(net, sampler, schedule, precision, rate_of, on_step, on_gradients)


def _train(
    net: nn.Module,
    sampler: SliceSampler,
    schedule: Schedule,
    precision: Literal["float32", "bfloat16"],
    rate_of: Callable[[str], float],
    on_step: Callable[[int, int, float], None],
    on_gradients: Callable[[], None],
) -> float:
    net.train()
    trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
    groups, device = _groups(net, rate_of), device_of(net)
    fused = device.type in ("cpu", "cuda")  # one operation for all parameters
    optimiser = torch.optim.AdamW(
        groups, lr=schedule.learning_rate, betas=BETAS, weight_decay=schedule.weight_decay, fused=fused
    )
    received = [parameter.detach().clone() for parameter in trainable] if schedule.proximal else []
    total = 0.0
    for step in range(schedule.n_steps):
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate(step) * group["factor"]
        image, label, view = sampler.batch()
        image, label = image.to(device), label.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            logits = net(image, view)
        loss = supervised_loss(logits, label)
        total += loss.item()
        if not math.isfinite(total):
            raise RunFailed(f"the loss is {total} at step {step + 1} of round {schedule.round}, expected a number")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        on_gradients()
        if schedule.proximal:
            pull_back(trainable, received, schedule.proximal)
        nn.utils.clip_grad_norm_(trainable, CLIP_NORM)
        optimiser.step()
        on_step(step + 1, schedule.n_steps, total / (step + 1))
    return total / schedule.n_steps


def _groups(net: nn.Module, rate_of: Callable[[str], float]) -> list[dict[str, Any]]:
    """The optimiser's groups of the trainable parameters: one for each distinct factor of the learning rate."""
    by_factor: dict[float, list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            by_factor.setdefault(rate_of(name), []).append(parameter)
    return [{"params": parameters, "factor": factor} for factor, parameters in by_factor.items()]


def pull_back(parameters: Sequence[nn.Parameter], received: Sequence[Tensor], proximal: float) -> None:
    """Add to each gradient that of proximal / 2 * ||w - w_received||^2, in place; any shapes, pairwise the same.

    A parameter without a gradient, whose view was not drawn, stays without one, so that no step moves it.

    Source: Li et al. 2020, arXiv 1812.06127, section 3 (FedProx).
    """
    for parameter, start in zip(parameters, received, strict=True):
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - start, alpha=proximal)


def supervised_loss(outputs: Tensor | Sequence[Tensor], label: Tensor) -> Tensor:
    """Dice plus cross-entropy, a scalar; with deep supervision, their weighted mean over the resolutions.

    Dice is pooled over the batch, because that of a slice without blood is undefined. Each resolution weighs half of
    the previous one. A coarse pixel is blood if any pixel under it is, so that thin layers of blood remain.

    Args:
        outputs: logits (batch, 1, height, width), or a list of them, each half the size of the previous one.
        label: blood, (batch, 1, height, width).

    Source: Isensee et al. 2021, doi 10.1038/s41592-020-01008-z (weights of deep supervision).
    """
    loss_function = DiceCELoss(sigmoid=True, batch=True)
    outputs = [outputs] if isinstance(outputs, Tensor) else outputs
    weights = [0.5**level for level in range(len(outputs))]
    targets = [max_pool2d(label, 2**level) if level else label for level in range(len(outputs))]
    levels = zip(weights, outputs, targets, strict=True)
    losses = [w * loss_function(logits.float(), target) for w, logits, target in levels]
    return torch.stack(losses).sum() / sum(weights)
