"""A fold's network as an export reads it: as trained, merged, and with its note; and the names of its files."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from sahfl.adapters.attach import merge
from sahfl.config import View
from sahfl.model import Network
from sahfl.prediction.exported import ExportNote


@dataclass(frozen=True)
class Merged:
    """One network to export."""

    trained: Network
    """As the run has it, its adapter not merged: what every export is compared with."""
    plain: Network
    """Merged."""
    note: ExportNote

    def stem(self, view: View) -> str:
        """Name, without ending, of the file with the network of a view."""
        name = "base" if self.note.fold is None else f"fold-{self.note.fold}"
        return f"{name}-{view}" if self.note.model.planes == "per_view" else name

    def views_by_stem(self) -> dict[str, View]:
        """Each file's name, without ending, with the first view whose network it is."""
        return {self.stem(view): view for view in reversed(self.note.views.weights)}


def merged_copy(net: Network) -> Network:
    """A copy of a network with every adapter merged."""
    plain = copy.deepcopy(net)
    merge(plain)
    return plain.eval()
