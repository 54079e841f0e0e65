"""Which of several CT series in a patient's folder a site wants."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import Field, model_validator

from sahfl.section import Section

Text = Annotated[str, Field(min_length=1, max_length=64)]


class SeriesChoice(Section):
    """The series to use where a patient's folder holds several; it must fit every setting that is given."""

    uids: Annotated[tuple[Text, ...], Field(max_length=100_000)] = ()
    """SeriesInstanceUIDs; a patient's series is the one in this list."""
    description: Text | None = None
    """SeriesDescription, upper or lower case; ``*`` stands for any text."""
    kernel: Text | None = None
    """ConvolutionKernel, upper or lower case; ``*`` stands for any text."""
    thickness_mm: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(gt=0, le=100)]] | None = None
    """Least and largest SliceThickness in mm."""
    annotated: bool = False
    """Use the series that the annotation fits, and none where it fits none or several."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not (self.uids or self.description or self.kernel or self.thickness_mm or self.annotated):
            raise ValueError("expected uids, description, kernel, thickness_mm or annotated: true")
        return self

    def fits(self, *, uid: str, description: str, kernel: str, thickness_mm: float) -> bool:
        """Test the headers of a series; a slice without a thickness (0) fits no range."""
        low, high = self.thickness_mm or (0.0, 1e9)
        return (
            (not self.uids or uid in self.uids)
            and matches(self.description, description)
            and matches(self.kernel, kernel)
            and low - 1e-3 <= thickness_mm <= high + 1e-3
            and (self.thickness_mm is None or thickness_mm > 0)
        )

    def names(self) -> str:
        """The settings that are given, for a message."""
        return ", ".join(sorted(self.model_fields_set))


def matches(pattern: str | None, text: str) -> bool:
    """Test a header's text, where no pattern fits any."""
    return pattern is None or fnmatch.fnmatchcase(text.strip().lower(), pattern.strip().lower())


def as_text(value: object) -> str:
    """An element's text, several values joined as DICOM writes them."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "\\".join(map(str, value))
    return "" if value is None else str(value)
