"""How volumes become slices, and the table of networks that can see them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from sahfl.config.section import Section

if TYPE_CHECKING:
    from sahfl.model import Network

View = Literal["axial", "coronal", "sagittal"]


@dataclass(frozen=True)
class NetworkKind:
    """A network that a study can name."""

    description: str
    """For reports and exports."""
    load: Callable[[], type[Network]]
    """Returns the class."""


def _multi_view_unet() -> type[Network]:
    from sahfl.model import MultiViewUNet  # imports torch, which a program that only reads settings does without

    return MultiViewUNet


NETWORKS = dict.fromkeys(("tiny", "base", "large"), NetworkKind("2-D U-Net", _multi_view_unet))
"""The networks by the name that a study gives in ``model.size``."""


def _named_in_the_table(size: str) -> str:
    if size not in NETWORKS:
        raise ValueError(f"must be one of {', '.join(NETWORKS)}")
    return size


def _multiple_of_16(size: int) -> int:
    if size % 16:
        raise ValueError("must be a multiple of 16 (four halvings in the U-Net)")
    return size


Extent = Annotated[int, Field(ge=32, le=512), AfterValidator(_multiple_of_16)]


class ViewsConfig(Section):
    """How a CT volume becomes the 2-D slices that the network sees."""

    weights: Annotated[dict[View, Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)] = Field(
        default={"axial": 1.0, "coronal": 0.5, "sagittal": 0.5}
    )
    """Views in use, and the weight of each in training batches and in the fused prediction."""
    spacing_mm: Annotated[float, Field(ge=0.3, le=4)] = 2.0
    """In-plane pixel size of every view; axial slices keep the scan's own slice positions."""
    size: tuple[Extent, Extent, Extent] = (96, 112, 80)
    """Pixels along x, y and z around the head's centre."""
    neighbours: Annotated[int, Field(ge=0, le=3)] = 1
    """Slices on each side of the one to segment that are given to the network as context."""
    windows_hu: tuple[tuple[float, float], ...] = ((0.0, 80.0), (-20.0, 180.0), (-800.0, 2000.0))
    """Brain, subdural and bone window (low, high) in HU; each is one channel per slice, scaled to 0..1."""

    @model_validator(mode="after")
    def _windows_have_width(self) -> Self:
        if not self.windows_hu or any(low >= high for low, high in self.windows_hu):
            raise ValueError("windows_hu must be pairs (low, high) with low < high")
        return self


class ModelConfig(Section):
    """The network: by default the multi-view U-Net, 2-D networks on slices of every view."""

    size: Annotated[str, AfterValidator(_named_in_the_table)] = "tiny"
    """Name of the network in the table ``NETWORKS``. ``tiny``, ``base`` and ``large`` are widths of the U-Net: 496161,
    6471809 and 25871105 parameters, at three windows and one neighbour."""
    planes: Literal["shared", "per_view"] = "shared"
    """One network for the slices of all views, or one for each view in use (as many times the parameters)."""
    deep_supervision: bool = False
    """In training, also compare outputs at half and quarter resolution; they belong to the part ``head``."""
