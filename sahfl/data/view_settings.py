"""The section ``views`` of a study file: how volumes are cut into slices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from sahfl.section import Section

View = Literal["axial", "coronal", "sagittal"]
Strength = Literal["usual", "strong"]
"""How much ``data.augmentation`` changes the slices of a batch."""


def pixels_of_scan(views: Iterable[View], size: Sequence[float], n_slices: float) -> float:
    """Number of pixels of all slices of a scan: axial ones at its own positions, others through the whole field.

    ``size`` is that of the field along x, y and z; ``n_slices`` is the number of axial slices.
    """
    x, y, z = size
    return sum(x * y * (n_slices if view == "axial" else z) for view in views)


def _multiple_of_16(size: int) -> int:
    if size % 16:
        raise ValueError("must be a multiple of 16 (four halvings in the U-Net)")
    return size


Extent = Annotated[int, Field(ge=32, le=512), AfterValidator(_multiple_of_16)]


class ViewsConfig(Section):
    """How a CT volume is cut into the 2-D slices that the network receives."""

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
