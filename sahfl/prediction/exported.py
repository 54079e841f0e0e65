"""A merged network as plain files: weights as safetensors, and the settings for segmenting a scan as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field

from sahfl.adapters import AdapterState, digest
from sahfl.adapters.files import load_tensors, save_tensors
from sahfl.atomic import write_atomic
from sahfl.config import ModelConfig, Section, ViewsConfig, parse
from sahfl.errors import AdapterError, RunError
from sahfl.model import Network
from sahfl.networks import plain_network
from sahfl.prediction.networks import NetworkPart, Trained
from sahfl.regular_files import SETTINGS_BYTES, check_inside, read_json

CONFIG, WEIGHTS, FORMAT_FOLDER = "config.json", "network.safetensors", "safetensors"


class ExportNote(Section):
    """Origin of an export's weights, and the settings needed to use them."""

    sahfl_export: Literal[2] = 2
    """Version of this file."""
    study: str
    """Name of the study."""
    fingerprint: str
    """Digest of the study's settings."""
    method: str
    """Id of the fine-tuning method."""
    fold: int | None
    """Fold whose patients the network was not trained on; none for the base network alone."""
    adapter_sha256: str
    """Digest of the merged adapter, or of the base if there is none."""
    sha256: str
    """Digest of the merged weights."""
    views: ViewsConfig
    """How a scan is cut into slices, and their predictions are fused into a volume."""
    model: ModelConfig
    """The network."""
    threshold: Annotated[float, Field(gt=0, lt=1)]
    """A voxel is blood if its probability reaches this value."""
    part: NetworkPart
    """How much of what the method trained is in these weights; ``site``: trained on one site's patients alone, too."""
    intended_use: str
    """Intended use, and its limits."""


def write_exported(folder: Path, net: Network, note: ExportNote) -> None:
    """Write the weights of a merged network, then the note with their hash."""
    save_tensors(folder / WEIGHTS, weights_of(net))
    write_atomic(folder / CONFIG, note.model_dump_json(indent=1) + "\n")


def weights_of(net: Network) -> AdapterState:
    """Every tensor of a merged network by its name, float32."""
    return {name: value.detach().cpu().float().numpy() for name, value in sorted(net.state_dict().items())}


def exported_network(note: ExportNote, weights: AdapterState) -> Network:
    """Build the network of an export.

    Raises:
        AdapterError: the weights are of another network.
    """
    net = plain_network(note.views, note.model, seed=0)
    own = net.state_dict()
    if odd := sorted(own.keys() ^ weights.keys()):
        raise AdapterError(f"{WEIGHTS}: missing or unexpected tensor {odd[0]!r}")
    if odd := [name for name, value in weights.items() if value.shape != tuple(own[name].shape)]:
        raise AdapterError(f"{WEIGHTS}: {odd[0]!r} has shape {weights[odd[0]].shape}, expected {own[odd[0]].shape}")
    net.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in weights.items()})
    return net.eval()


def read_exported(folder: Path, *, method: str | None = None, fold: int | None = None) -> Trained:
    """The networks of an exported folder, with all of their folds or one.

    Raises:
        RunError: the folder has no export with weights as safetensors, or not the requested method or fold.
        AdapterError: a file is damaged.
        UnfitFile: a link leads out of the folder.
    """
    found = [(path.parent, _read_note(path, folder)) for path in _configs(folder)]
    if not found:
        raise RunError(
            f"{folder}: is neither a run (study.json) nor an export as safetensors ({FORMAT_FOLDER}/{CONFIG}); "
            "an export as onnx or bundle runs by the script in its folder"
        )
    if len({(note.fingerprint, note.method) for _, note in found}) > 1:
        raise RunError(f"{folder}: holds exports of several studies or methods; name the folder of one")
    there = found[0][1].method, [note.fold for _, note in found]
    chosen = [(path, note) for path, note in found if fold is None or note.fold == fold]
    if method not in (None, there[0]) or not chosen:
        folds = ", ".join("none" if number is None else str(number) for number in there[1])
        raise RunError(f"{folder}: holds {there[0]}, fold {folds}; got method {method}, fold {fold}")
    return _trained([note for _, note in chosen], [_read_network(path, note) for path, note in chosen])


def _trained(notes: Sequence[ExportNote], nets: Sequence[Network]) -> Trained:
    first = notes[0]
    return Trained(
        nets=tuple(nets),
        views=first.views,
        threshold=first.threshold,
        study=first.study,
        fingerprint=first.fingerprint,
        method=first.method,
        folds=tuple(note.fold for note in notes if note.fold is not None),
        hashes=tuple(note.adapter_sha256 for note in notes),
        part=first.part,
    )


def _configs(folder: Path) -> list[Path]:
    own = [folder / CONFIG, folder / FORMAT_FOLDER / CONFIG]
    return [path for path in own if path.is_file()] or sorted(folder.glob(f"*/{FORMAT_FOLDER}/{CONFIG}"))


def _read_note(path: Path, folder: Path) -> ExportNote:
    for file in (path, path.with_name(WEIGHTS)):
        check_inside(file, folder)
    try:
        return parse(ExportNote, read_json(path, most=SETTINGS_BYTES), where=str(path))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path}: is not the note of a sahfl export") from error


def _read_network(folder: Path, note: ExportNote) -> Network:
    weights, _ = load_tensors(folder / WEIGHTS)
    if digest(weights) != note.sha256:
        raise AdapterError(f"{folder / WEIGHTS}: content does not match its hash")
    return exported_network(note, weights)
