"""A small study of different SAH sites in one process, without Flower; the federated benchmarks train on it.

    python benchmarks/small_study.py    # makes the base network, and prints its Dice at each site

Training, sampling, turns and aggregation are the project's own; grid, network and rounds are small, so that a run takes
seconds. The base is pretrained once on trauma phantoms and kept in the folder for temporary files. Each seed has its
own patients, initial adapters and batches; everything compared within a seed shares them.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from machine import machine
from torch import nn

from sahfl.adapters import AdapterState, digest, exchanged
from sahfl.adapters.adapted import AdaptedConv
from sahfl.adapters.attach import attach
from sahfl.adapters.exchanged import factored_layers
from sahfl.adapters.files import load_tensors, save_tensors
from sahfl.adapters.steps import rate_of
from sahfl.config import AdapterTuning, ModelConfig, ViewsConfig
from sahfl.data.ct import Scan
from sahfl.data.phantom import PROFILES, PhantomKind, make_case
from sahfl.data.sampler import SliceSampler
from sahfl.data.views import CaseViews, make_views, n_channels
from sahfl.errors import AdapterError
from sahfl.evaluation import predict
from sahfl.federation.turns import take_turn
from sahfl.model import MultiViewUNet
from sahfl.networks import base_network, whole_network
from sahfl.seeds import derive_seed
from sahfl.simulation.hostile import inverted
from sahfl.training import Schedule, train

VIEWS = ViewsConfig(
    weights={"axial": 1.0}, spacing_mm=3.2, size=(48, 64, 32), neighbours=0, windows_hu=((0.0, 80.0), (-20.0, 180.0))
)
MODEL = ModelConfig(size="tiny")
SHAPE, SPACING_MM = (48, 64, 16), (3.2, 3.2, 8.0)
BATCH_SIZE, FOREGROUND_SHARE, WEIGHT_DECAY = 4, 0.5, 1e-4
N_HELD_OUT = 2
BASE_STEPS, BASE_CASES = 300, 4
"""Steps of pretraining, and trauma patients of each profile."""
THRESHOLD = 0.5


@dataclass(frozen=True)
class SmallSite:
    """A site: its scanner, and the number of patients it trains on."""

    name: str
    profile: str
    n_training: int


SITES = (
    SmallSite("bern", "standard", 8),
    SmallSite("graz", "noisy", 6),
    SmallSite("lyon", "tilted", 4),
    SmallSite("oslo", "offset", 4),
    SmallSite("turin", "smooth", 4),
)
Patient = tuple[CaseViews, Scan]


class Federation:
    """The sites of one seed with one adapter method.

    Args:
        method: the trained adapter; its aggregation is ignored.
        seed: of patients, initial adapters and batches.
        sites: the participants.
        base: the pretrained network.
        steps: optimiser steps of a site in a round.
        n_held_out: patients of each site that are evaluated and never trained on.
        rates: from the network to the factors of the learning rate of its parameters, for ``training.train``.
    """

    def __init__(
        self,
        method: AdapterTuning,
        seed: int,
        *,
        sites: Sequence[SmallSite],
        base: AdapterState,
        steps: int,
        n_held_out: int = N_HELD_OUT,
        rates: Callable[[nn.Module], Callable[[str], float]] = rate_of,
    ) -> None:
        self._net = base_network(VIEWS, MODEL, base)
        example = torch.zeros(1, n_channels(VIEWS), 32, 32)
        attach(self._net, method, seed=derive_seed(seed, "adapter"), parts=self._net.parts, example=example)
        self.layers = factored_layers(self._net, method)
        self.start = exchanged.read(self._net)
        self.sites = {site.name: site for site in sites}
        self._method, self._seed, self._steps = method, seed, steps
        self._training = {site.name: _patients(site, seed, "training", site.n_training) for site in sites}
        self._held_out = {site.name: _patients(site, seed, "held out", n_held_out) for site in sites}
        self._rates = rates
        self._known: dict[tuple[object, ...], AdapterState] = {}

    def train(
        self, site: str, received: AdapterState, *, round_: int, rounds: int, turns: bool = False, flipped: bool = False
    ) -> AdapterState:
        """A site's state after its round; if factors take turns, only those that train in that round.

        ``flipped`` trains on inverted annotations. Training depends only on its arguments, so known results are not
        computed again.
        """
        key = (site, digest(received), round_, rounds, turns, flipped)
        if key not in self._known:
            self._known[key] = self._train(site, received, round_, rounds, turns, flipped)
        return self._known[key]

    def _train(
        self, site: str, received: AdapterState, round_: int, rounds: int, turns: bool, flipped: bool
    ) -> AdapterState:
        exchanged.load(self._net, received)
        for parameter in exchanged.parameters(self._net).values():
            parameter.requires_grad_(True)
        rule = "alternate" if turns else "mean"
        names = take_turn(self._net, self._method.model_copy(update={"aggregation": rule}), round_)
        cases = [inverted(views) if flipped else views for views, _ in self._training[site]]
        sampler = SliceSampler(
            cases,
            VIEWS,
            batch_size=BATCH_SIZE,
            foreground_share=FOREGROUND_SHARE,
            seed=derive_seed(self._seed, site, round_),
        )
        schedule = Schedule(self._method.learning_rate, WEIGHT_DECAY, self._steps, round_, rounds)
        train(self._net, sampler, schedule, rate_of=self._rates(self._net))
        trained = exchanged.read(self._net)
        return {name: trained[name] for name in names}

    def changes(self, state: AdapterState) -> list[float]:
        """Change of each adapted kernel in a state, relative to the kernel of the base."""
        exchanged.load(self._net, state)
        layers = [module for module in self._net.modules() if isinstance(module, AdaptedConv)]
        pairs = [(layer.base.weight, layer.merged().weight) for layer in layers]
        return [((after - before).norm() / before.norm()).item() for before, after in pairs]

    def dice(self, final: AdapterState, sites: Sequence[str] = ()) -> float:
        """Dice over all voxels of all held-out patients of the sites together."""
        exchanged.load(self._net, final)
        return pooled_dice(self._net, [patient for site in sites or self.sites for patient in self._held_out[site]])


def pooled_dice(net: MultiViewUNet, patients: Sequence[Patient]) -> float:
    """Dice over all voxels of all patients together; 0 for a network that computes NaN."""
    common = total = 0
    for views, scan in patients:
        guess = predict(net, views, VIEWS) >= THRESHOLD
        common, total = common + int((guess & scan.label).sum()), total + int(guess.sum()) + int(scan.label.sum())
    return 2 * common / total


def _patients(site: SmallSite, seed: int, use: str, n: int) -> list[Patient]:
    return [_patient(site.profile, "sah", derive_seed(seed, site.name, use, index)) for index in range(n)]


def _patient(profile: str, kind: PhantomKind, seed: int) -> Patient:
    case = make_case(seed, kind=kind, profile=PROFILES[profile], shape=SHAPE, spacing_mm=SPACING_MM)
    scan = Scan(case.image.astype(np.float32), case.label > 0, case.affine)
    return make_views(scan, VIEWS), scan


def read_base(profiles: Sequence[str] = tuple(PROFILES), n_cases: int = BASE_CASES) -> AdapterState:
    """Load the base network from the folder for temporary files; if it is missing there, train it first.

    It is trained on ``n_cases`` trauma patients of each of the scanner ``profiles``.
    """
    made_of = repr((VIEWS, MODEL, SHAPE, SPACING_MM, BASE_STEPS, tuple(profiles), n_cases, BATCH_SIZE))
    path = Path(tempfile.gettempdir()) / f"sahfl-base-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.safetensors"
    try:
        return load_tensors(path)[0]
    except AdapterError:
        save_tensors(path, _pretrained(profiles, n_cases))
    return load_tensors(path)[0]


def _pretrained(profiles: Sequence[str], n_cases: int) -> AdapterState:
    cases = [
        _patient(profile, "tbi", derive_seed("base", profile, index))[0]
        for profile in profiles
        for index in range(n_cases)
    ]
    sampler = SliceSampler(cases, VIEWS, batch_size=BATCH_SIZE, foreground_share=FOREGROUND_SHARE, seed=0)
    net = whole_network(VIEWS, MODEL, seed=0)
    train(net, sampler, Schedule(2e-3, WEIGHT_DECAY, BASE_STEPS, 1, 1))
    return exchanged.read(net)


def main() -> None:
    """Make the base, and print its Dice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    torch.set_num_threads(1)
    net = base_network(VIEWS, MODEL, read_base())
    for site in SITES:
        dice = pooled_dice(net, _patients(site, 0, "held out", N_HELD_OUT))
        print(f"{site.name:6} {site.profile:9} Dice of the base {dice:.3f}")
    print(machine())


if __name__ == "__main__":
    main()
