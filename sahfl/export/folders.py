"""``sahfl export``: a folder per format; each is compared with the run's networks before it gets its name."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from sahfl.adapters import digest
from sahfl.adapters.attach import merge
from sahfl.adapters.folder import CARD, CONFIG, TENSORS, put_adapter, read_adapter
from sahfl.atomic import make_folder, write_atomic
from sahfl.config import Method, Study, ViewsConfig
from sahfl.errors import RunError
from sahfl.export.bundle import read_bundle, write_bundle
from sahfl.export.merged import Merged, merged_copy
from sahfl.export.onnx_file import read_onnx, write_onnx
from sahfl.export.parity import Computes, compare, from_hu
from sahfl.federation.site.private import Stored
from sahfl.model import Network
from sahfl.networks import base_network
from sahfl.prediction.exported import ExportNote, read_exported, weights_of, write_exported
from sahfl.prediction.networks import (
    adapted_network,
    adapter_folder,
    choose_folds,
    choose_method,
    part_of,
    read_base,
    read_study,
)
from sahfl.prediction.site_networks import SiteNetwork, choose, is_site, read_network
from sahfl.prediction.written import NOTICE
from sahfl.regular_files import TENSORS_BYTES, read_bytes

Form = Literal["safetensors", "bundle", "onnx", "adapter"]
FORMS: tuple[Form, ...] = get_args(Form)
ALONE: tuple[Form, ...] = ("bundle", "onnx")
"""Formats of which one folder has the networks of all folds, because it also averages them."""
OF_SITE = (
    "Trained on this site's patients: these weights may reveal something of them, and leave the site only by its will."
)


@dataclass(frozen=True)
class Written:
    """A written folder: one format of one fold's network, or of all folds' networks."""

    folder: Path
    form: Form
    difference: float
    """Largest absolute difference of its logits from those of the run's networks."""


def export(
    run: Path, to: Path, forms: Sequence[Form], *, method: str, fold: int | None = None, with_private: bool = False
) -> Iterator[Written]:
    """Write networks of a run's method in formats for other programs, for one fold or by default for all.

    Formats of ``ALONE`` are written to ``<form>/`` in ``to``, with all folds together. The others are written to
    ``fold-<k>/<form>/``, and to ``base/<form>/`` for the base network alone. ``run`` may also be a site's own folder:
    its networks were trained on the site's patients, so ``with_private`` must be given.

    Guarantees: a format's folder gets its name only after it was read back and compared; nothing is overwritten.

    Raises:
        RunError: the run has no such method or fold, a format's folder exists, or ``with_private`` does not fit.
        AdapterError: a file of the run is damaged.
        ConfigError: packages for a format are not installed, or the network does not have this format.
        ExportDiffers: the written network computes something else than the run's; its folder is removed.
    """
    find = _of_site if is_site(run) else _of_run
    sources = list(find(run, method, fold, with_private=with_private))
    if "adapter" in forms and not all(source.adapter for source in sources):
        what = "networks of a site have" if with_private else "zero_shot is the base network, which has"
        raise RunError(f"{run}: {what} no adapter; name other formats")
    single = [(to / source.name / form, form, [source]) for source in sources for form in forms if form not in ALONE]
    places = single + [(to / form, form, sources) for form in forms if form in ALONE]
    if there := [place for place, _, _ in places if place.exists()]:
        raise RunError(f"{there[0]}: is there already; name another folder with --to, or remove it")
    for place, form, chosen in places:
        yield _write(place, form, chosen)


@dataclass(frozen=True)
class _Source:
    """One network to export."""

    name: str
    """Name of its folder in the export."""
    read: Callable[[], tuple[Network, str]]
    """Reads it, not merged, with the digest of what it trained."""
    note: Callable[[Network, str], ExportNote]
    """Makes its note, from the merged network and the digest."""
    views: ViewsConfig
    adapter: Callable[[Path], Network] | None
    """Copies its adapter's folder, and returns the network that the copy gives; None without such a folder."""


def _of_run(run: Path, method: str, fold: int | None, *, with_private: bool) -> Iterator[_Source]:
    study = read_study(run)
    chosen = choose_method(study, method, run)
    if with_private:
        raise RunError(f"{run}: a run holds what sites share, --with-private is for the folder of a site; leave it out")
    for number in choose_folds(run, study, chosen, fold) or (None,):
        place = -1 if number is None else number
        yield _Source(
            "base" if number is None else f"fold-{number}",
            partial(adapted_network, run, study, chosen, place),
            partial(note_of, study, chosen, number),
            study.views,
            None if number is None else partial(_copy_adapter, run, study, chosen, number),
        )


def _of_site(folder: Path, method: str, fold: int | None, *, with_private: bool) -> Iterator[_Source]:
    if not with_private:
        found = "holds networks that were trained on this site's patients and stay here"
        raise RunError(f"{folder}: {found}; add --with-private to export one all the same")
    for one in choose(folder, method=method, fold=fold):
        item = read_network(folder, one)
        yield _Source(
            f"fold-{one.fold}", partial(_read_again, folder, one), partial(_note_of_site, item), item.task.views, None
        )


def _read_again(folder: Path, one: Stored) -> tuple[Network, str]:
    item = read_network(folder, one)
    return item.net, item.sha256


def _write(place: Path, form: Form, sources: Sequence[_Source]) -> Written:
    temporary = place.with_name(f"{place.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed call
    try:
        merged = [_merged(source) for source in sources]
        found = _write_form(temporary, form, merged, sources)
        views = sources[0].views
        difference = max(
            compare(str(place), computes, one.trained, views) for computes, one in zip(found, merged, strict=True)
        )
        temporary.rename(place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Written(place, form, difference)


def _merged(source: _Source) -> Merged:
    net, sha256 = source.read()
    plain = merged_copy(net)
    return Merged(net, plain, source.note(plain, sha256))


def note_of(study: Study, method: Method, fold: int | None, plain: Network, sha256: str) -> ExportNote:
    """The note of a merged network: study, method, fold and hashes."""
    return ExportNote(
        study=study.name,
        fingerprint=study.fingerprint(),
        method=method.id,
        fold=fold,
        adapter_sha256=sha256,
        sha256=digest(weights_of(plain)),
        views=study.views,
        model=study.model,
        threshold=study.evaluation.threshold,
        part=part_of(method),
        intended_use=NOTICE,
    )


def _note_of_site(item: SiteNetwork, plain: Network, sha256: str) -> ExportNote:
    task = item.task
    assert task.method is not None
    assert task.evaluation is not None
    return ExportNote(
        study=f"study {item.study[:12]}",
        fingerprint=item.study,
        method=task.method.id,
        fold=task.fold,
        adapter_sha256=sha256,
        sha256=digest(weights_of(plain)),
        views=task.views,
        model=task.model,
        threshold=task.evaluation.threshold,
        part="site",
        intended_use=f"{OF_SITE} {NOTICE}",
    )


def _write_form(folder: Path, form: Form, merged: Sequence[Merged], sources: Sequence[_Source]) -> Sequence[Computes]:
    """Write a format, and read back the networks of each fold."""
    views = sources[0].views
    match form:
        case "bundle":
            write_bundle(folder, merged)
            return [read_bundle(folder, one) for one in merged]
        case "onnx":
            write_onnx(folder, merged)
            return [read_onnx(folder, one) for one in merged]
        case "adapter":
            (adapter,) = (source.adapter for source in sources)
            assert adapter is not None
            return [from_hu(adapter(folder), views)]
        case _:
            (one,) = merged
            write_exported(folder, one.plain, one.note)
            return [from_hu(read_exported(folder).nets[0], views)]


def _copy_adapter(run: Path, study: Study, method: Method, fold: int, folder: Path) -> Network:
    """Copy the run's adapter folder byte for byte, read it back and apply it to a fresh base."""
    make_folder(folder, new=True)
    for name in (TENSORS, CONFIG, CARD):
        write_atomic(folder / name, read_bytes(adapter_folder(run, method, fold) / name, most=TENSORS_BYTES))
    net = base_network(study.views, study.model, read_base(run, base_of=method.base_of))
    put_adapter(net, read_adapter(folder))
    merge(net)
    return net
