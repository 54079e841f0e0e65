"""The work of a study, before it begins: its trainings, what each sends, and the time that earlier cells took."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sahfl.adapters import AdapterState, exchanged
from sahfl.cell_names import Pretraining
from sahfl.config import Method, Study, ZeroShot
from sahfl.federation.server.reuse import work_of
from sahfl.networks import fine_tuned_network, trained_tensors, whole_network
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
    """Expected work of the sites for all its cells; None if no such cell was ever run."""


def plan(study: Study, cells: Path) -> list[Planned]:
    """The trainings of a study, pretraining first; ``cells`` is the folder of finished cells, for the times."""
    store, found = CellStore(cells), []
    if study.pretrain is not None:
        found.append(_planned(Pretraining(), study, f"{len(study.pretrain.sites)} sites", 1, store))
    found += [_planned(Pretraining(site), study, site, 1, store) for site in study.own_bases]
    for method in study.finetune.methods:
        sites = study.training_sites(method)
        where = f"{len(sites)} sites" if len(sites) > 1 else "".join(sites) or "nowhere"
        n_trials = 0 if isinstance(method, ZeroShot) else len(method.trials)
        found.append(_planned(method, study, where, study.finetune.folds * (1 + n_trials), store))
    return found


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
    return Planned(method.id, n_cells, where, parameters, n_bytes, None if each is None else each * n_cells)
