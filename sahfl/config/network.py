"""The table of networks, and a study's settings of its network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from sahfl.section import OneOf, Section

if TYPE_CHECKING:
    from sahfl.model import Network


@dataclass(frozen=True)
class NetworkKind:
    """A network that a study can name."""

    description: str
    """For reports and exports."""
    load: Callable[[], type[Network]]
    """Imports and returns the class."""


def _multi_view_unet() -> type[Network]:
    from sahfl.model import MultiViewUNet  # imports torch, which reading settings does not need

    return MultiViewUNet


NETWORKS = dict.fromkeys(("tiny", "base", "large"), NetworkKind("2-D U-Net", _multi_view_unet))
"""The networks by the name that a study gives in ``model.size``."""


class ModelConfig(Section):
    """The network: by default the multi-view U-Net, 2-D networks on slices of every view."""

    size: Annotated[str, OneOf(lambda: NETWORKS)] = "tiny"
    """Name of the network in the table ``NETWORKS``. ``tiny``, ``base`` and ``large`` are widths of the U-Net: 496161,
    6471809 and 25871105 parameters, at three windows and one neighbour."""
    planes: Literal["shared", "per_view"] = "shared"
    """One network for the slices of all views, or one for each view in use (as many times the parameters)."""
    deep_supervision: bool = False
    """In training, also compare outputs at half and quarter resolution; they belong to the part ``head``."""
