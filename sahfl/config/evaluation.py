"""How the held-out patients of a study are scored."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Self

from pydantic import Field, model_validator

from sahfl.section import Section

Edges = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(max_length=5)]


class EvaluationConfig(Section):
    """How the held-out patients are scored."""

    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Fused probability above which a voxel is called blood."""
    tolerance_mm: Annotated[float, Field(gt=0, le=20)] = 2.0
    """Distance in mm within which surface Dice counts two surfaces as the same."""
    volume_edges_ml: Edges = (10.0, 30.0)
    """Edges in mL between the strata of annotated hemorrhage volume, at most 5."""
    extent_edges_mm: Edges = (30.0, 60.0)
    """Edges in mm between the groups of craniocaudal extent of the annotated hemorrhage, at most 5."""
    replicates: Annotated[int, Field(ge=100, le=100_000)] = 1000
    """Bootstrap replicates for every interval."""

    @model_validator(mode="after")
    def _edges_increase(self) -> Self:
        for name, edges in (("volume_edges_ml", self.volume_edges_ml), ("extent_edges_mm", self.extent_edges_mm)):
            if any(low >= high for low, high in pairwise(edges)):
                raise ValueError(f"{name} must increase")
        return self
