"""The work of a study, before it begins: its trainings, what each sends, and the time that they take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from sahfl.adapters import AdapterState, exchanged
from sahfl.cell_names import Pretraining
from sahfl.config import Method, Study, ViewsConfig, ZeroShot
from sahfl.data.survey import mean_slices
from sahfl.data.view_settings import pixels_of_scan
from sahfl.data.views import n_channels
from sahfl.federation.server.reuse import work_of
from sahfl.networks import fine_tuned_network, plain_network, trained_tensors, whole_network
from sahfl.payload import payload_size
from sahfl.run.cell_store import CellStore
from sahfl.statistics.sums import array_length


@dataclass(frozen=True)
class Planned:
    """Pretraining, or a method on all folds."""

    id: str
    n_cells: int
    trained_at: str
    parameters: int
    """How many numbers are trained and sent."""
    bytes_per_round: int
    """What a site sends in a round, without headers."""
    seconds: float | None
    """Expected work of the sites for all its cells; None at hospitals if no such cell was ever run."""
    guessed: bool
    """Whether the time is a guess from this machine's speed, because no such cell was ever run."""


@dataclass(frozen=True)
class Speed:
    """How long the network of a study takes for one pixel of a slice on one core of this machine."""

    train_s: float
    """Seconds of a training step, forward and back."""
    segment_s: float
    """Seconds of a prediction."""


@dataclass(frozen=True)
class FoundScans:
    """The scans of one site of a simulation, from its list and some headers."""

    n: int
    n_slices: float
    """Mean number of axial slices of a scan; the height of the study's field for scans that the site makes."""


def plan(study: Study, cells: Path) -> list[Planned]:
    """The trainings of a study, pretraining first; ``cells`` is the folder of finished cells, for the times.

    Raises:
        DataError: a site of a simulation has no scans.
    """
    deployed = study.data.source == "sites"
    scans = {} if deployed else find_scans(study)
    rows = _trainings(study, CellStore(cells))
    if deployed or all(row.seconds is not None for _, row in rows):
        return [row for _, row in rows]
    speed = measure_speed(study)
    return [
        row if row.seconds is not None else replace(row, seconds=_guess(study, of, row, scans, speed), guessed=True)
        for of, row in rows
    ]


def find_scans(study: Study) -> dict[str, FoundScans]:
    """The scans of each site of a simulation.

    Raises:
        DataError: a site has no scans.
    """
    found, sections = {}, study.data.for_sites(study.sites, study=study.name, seed=study.seed)
    with TemporaryDirectory() as folder:  # for a source that writes its scans to list them
        for site, section in sections.items():
            cases = () if section.n_made else section.glance(site, Path(folder) / site)
            found[site] = FoundScans(section.n_made or len(cases), mean_slices(cases) or study.views.size[2])
    return found


def measure_speed(study: Study) -> Speed:
    """Time a few batches of a study's network; the rest of a step, such as an adapter, takes little beside it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a simulated site computes
    try:
        net = plain_network(study.views, study.model, 0)
        n, (width, height, _) = study.finetune.local.batch_size, study.views.size
        batch, view = torch.zeros(n, n_channels(study.views), width, height), next(iter(study.views.weights))
        train_s = min(_seconds(lambda: net(batch, view).sum().backward()) for _ in range(3))
        with torch.no_grad():
            segment_s = min(_seconds(lambda: net(batch, view)) for _ in range(3))
    finally:
        torch.set_num_threads(threads)
    n_pixels = n * width * height
    return Speed(train_s / n_pixels, segment_s / n_pixels)


def _seconds(call: Callable[[], object]) -> float:
    """Time of the processor, which other programs on this machine do not change."""
    began = time.process_time()
    call()
    return time.process_time() - began


def _guess(
    study: Study, of: Method | Pretraining, row: Planned, scans: Mapping[str, FoundScans], speed: Speed
) -> float:
    """Seconds of all cells of a training: its steps, and the segmentation of every held-out scan."""
    if isinstance(of, Pretraining):
        assert study.pretrain is not None
        n_steps = study.pretrain.rounds * study.pretrain.local.steps * (1 if of.site else len(study.pretrain.sites))
        return n_steps * study.pretrain.local.batch_size * _mean_pixels(study.views) * speed.train_s
    found = (scans[site] for site in study.evaluating_sites(of))
    n_pixels = sum(one.n * pixels_of_scan(study.views.weights, study.views.size, one.n_slices) for one in found)
    seconds = n_pixels * speed.segment_s * row.n_cells / study.finetune.folds
    if not isinstance(of, ZeroShot):
        local = study.local_training(of)
        n_steps = row.n_cells * study.rounds_of(of) * local.steps * len(study.training_sites(of))
        seconds += n_steps * local.batch_size * _mean_pixels(study.views) * speed.train_s
    return seconds


def _mean_pixels(views: ViewsConfig) -> float:
    """Mean number of pixels of a slice that is trained on."""
    x, y, z = views.size
    pixels = {"axial": x * y, "coronal": x * z, "sagittal": y * z}
    return sum(pixels[view] * weight for view, weight in views.weights.items()) / sum(views.weights.values())


def _trainings(study: Study, store: CellStore) -> list[tuple[Method | Pretraining, Planned]]:
    found: list[tuple[Method | Pretraining, str, int]] = []
    if study.pretrain is not None:
        found.append((Pretraining(), f"{len(study.pretrain.sites)} sites", 1))
    found += [(Pretraining(site), site, 1) for site in study.own_bases]
    for method in study.finetune.methods:
        sites = study.training_sites(method)
        where = f"{len(sites)} sites" if len(sites) > 1 else "".join(sites) or "nowhere"
        n_trials = 0 if isinstance(method, ZeroShot) else len(method.trials)
        found.append((method, where, study.finetune.folds * (1 + n_trials)))
    return [(of, _planned(of, study, where, n_cells, store)) for of, where, n_cells in found]


def payload_bytes(study: Study) -> int:
    """Bytes of the largest state or sums that a site of a study sends."""
    base = exchanged.read(whole_network(study.views, study.model, study.seed))
    sizes = [8 * array_length(study.evaluation), _size(base)]
    for method in study.finetune.methods:
        if not isinstance(method, ZeroShot):
            sizes.append(_size(exchanged.read(fine_tuned_network(study.views, study.model, base, method, study.seed))))
    return max(sizes)


def _size(state: AdapterState) -> int:
    return sum(tensor.nbytes for tensor in state.values())


def _planned(method: Method | Pretraining, study: Study, where: str, n_cells: int, store: CellStore) -> Planned:
    tuning = None if isinstance(method, Pretraining | ZeroShot) else method
    trained = None if isinstance(method, ZeroShot) else trained_tensors(study.views, study.model, tuning)
    shapes = trained.shared if trained else {}
    parameters, n_bytes = payload_size(shapes.values(), study.rounds.payload)
    each = store.seconds(work_of(study, method))
    seconds = None if each is None else each * n_cells
    return Planned(method.id, n_cells, where, parameters, n_bytes, seconds, guessed=False)
