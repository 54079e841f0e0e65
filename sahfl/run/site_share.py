"""What runs and kept cells have of one site, for a patient or a hospital that withdraws."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sahfl.adapters.files import load_tensors
from sahfl.cell_names import PRETRAIN, Pretraining, is_pretraining
from sahfl.config import POOLED
from sahfl.errors import AdapterError, RunError, SahflError
from sahfl.regular_files import LIST_BYTES, read_json
from sahfl.run.cell_store import CellStore
from sahfl.run.folder import RunFolder, base_file


@dataclass(frozen=True)
class SiteShare:
    """What one run has of a site."""

    run: Path
    study: str
    fingerprint: str
    """Fingerprint of the study; empty if the run is of another version of sahfl, whose settings cannot be read."""
    trained: tuple[str, ...]
    """Cells in which the site trained, alone or pooled with others too."""
    evaluated: tuple[str, ...]
    """Evaluations to which the site sent sums: cells, with the part that was evaluated."""
    bases: frozenset[str]
    """Hashes of the run's base networks that the site trained, in this run or in an earlier one."""


def runs_with(site: str, runs: Iterable[Path]) -> tuple[SiteShare, ...]:
    """The runs that have something of a site, in their order; other folders are left out.

    Raises:
        RunError: the settings of a run are damaged.
    """
    folders = [RunFolder(run) for run in runs if (run / "study.json").is_file()]
    trained = {folder.path: tuple(dict.fromkeys(_trained(folder, site))) for folder in folders}
    bases = frozenset(base for folder in folders for base in _bases(folder, site, trained[folder.path]))
    shares = []
    for folder in folders:
        evaluated, own = tuple(_evaluated(folder, site)), bases & set(_bases(folder, site, [PRETRAIN]))
        if trained[folder.path] or evaluated or own:
            name = _settings(folder)[0]
            shares.append(SiteShare(folder.path, name, _fingerprint(folder), trained[folder.path], evaluated, own))
    return tuple(shares)


def delete_cells(folder: Path, site: str, shares: Iterable[SiteShare]) -> int:
    """Delete the kept cells that a site had a part in, or whose base network it trained; returns their number.

    ``folder`` holds the kept cells; ``shares`` is what the runs have of the site.
    """
    bases = frozenset(base for share in shares for base in share.bases)
    return CellStore(folder).delete(lambda content: site in content["data"] or content.get("base") in bases)


def _trained(folder: RunFolder, site: str) -> Iterator[str]:
    names = {site, POOLED} if site in _settings(folder)[1] else {site}
    for line in folder.journal():
        rounds = line["event"] in ("round", "local_phase") and line["committed"]
        if rounds and not names.isdisjoint(used["site"] for used in line["used"]):
            alone = line["method"] or PRETRAIN
            yield alone if line["stage"] == PRETRAIN else f"{line['method']}/fold-{line['fold']}"


def _bases(folder: RunFolder, site: str, trained: Iterable[str]) -> Iterator[str]:
    """Hashes of the base networks that come from some trained cells, as far as the run has them yet."""
    files = {PRETRAIN: base_file(), Pretraining(site).id: base_file(site)}
    for cell in filter(is_pretraining, trained):
        try:
            yield str(load_tensors(folder.path / files[cell])[1]["sha256"])
        except (AdapterError, KeyError):
            continue


def _evaluated(folder: RunFolder, site: str) -> Iterator[str]:
    place = folder.path / "evaluation"
    for path in sorted(place.rglob("*.json")):
        content: Any = folder.read_json(str(path.relative_to(folder.path)))
        if site in content["sums"]:
            yield path.relative_to(place).with_suffix("").as_posix()


def _settings(folder: RunFolder) -> tuple[str, list[str]]:
    """Name and fine-tuning sites of a run of whatever version."""
    path = folder.path / "study.json"
    try:
        settings: Any = read_json(path, most=LIST_BYTES)
        return str(settings["name"]), list(settings["finetune"]["sites"])
    except (ValueError, LookupError, TypeError) as error:
        remedy = "put back the file, or take the folder away and look into it yourself"
        raise RunError(f"{path}: is damaged, so that what the run has of a site is not known; {remedy}") from error


def _fingerprint(folder: RunFolder) -> str:
    try:
        return folder.study().fingerprint()
    except SahflError:
        return ""
