"""The networks that stay at a site: each was evaluated there, and holds numbers that only this site's patients gave.

The site's folder has all that they need: what the site stores of a training, and the base network.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from sahfl.adapters import AdapterState, digest, exchanged
from sahfl.adapters.attach import merge
from sahfl.adapters.files import load_tensors
from sahfl.errors import AdapterError, PrivatePartLost, RunError
from sahfl.federation.site.private import FOLDER, Stored, stored
from sahfl.model import Network
from sahfl.networks import fine_tuned_network
from sahfl.payload import FINGERPRINT, Header
from sahfl.prediction.networks import Trained
from sahfl.task import Task


@dataclass(frozen=True)
class SiteNetwork:
    """A network that stays at a site."""

    task: Task
    """The evaluation that it was stored for: method, views, threshold, fold."""
    study: str
    """Fingerprint of the study."""
    net: Network
    """The network with its adapter, not merged."""
    sha256: str
    """Digest of its trained tensors."""


def is_site(folder: Path) -> bool:
    """Whether a folder is a site's own, with networks that stay there."""
    return (folder / FOLDER).is_dir()


def read_site(folder: Path, *, method: str | None = None, fold: int | None = None) -> Trained:
    """The networks of a method that stay at a site, merged: of one fold, or by default of all.

    Raises:
        RunError: the site has no network of this method or fold, or several could be meant; the message lists all.
        AdapterError: a file is damaged.
        PrivatePartLost: the base network is missing.
    """
    found = [read_network(folder, one) for one in choose(folder, method=method, fold=fold)]
    for item in found:
        merge(item.net)
    first = found[0]
    assert first.task.method is not None
    assert first.task.evaluation is not None
    return Trained(
        nets=tuple(item.net for item in found),
        views=first.task.views,
        threshold=first.task.evaluation.threshold,
        study=f"study {first.study[:12]}",
        fingerprint=first.study,
        method=first.task.method.id,
        folds=tuple(item.task.fold for item in found),
        hashes=tuple(item.sha256 for item in found),
        part="site",
    )


def choose(folder: Path, *, method: str | None, fold: int | None) -> Sequence[Stored]:
    """What a site stores of one method of one study, in the order of the folds.

    Raises:
        RunError: there is none, or several could be meant; the message lists all.
    """
    all_ = [one for one in stored(folder) if one.network is not None]
    chosen = [one for one in all_ if method in (None, one.method) and fold in (None, one.fold)]
    if len({(one.study, one.method) for one in chosen}) != 1:
        listed = "; ".join(f"{one.method}, fold {one.fold}, study {one.study[:12]}" for one in all_) or "none"
        wanted = "no network" if not chosen else "networks of several methods or studies"
        remedy = "name one by method and fold, or delete those of old studies with sahfl private delete"
        raise RunError(f"{folder}: has {wanted} for this (it has: {listed}); {remedy}")
    return chosen


def network_of(folder: Path, header: Header) -> Network:
    """The network that a site evaluated for a header's training, not merged.

    Raises:
        PrivatePartLost: it is missing.
        AdapterError: it is damaged.
    """
    one = next((one for one in stored(folder) if one.name == header.training and one.network), None)
    if one is None:
        raise PrivatePartLost(f"{folder / FOLDER}: has no network of {header.method}, fold {header.fold}")
    return read_network(folder, one).net


def read_network(folder: Path, one: Stored) -> SiteNetwork:
    """Read one network that stays at a site; errors as in ``read_site``."""
    assert one.network is not None
    tensors, note = load_tensors(one.network)
    try:
        task = Task.model_validate_json(json.dumps(note.get("task")))
    except ValidationError as error:
        raise AdapterError(f"{one.network}: is not the note of a network that stays at a site") from error
    base = note.get("base")
    if digest(tensors) != note.get("sha256") or task.training is None or task.evaluation is None:
        raise AdapterError(f"{one.network}: content does not match its hash")
    if not isinstance(base, str) or not FINGERPRINT.fullmatch(base):
        raise AdapterError(f"{one.network}: names no base network; restore it from a backup")
    net = fine_tuned_network(task.views, task.model, _base(folder, base), task.training, task.seed)
    exchanged.load(net, tensors)
    return SiteNetwork(task, one.study, net, digest(tensors))


def _base(folder: Path, sha256: str) -> AdapterState:
    path = folder / f"base-{sha256}.safetensors"
    if not path.is_file():
        raise PrivatePartLost(f"{path}: is missing; the network belongs to this base, so copy it here again")
    base, _ = load_tensors(path)
    if digest(base) != sha256:
        raise AdapterError(f"{path}: content does not match its hash")
    return base
