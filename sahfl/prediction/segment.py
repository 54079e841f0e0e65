"""From a new scan to a mask, its volume, and the files for the user."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sahfl import __version__
from sahfl.atomic import write_atomic
from sahfl.data.dicom.write_segmentation import require_highdicom, write_segmentation
from sahfl.data.new_scan import NewScan, read_new_scan
from sahfl.data.views import make_views
from sahfl.errors import ConfigError, RunError
from sahfl.evaluation import predict_mean
from sahfl.prediction.exported import read_exported
from sahfl.prediction.networks import Trained, read_trained
from sahfl.prediction.site_networks import is_site, read_site
from sahfl.report.overlays import PREDICTED, Contour, draw_overlay, fullest_slices

NOTICE = "For research use only; not a medical device. No diagnosis or treatment may rest on this result."
MASK, PROBABILITY, OVERLAY = "mask.nii.gz", "probability.nii.gz", "overlay.png"
NOTE, DICOM = "prediction.json", "segmentation.dcm"
FILES = (MASK, PROBABILITY, OVERLAY, NOTE, DICOM)


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
class Wanted:
    """Which files are written in addition to mask, overlay and note."""

    probability: bool = False
    dicom_seg: bool = False
    replace: bool = False
    """Overwrite the files of an earlier call."""


def read_networks(run: Path, *, method: str | None = None, fold: int | None = None) -> Trained:
    """The networks of a run's folder, of an export's folder, or of a site's own folder.

    Raises:
        RunError: it is none of them, or has no such method or fold.
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


def predict_file(run: Path, scan: Path, out: Path) -> list[Path]:
    """Segment a scan with all networks of a run or export and write the results, like ``sahfl predict`` by default.

    Raises:
        SahflError: as in the functions that it calls.
    """
    trained, new, wanted = read_networks(run), read_new_scan(scan), Wanted()
    check_output(out, new, wanted)
    return write_prediction(out, new, trained, segment(new, trained), wanted)


def check_output(out: Path, new: NewScan, wanted: Wanted) -> None:
    """Check before the work that the results can be written.

    Raises:
        RunError: one of the files exists, or the folder is a file.
        ConfigError: a DICOM segmentation is wanted for a scan that is not DICOM, or its extra is not installed.
    """
    if wanted.dicom_seg and new.series is None:
        raise ConfigError(
            "a DICOM segmentation was asked for: got a NIfTI scan, expected a DICOM series for it to refer to"
        )
    if wanted.dicom_seg:
        require_highdicom()
    if out.exists() and not out.is_dir():
        raise RunError(f"{out}: is no folder; name another (out)")
    there = [name for name in FILES if (out / name).exists()]
    if there and not wanted.replace:
        raise RunError(
            f"{out}: holds {', '.join(there)} already; name another folder (out), or replace these files (replace)"
        )


def write_prediction(out: Path, new: NewScan, trained: Trained, found: Segmented, wanted: Wanted) -> list[Path]:
    """Write mask, overlay, note and other wanted files; each file is complete or absent.

    Returns:
        The files.

    Raises:
        RunError: one of them exists.
        ConfigError, DataError: the DICOM segmentation cannot be written; all files are then unchanged.
    """
    check_output(out, new, wanted)
    segmented = []
    if wanted.dicom_seg and new.series is not None:  # first, because incomplete headers can make it fail
        label = np.asarray(new.on_source(found.mask.astype(np.uint8)).dataobj) > 0
        write_segmentation(out / DICOM, label, new.series, algorithm=f"sahfl {trained.study} {trained.method}")
        segmented.append(out / DICOM)
    for path in {out / name for name in FILES}.difference(segmented):
        path.unlink(missing_ok=True)  # a file of an earlier call may belong to another scan
    write_atomic(out / MASK, _nifti(new, found.mask.astype(np.uint8)))
    written = [out / MASK]
    if wanted.probability:
        written.append(out / PROBABILITY)
        write_atomic(out / PROBABILITY, _nifti(new, found.probability))
    write_atomic(out / OVERLAY, draw_prediction(new, found))
    write_atomic(out / NOTE, json.dumps(describe(new, trained, found), indent=1) + "\n")
    return [*written, out / OVERLAY, out / NOTE, *segmented]


def describe(new: NewScan, trained: Trained, found: Segmented) -> dict[str, Any]:
    """Content of ``prediction.json``: no path or name of the scan, but the hash of its voxels."""
    return {
        "notice": NOTICE,
        "volume_ml": round(found.volume_ml, 3),
        "threshold": found.threshold,
        "voxels": int(found.mask.sum()),
        "voxel_ml": found.voxel_ml,
        "most_probable": round(float(found.probability.max()), 4),
        "scan": {"shape": list(new.source.shape), "sha256": new.voxels, "dicom": new.series is not None},
        "findings": [{"rule": item.rule, "severity": item.severity, "text": item.text} for item in new.findings],
        "study": trained.study,
        "fingerprint": trained.fingerprint,
        "method": trained.method,
        "folds": list(trained.folds),
        "sha256": list(trained.hashes),
        "part": trained.part,
        "sahfl": __version__,
    }


def draw_prediction(new: NewScan, found: Segmented) -> bytes:
    """PNG of the slices with the most predicted blood."""
    x, y, _ = new.scan.spacing_mm
    title = f"{found.volume_ml:.1f} mL at threshold {found.threshold:g}" if found.mask.any() else "no blood found"
    return draw_overlay(
        new.scan.image,
        fullest_slices(found.mask),
        [Contour("predicted", PREDICTED, found.mask)],
        pixel_aspect=y / x,
        title=title,
        notice=NOTICE,
    )


def _nifti(new: NewScan, volume: NDArray[Any]) -> bytes:
    return gzip.compress(new.on_source(volume).to_bytes(), compresslevel=6, mtime=0)
