"""What tells an attack's round from an honest one, of what a hospital can compute before it answers.

    python benchmarks/inversion_statistics.py    # the statistics of an honest round

A *row* is an output channel of an adapted convolution, its numbers in ``up``; after a crafted start it is a term in
``down``. An effective number is (sum of x)^2 / sum of x^2: 1 if one of many counts alone, and all of them if all count
alike.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from crafted_base import VIEWS
from inversion_matching import TINY, honest_base
from inversion_readout import Floats, Population
from inversion_site import ROUNDS, SEED, SHAPE, SPACING_MM, Answer, Hospital, Request, attack_round

from sahfl.adapters import exchanged
from sahfl.config import AdapterTuning
from sahfl.networks import fine_tuned_network
from sahfl.training import Schedule, supervised_loss

HONEST = AdapterTuning(method="conv_lora", rank=8)
DEAD = 1e-3
FEW = 8
"""A layer in which fewer rows moved is left out."""
PARTS = ("update.up", "update.down")


def statistics(asked: Request, answer: Answer) -> dict[str, float]:
    """The statistics of a round by name: medians over the rows that moved, of the layer where they are most telling.

    ``move``: how far it moved, as a share of the sum of the learning rates. ``steps``: effective number of steps,
    by the norms of a row's gradients. ``dead``: share of rows and steps with a gradient below a thousandth of the
    row's largest. ``slices``: effective number of slices, by the norms of what each adds to a row. ``apart``: the same
    after the mean of all rows was taken away from each. ``norm``: largest norm of all gradients of a step.
    """
    largest = {
        part: max(float(np.abs(g[n]).max()) for g in answer.gradients for n in g if n.endswith(part)) for part in PARTS
    }
    names = [name for name in answer.sent if name.endswith(max(largest, key=lambda part: largest[part]))]
    schedule = Schedule(asked.learning_rate, 0.0, asked.steps, asked.round, ROUNDS)
    rates = sum(schedule.rate(step) for step in range(asked.steps))
    moves, effective, dead, slices, apart = [], [], [], [], []
    parts = contributions(asked, answer, names)
    for name in names:
        change = np.abs(answer.change(name)).reshape(len(answer.sent[name]), -1)
        by_step = np.stack([np.linalg.norm(step[name].reshape(len(change), -1), axis=1) for step in answer.gradients])
        alive = by_step.max(0) > DEAD * by_step.max()
        if alive.sum() < FEW:
            continue
        moves.append(np.median(change[alive], axis=1) / rates)
        effective.append(effective_number(by_step[:, alive]))
        dead.append((by_step[:, alive] < DEAD * by_step[:, alive].max(0)).mean(0))
        slices.append(effective_number(np.linalg.norm(parts[name], axis=2)[:, alive]))
        rest = parts[name][:, alive] - parts[name][:, alive].mean(1, keepdims=True)
        apart.append(effective_number(np.linalg.norm(rest, axis=2)))
    norms = [
        np.sqrt(sum(float((value.astype(np.float64) ** 2).sum()) for value in step.values()))
        for step in answer.gradients
    ]
    found = {"move": moves, "steps": effective, "slices": slices, "apart": apart}
    least = {name: float(min((np.median(rows) for rows in by_layer), default=0.0)) for name, by_layer in found.items()}
    return least | {"dead": float(max((np.median(rows) for rows in dead), default=1.0)), "norm": float(max(norms))}


def effective_number(x: Floats) -> Floats:
    """Along the first axis."""
    squares = (x**2).sum(0)
    return np.divide(x.sum(0) ** 2, squares, out=np.zeros_like(squares), where=squares > 0)


def contributions(asked: Request, answer: Answer, names: list[str]) -> dict[str, Floats]:
    """What each slice adds to the gradient of ``up`` at the start of the round, (slices, rows, numbers), by tensor."""
    net = fine_tuned_network(VIEWS, asked.model, asked.base, asked.method, SEED)
    exchanged.load(net, answer.start)
    net.train()
    wanted = [net.get_parameter(name) for name in names]
    found: dict[str, list[Floats]] = {name: [] for name in names}
    for images, labels in zip(answer.images, answer.labels, strict=True):
        x, y = torch.from_numpy(images)[:, None], torch.from_numpy(labels)[:, None]
        with torch.no_grad():
            plain = net(x, "axial")
        logits = [one.requires_grad_(True) for one in (plain if isinstance(plain, list) else [plain])]
        of_logits = torch.autograd.grad(supervised_loss(logits, y), logits)
        for number in range(len(x)):
            outputs = net(x[number : number + 1], "axial")
            outputs = outputs if isinstance(outputs, list) else [outputs]
            own = [one[number : number + 1] for one in of_logits]
            reached = [(one, of) for one, of in zip(outputs, own, strict=True) if one.requires_grad]
            outputs, own = [one for one, _ in reached], [of for _, of in reached]
            for name, gradient in zip(names, torch.autograd.grad(outputs, wanted, own), strict=True):
                found[name].append(gradient.flatten(1).numpy().astype(np.float64))
    return {name: np.stack(value) for name, value in found.items()}


def honest_round(hospital: Hospital, population: Population, method: AdapterTuning = HONEST) -> tuple[Request, Answer]:
    """A round as a study asks for it, on a base that was pretrained on others' patients."""
    asked = Request(method, TINY, honest_base(population), learning_rate=5e-3, foreground_share=0.5, study="0" * 64)
    return asked, attack_round(hospital, asked)


def main() -> None:
    """The statistics of an honest round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    torch.set_num_threads(1)
    own = Population.of("attacker", 256, patients=24, shape=SHAPE, spacing=SPACING_MM)
    with tempfile.TemporaryDirectory() as folder:
        print(statistics(*honest_round(Hospital(Path(folder)), own)))


if __name__ == "__main__":
    main()
