"""The networks of a finished run that segment a new scan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from sahfl.adapters import AdapterState, digest
from sahfl.adapters.attach import merge
from sahfl.adapters.files import load_tensors
from sahfl.adapters.folder import put_adapter, read_adapter
from sahfl.cell_names import cell_of
from sahfl.config import AdapterTuning, Method, Study, ViewsConfig, ZeroShot
from sahfl.errors import AdapterError, RunError
from sahfl.model import Network
from sahfl.networks import base_network
from sahfl.report.choice import choose
from sahfl.report.form import check_results
from sahfl.run.folder import RunFolder, base_file

NetworkPart = Literal["whole", "shared", "mean", "site"]
"""All that a method trains; what the sites share, without what stays at each; what they share with the mean of what
stays; or what they share with what stays at one site, trained on its patients."""


@dataclass(frozen=True)
class Trained:
    """Networks that segment together: one, or those of a method's folds."""

    nets: tuple[nn.Module, ...]
    """Plain networks, with every adapter merged."""
    views: ViewsConfig
    threshold: float
    """The study's threshold: a voxel is blood if its probability reaches it."""
    study: str
    fingerprint: str
    method: str
    folds: tuple[int, ...]
    """Empty for the base network alone."""
    hashes: tuple[str, ...]
    """SHA-256 of each adapter, or of the base network if there is none."""
    part: NetworkPart
    """How much of what a method trained is in these networks."""

    @property
    def caution(self) -> str | None:
        """A sentence for the user if a part of the method is not in these networks, otherwise None."""
        lacking = {"shared": "without any of it", "mean": "with its mean over the sites"}.get(self.part)
        return lacking and f"a part of this method stays at each site; these networks are {lacking}"


def read_trained(run: Path, *, method: str | None = None, fold: int | None = None) -> Trained:
    """The networks of a run: of a method, by default the ``usual_method``, in one fold or by default in all.

    Raises:
        RunError: the folder is no run, it has no such method or fold, or that fold is not finished; the message lists
            what exists.
        DataError: no method is named, and the run's results have not the form of results.
        AdapterError: a file is damaged, or belongs to another network.
    """
    study = read_study(run)
    chosen = choose_method(study, method or usual_method(study, run), run)
    folds = choose_folds(run, study, chosen, fold)
    nets, hashes = zip(*(adapted_network(run, study, chosen, number) for number in folds or (-1,)), strict=True)
    for net in nets:
        merge(net)
    return Trained(
        nets=nets,
        views=study.views,
        threshold=study.evaluation.threshold,
        study=study.name,
        fingerprint=study.fingerprint(),
        method=chosen.id,
        folds=folds,
        hashes=hashes,
        part=part_of(chosen),
    )


def part_of(method: Method) -> NetworkPart:
    """How much of what a method trains is in the networks of a run's folder."""
    if isinstance(method, ZeroShot) or not method.is_personal:
        return "whole"
    return "mean" if method.share_private_at_end else "shared"


def adapted_network(run: Path, study: Study, method: Method, fold: int) -> tuple[Network, str]:
    """Load the base of a run with a fold's adapter, not merged, and the adapter's SHA-256; zero-shot has only the base.

    Raises:
        RunError: the fold's adapter is missing.
        AdapterError: a file is damaged, or base and adapter do not belong together.
    """
    base = read_base(run, base_of=method.base_of)
    net = base_network(study.views, study.model, base)
    if isinstance(method, ZeroShot):
        return net, digest(base)
    adapter = read_adapter(adapter_folder(run, method, fold))
    if (named := (adapter.note.trained_as, adapter.note.fold)) != (method.id, fold):
        found = f"{named[0]}, fold {named[1]}"
        raise AdapterError(f"{adapter_folder(run, method, fold)}: holds {found}, expected {method.id}, fold {fold}")
    put_adapter(net, adapter)
    return net, adapter.note.sha256


def read_base(run: Path, *, base_of: str | None = None) -> AdapterState:
    """The base network of a run, or the one that a pretraining site trained alone.

    Raises:
        RunError: the run has none yet.
        AdapterError: it is damaged.
    """
    path = run / base_file(base_of)
    if not path.is_file():
        raise RunError(f"{run}: has no {base_file(base_of)}; the run has not come to its fine-tuning yet")
    base, note = load_tensors(path)
    if digest(base) != note.get("sha256"):
        raise AdapterError(f"{path}: content does not match its hash")
    return base


def adapter_folder(run: Path, method: Method, fold: int) -> Path:
    """Folder of a method's adapter for a fold, in a run."""
    return RunFolder(run).adapter(cell_of(method, fold))


def usual_method(study: Study, run: Path) -> str:
    """Id of the method to use if none was named: the one that the run's report recommends, or the first adapter.

    Raises:
        RunError: the run's results are damaged.
        DataError: they have not the form of results.
    """
    folder = RunFolder(run)
    if (run / "results.json").is_file():
        found = folder.results()
        check_results(found)
        if (recommended := choose(found).method) is not None:
            ids = {_first_training(method): method.id for method in reversed(study.finetune.methods)}
            return ids.get(recommended["id"], str(recommended["id"]))
    return first_adapter(study).id


def _first_training(method: Method) -> str:
    """Id of a method's first training, which its row of the results has, also if the study has only later repeats."""
    return method.id if isinstance(method, ZeroShot) else method.model_copy(update={"repeat": 1}).id


def first_adapter(study: Study) -> Method:
    """The first adapter that all sites train together from the common base.

    Without one it is the first adapter that is not trained at one site alone, or else the first method.
    """
    methods = study.finetune.methods
    shared = [one for one in methods if isinstance(one, AdapterTuning) and not one.is_alone]
    of_all = (one for one in shared if (one.trained_at, one.left_out, one.base_of) == (None, None, None))
    return next(of_all, next(iter(shared), methods[0]))


def choose_method(study: Study, wanted: str, run: Path) -> Method:
    """A study's method by its id.

    Raises:
        RunError: there is no method with this id; the message lists all ids.
    """
    methods = study.finetune.methods
    for method in methods:
        if method.id == wanted:
            return method
    listed = ", ".join(method.id for method in methods)
    raise RunError(f"{run}: has no method {wanted!r} (it has: {listed}); name one of these")


def read_study(run: Path) -> Study:
    """Settings of a run.

    Raises:
        RunError: the folder is no run.
    """
    if not (run / "study.json").is_file():
        raise RunError(f"{run}: is no folder of a run (study.json is missing)")
    return RunFolder(run).study()


def choose_folds(run: Path, study: Study, method: Method, fold: int | None) -> tuple[int, ...]:
    """The requested folds, by default all; none for the base network alone.

    Raises:
        RunError: the study has no such fold, or it is not finished.
    """
    if isinstance(method, ZeroShot):
        if fold is not None:
            raise RunError(f"{run}: zero_shot is the base network, which has no folds; leave out the fold")
        return ()
    known = range(study.finetune.folds)
    if fold is not None and fold not in known:
        raise RunError(f"{run}: has no fold {fold} (it has: {', '.join(map(str, known))})")
    if method.is_alone:
        place = f"the folder of {method.trained_at}, if that site lets you"
        raise RunError(f"{run}: has nothing of {method.id}, which stays at the site that trained it; name {place}")
    wanted = known if fold is None else (fold,)
    there = [number for number in known if (adapter_folder(run, method, number) / "adapter_config.json").is_file()]
    if missing := [number for number in wanted if number not in there]:
        listed = ", ".join(map(str, there)) or "none"
        text = f"{method.id} is not finished for fold {', '.join(map(str, missing))} (finished: {listed})"
        raise RunError(f"{run}: {text}; finish the run, or name a finished fold")
    return tuple(wanted)
