"""A merged network as safetensors with a note; ``sahfl predict`` reads it."""

from __future__ import annotations

from pathlib import Path

from sahfl.adapters import AdapterState
from sahfl.adapters.files import save_tensors
from sahfl.atomic import write_atomic
from sahfl.export.parity import Computes
from sahfl.model import Network
from sahfl.prediction.exported import CONFIG, WEIGHTS, ExportNote, read_exported


def write_weights(folder: Path, net: Network, note: ExportNote) -> list[Path]:
    """Write the weights, then the note with their hash."""
    save_tensors(folder / WEIGHTS, weights_of(net))
    write_atomic(folder / CONFIG, note.model_dump_json(indent=1) + "\n")
    return [folder / WEIGHTS, folder / CONFIG]


def weights_of(net: Network) -> AdapterState:
    """Every tensor of a merged network by its name, float32."""
    return {name: value.detach().cpu().float().numpy() for name, value in sorted(net.state_dict().items())}


def read_weights(folder: Path) -> Computes:
    """Read the network back."""
    (net,) = read_exported(folder).nets
    return net
