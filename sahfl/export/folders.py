"""``sahfl export``: one folder per fold and format; each is compared with the run's network before it gets its name."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from sahfl.adapters import digest
from sahfl.adapters.attach import merge
from sahfl.adapters.folder import CARD, CONFIG, TENSORS, put_adapter, read_adapter
from sahfl.atomic import write_atomic
from sahfl.config import Method, Study, ZeroShot
from sahfl.errors import RunError
from sahfl.export.bundle import read_bundle, write_bundle
from sahfl.export.onnx_file import read_onnx, write_onnx
from sahfl.export.parity import Computes, compare
from sahfl.model import Network
from sahfl.networks import base_network
from sahfl.prediction.exported import ExportNote, read_exported, weights_of, write_exported
from sahfl.prediction.networks import (
    adapted_network,
    adapter_folder,
    choose_folds,
    choose_method,
    read_base,
    read_study,
)
from sahfl.prediction.segment import NOTICE

Form = Literal["safetensors", "bundle", "onnx", "adapter"]
FORMS: tuple[Form, ...] = get_args(Form)


@dataclass(frozen=True)
class Written:
    """One format of one fold's network."""

    folder: Path
    form: Form
    difference: float
    """Largest absolute difference of its logits from those of the run's network."""


def export(run: Path, to: Path, forms: Sequence[Form], *, method: str, fold: int | None = None) -> Iterator[Written]:
    """Write the networks of a run's method in formats for other programs, for one fold or by default for all.

    They are written to ``fold-<k>/<form>/`` in ``to``, and to ``base/<form>/`` for the base network alone.

    Guarantees: a format's folder gets its name only after it was read back and compared; nothing is overwritten.

    Raises:
        RunError: the run has no such method or fold, or a format's folder exists.
        AdapterError: a file of the run is damaged.
        ConfigError: packages for a format are not installed.
        ExportDiffers: the written network computes something else than the run's; its folder is removed.
    """
    study = read_study(run)
    chosen = choose_method(study, method, run)
    folds = choose_folds(run, study, chosen, fold) or (None,)
    if isinstance(chosen, ZeroShot) and "adapter" in forms:
        raise RunError(f"{run}: zero_shot is the base network, which has no adapter; name other formats")
    places = [
        (number, form, to / ("base" if number is None else f"fold-{number}") / form)
        for number in folds
        for form in forms
    ]
    if there := [place for _, _, place in places if place.exists()]:
        raise RunError(f"{there[0]}: is there already; name another folder with --to, or remove it")
    for number, form, place in places:
        yield _write(run, study, chosen, number, form, place)


def _write(run: Path, study: Study, method: Method, fold: int | None, form: Form, place: Path) -> Written:
    net, sha256 = adapted_network(run, study, method, -1 if fold is None else fold)
    temporary = place.with_name(f"{place.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed call
    try:
        if form == "adapter":
            assert fold is not None
            found = _copy_adapter(run, study, method, fold, temporary)
        else:
            plain = copy.deepcopy(net)
            merge(plain)
            found = _write_merged(temporary, plain, note_of(study, method, fold, plain, sha256), form)
        difference = compare(str(place), found, net, study.views)
        temporary.rename(place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Written(place, form, difference)


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
        local_norms=study.finetune.local.local_norms,
        intended_use=NOTICE,
    )


def _write_merged(folder: Path, plain: Network, note: ExportNote, form: Form) -> Computes:
    match form:
        case "bundle":
            write_bundle(folder, plain, note)
            return read_bundle(folder)
        case "onnx":
            write_onnx(folder, plain, note)
            write_atomic(folder / "config.json", note.model_dump_json(indent=1) + "\n")
            return read_onnx(folder, note)
        case _:
            write_exported(folder, plain, note)
            return read_exported(folder).nets[0]


def _copy_adapter(run: Path, study: Study, method: Method, fold: int, folder: Path) -> Computes:
    """Copy the run's adapter folder byte for byte, read it back and apply it to a fresh base."""
    folder.mkdir(parents=True)
    for name in (TENSORS, CONFIG, CARD):
        write_atomic(folder / name, (adapter_folder(run, method, fold) / name).read_bytes())
    net = base_network(study.views, study.model, read_base(run))
    put_adapter(net, read_adapter(folder))
    merge(net)
    return net
