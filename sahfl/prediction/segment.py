"""From a new scan to a mask and its volume, with what a run knows of how good it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sahfl.data.new_scan import NewScan
from sahfl.data.views import make_views
from sahfl.evaluation import predict_mean
from sahfl.prediction.exported import read_exported
from sahfl.prediction.interval import Calibration, read_calibration
from sahfl.prediction.networks import Trained, read_trained
from sahfl.prediction.site_networks import is_site, read_site
from sahfl.prediction.unlike import Known, read_known


@dataclass(frozen=True)
class Segmented:
    """Result of segmenting one scan: the probabilities of blood, and the threshold for the mask."""

    probability: NDArray[np.float32]
    """(X, Y, Z), on the voxels of ``NewScan.scan``."""
    threshold: float
    voxel_ml: float

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Voxels predicted as blood, (X, Y, Z): True where the probability reaches the threshold."""
        return self.probability >= self.threshold

    @property
    def volume_ml(self) -> float:
        """Volume of the mask, mL."""
        return float(self.mask.sum()) * self.voxel_ml


@dataclass(frozen=True)
class Predictor:
    """Networks, with what their run has of held-out patients and of its sites."""

    trained: Trained
    calibration: Calibration
    known: Known
    threshold: float
    """Probability from which a voxel is blood."""


def read_predictor(
    run: Path, *, method: str | None = None, fold: int | None = None, threshold: float | None = None
) -> Predictor:
    """The networks of a folder as ``read_networks``, and what it has beside them; ``threshold`` replaces the study's.

    Raises:
        RunError: as ``read_networks``, or the run's results are damaged.
        DataError: as ``read_networks``.
        AdapterError: a file is damaged.
    """
    trained = read_networks(run, method=method, fold=fold)
    chosen = trained.threshold if threshold is None else threshold
    return Predictor(trained, read_calibration(run, trained), read_known(run), chosen)


def read_networks(run: Path, *, method: str | None = None, fold: int | None = None) -> Trained:
    """The networks of a run's folder, of an export's folder, or of a site's own folder.

    Raises:
        RunError: it is none of them, or has no such method or fold.
        DataError: no method is named, and the run's results have not the form of results.
        AdapterError: a file is damaged.
    """
    if (run / "study.json").is_file():
        return read_trained(run, method=method, fold=fold)
    if is_site(run):
        return read_site(run, method=method, fold=fold)
    return read_exported(run, method=method, fold=fold)


def segment(
    new: NewScan,
    trained: Trained,
    *,
    threshold: float | None = None,
    on_slice: Callable[[int, int], None] = lambda done, total: None,
) -> Segmented:
    """Segment a scan: the mean probability of the networks, over the study's views.

    ``threshold`` replaces the study's; ``on_slice`` is called with (slices done, slices to do).

    Raises:
        DataError: the scan has too few slices for the study's views.
    """
    case = make_views(new.scan, trained.views)
    probability = predict_mean(trained.nets, case, trained.views, on_slice=on_slice)
    return Segmented(probability, trained.threshold if threshold is None else threshold, new.scan.voxel_ml)
