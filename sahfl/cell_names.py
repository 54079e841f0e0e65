"""Names of a study's cells: pretraining, and each method on each fold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sahfl.config import Method

PRETRAIN = "pretrain"
"""The cell of pretraining."""
_FOLD = "/fold-"


def cell_of(method: Method, fold: int) -> str:
    """Name of the cell of a method and a fold, in events, in the journal and as a subfolder of the run."""
    return f"{method.id}{_FOLD}{fold}"


@dataclass(frozen=True)
class Pretraining:
    """Pretraining in the place of a method: at all its sites together, or at one of them alone."""

    site: str | None = None

    @property
    def id(self) -> str:
        """Name of its cell, and of what is trained in headers and in the journal."""
        return PRETRAIN if self.site is None else f"{PRETRAIN}-at-{self.site}"


def is_pretraining(cell: str) -> bool:
    """Whether a cell is pretraining, at all its sites or at one."""
    return _FOLD not in cell


def method_and_fold(cell: str) -> tuple[str, int | None]:
    """The method's id and the fold, counted from 0; pretraining has no fold."""
    method, _, fold = cell.partition(_FOLD)
    return method, int(fold) if fold else None
