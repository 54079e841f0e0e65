"""What an attacker is left with where the base is honest: slices whose gradients match what a hospital sent.

    python benchmarks/inversion_matching.py    # how well the honest base segments, which takes a minute

With a tiny alpha all gradients are far below the epsilon of AdamW, and what leaves is linear: a known weighted sum of
the gradients of all steps, projected on the factors that the attacker knows. 64 slices are sought whose gradients sum
up to the same (Geiping et al. 2020, arXiv 2003.14053), from slices of the attacker's own patients. Which of them
belongs to which slice of the hospital is decided in his favour, by their true likeness; the start of the search, judged
in the same way, says what that is worth.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from crafted_base import PIXELS, VIEWS
from inversion_readout import Floats, Population
from inversion_site import ROUNDS, SHAPE, SPACING_MM, Request
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from sahfl.adapters import AdapterState, exchanged
from sahfl.config import AdapterTuning, ModelConfig
from sahfl.networks import base_network, whole_network
from sahfl.training import Schedule, supervised_loss

TINY = ModelConfig(size="tiny")
METHOD = AdapterTuning(method="conv_lora", rank=32, alpha=1e-8, layers=("all",))
SMOOTH = 2e-4
"""Weight of total variation."""


def honest_base(population: Population, *, steps: int = 200) -> AdapterState:
    """A small network that was pretrained on the attacker's own patients."""
    net = whole_network(VIEWS, TINY, seed=0)
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3)
    bleeding = torch.nonzero(population.labels.sum((1, 2, 3)) > 0)[:, 0]
    random = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = bleeding[torch.randint(len(bleeding), (8,), generator=random)]
        loss = supervised_loss(net(population.images[chosen], "axial"), population.labels[chosen])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return exchanged.read(net)


def weights_of_steps(steps: int, round_: int = 1) -> Floats:
    """How much a gradient of each step counts in what leaves, where AdamW is linear; their sum is 1."""
    schedule = Schedule(1.0, 0.0, steps, round_, ROUNDS)
    found = [
        sum(schedule.rate(late) * 0.9 ** (late - step) / (1 - 0.9 ** (late + 1)) for late in range(step, steps))
        for step in range(steps)
    ]
    return np.array(found) / sum(found)


def match(asked: Request, start: AdapterState, change: Mapping[str, Floats], population: Population, n: int) -> Floats:
    """64 slices (n, pixels) whose projected gradients are nearest to a change, after ``n`` steps of the search.

    The labels are taken for empty, as most are. Only plain convolutions are compared.
    """
    net = base_network(VIEWS, asked.model, asked.base)
    layers = {path: one for path, one in net.named_modules() if isinstance(one, nn.Conv2d)}
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    kernels = [one.weight.requires_grad_(True) for one in layers.values()]
    factors = [[_tensor(start[f"{path}.update.{name}"]).flatten(1) for name in ("up", "down")] for path in layers]
    wanted = [[_tensor(change[f"{path}.update.{name}"]).flatten(1) for name in ("up", "down")] for path in layers]
    targets = [
        one for (up, down), (of_up, of_down) in zip(factors, wanted, strict=True) for one in _used(up, of_up, of_down)
    ]
    images = starting_slices(asked, population).clone().requires_grad_(True)
    optimiser = torch.optim.Adam([images], lr=0.02)
    shares = weights_of_steps(asked.steps, asked.round)
    for step in range(n):
        optimiser.param_groups[0]["lr"] = 0.02 * (1 - step / n)
        logits = net(images, "axial").split(asked.batch)
        loss = sum(w * supervised_loss(one, torch.zeros_like(one)) for w, one in zip(shares, logits, strict=True))
        gradients = torch.autograd.grad(loss, kernels, create_graph=True)
        mine: list[Tensor] = []
        for gradient, (up, down) in zip(gradients, factors, strict=True):
            flat = gradient.flatten(1)
            mine += _used(up, flat @ down.t(), up.t() @ flat)
        both = zip(mine, targets, strict=True)
        alike = [nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) for a, b in both]
        smooth = images.diff(dim=2).abs().mean() + images.diff(dim=3).abs().mean()
        optimiser.zero_grad()
        (torch.stack(alike).mean() + SMOOTH * smooth).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        with torch.no_grad():
            images.clamp_(0, 1)
    return images.detach().flatten(1).numpy().astype(np.float64)


def starting_slices(asked: Request, population: Population) -> Tensor:
    """Slices of the attacker's own patients, as many as a round has."""
    return population.images[: asked.steps * asked.batch]


def pairs(found: Floats, truth: Floats, mean: Floats) -> list[tuple[int, int]]:
    """The assignment of found to true slices (n, pixels) in which they are most alike without the mean slice."""
    a, b = ((one - mean) - (one - mean).mean(1, keepdims=True) for one in (found, truth))
    alike = (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
    return [(int(i), int(j)) for i, j in zip(*linear_sum_assignment(-alike), strict=True)]


def _used(up: Tensor, of_up: Tensor, of_down: Tensor) -> Sequence[Tensor]:
    """What moves: ``down`` has a gradient only where ``up`` is not zero."""
    return [of_up, of_down] if up.any() else [of_up]


def _tensor(value: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.asarray(value, np.float64) / max(float(np.abs(value).max()), 1e-300)).float()


def main() -> None:
    """The honest base's Dice on the attacker's own slices."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    torch.set_num_threads(1)
    own, other = (
        Population.of(use, 128, patients=12, shape=SHAPE, spacing=SPACING_MM) for use in ("attacker", "others")
    )
    net = base_network(VIEWS, TINY, honest_base(own))
    with torch.no_grad():
        guess = net(other.images, "axial") > 0
    common = float((guess * other.labels).sum())
    print(f"{PIXELS} x {PIXELS}: Dice {2 * common / float(guess.sum() + other.labels.sum()):.3f}")


if __name__ == "__main__":
    main()
