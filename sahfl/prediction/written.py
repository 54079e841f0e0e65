"""The files of one prediction: mask, picture, note, and what else the user wants."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sahfl import __version__
from sahfl.atomic import write_atomic
from sahfl.data.dicom.write_segmentation import require_highdicom, write_segmentation
from sahfl.data.new_scan import NewScan
from sahfl.errors import ConfigError, RunError, SahflError
from sahfl.prediction.interval import LEVEL, Interval
from sahfl.prediction.segment import Predictor, Segmented
from sahfl.prediction.unlike import Difference, differences
from sahfl.report.overlays import PREDICTED, Contour, draw_overlay, fullest_slices

NOTICE = "For research use only; not a medical device. No diagnosis or treatment may rest on this result."
MASK, PROBABILITY, OVERLAY = "mask.nii.gz", "probability.nii.gz", "overlay.png"
NOTE, DICOM = "prediction.json", "segmentation.dcm"
FILES = (MASK, PROBABILITY, OVERLAY, NOTE, DICOM)
_FAILURES = (
    *(SahflError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError, MemoryError),
)
"""What a library raises on a picture or a segmentation that it cannot make; a full disk is none of them."""


@dataclass(frozen=True)
class Wanted:
    """Which files are written in addition to mask, overlay and note."""

    probability: bool = False
    dicom_seg: bool = False
    replace: bool = False
    """Overwrite the files of an earlier call."""


@dataclass
class Written:
    """What was written, and what was not."""

    files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was made or left empty in a written file."""
    failed: list[str] = field(default_factory=list)
    """Files that were asked for and are missing, each with the reason."""
    note: dict[str, Any] = field(default_factory=dict)
    """Content of ``prediction.json``."""


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
    _check_folder(out, wanted)


def _check_folder(out: Path, wanted: Wanted) -> None:
    if out.exists() and not out.is_dir():
        raise RunError(f"{out}: is no folder; name another (out)")
    there = [name for name in FILES if (out / name).exists()]
    if there and not wanted.replace:
        raise RunError(
            f"{out}: holds {', '.join(there)} already; name another folder (out), or replace these files (replace)"
        )


def write_prediction(
    out: Path, new: NewScan, predictor: Predictor, found: Segmented, wanted: Wanted, *, source: str = ""
) -> Written:
    """Write the mask, then the other files; each is complete or absent, and the note is the last one.

    Guarantees: the mask is on the disk before anything else is tried. A picture or a segmentation that cannot be made
    is listed in ``Written.failed`` and in the note. A folder without a note is unfinished. No file is from an earlier
    call.

    Args:
        out: folder of the results.
        new: the scan.
        predictor: what segmented it.
        found: the result.
        wanted: which files.
        source: stands for the state of the scan's files, in the note.

    Raises:
        RunError: one of the files exists.
        OSError: the disk is full.
    """
    _check_folder(out, wanted)
    written = Written()
    (out / NOTE).unlink(missing_ok=True)  # first, because a note says that its folder is finished
    write_atomic(out / MASK, _nifti(new, found.mask.astype(np.uint8)))
    written.files.append(out / MASK)
    for name in FILES:
        if name != MASK:
            (out / name).unlink(missing_ok=True)  # a file of an earlier call may belong to another scan
    if wanted.probability:
        write_atomic(out / PROBABILITY, _nifti(new, found.probability))
        written.files.append(out / PROBABILITY)
    _try(written, out / OVERLAY, lambda path: _write_overlay(path, new, found))
    if wanted.dicom_seg:
        _try(written, out / DICOM, lambda path: _write_dicom(path, new, predictor, found))
    written.note = describe(new, predictor, found) | {
        "wanted": {"probability": wanted.probability, "dicom_seg": wanted.dicom_seg},
        "notes": written.notes,
        "failed": written.failed,
        "source": source,
    }
    write_atomic(out / NOTE, json.dumps(written.note, indent=1) + "\n")
    written.files.append(out / NOTE)
    return written


def _try(written: Written, path: Path, write: Callable[[Path], tuple[str, ...]]) -> None:
    """Write a file that is not worth losing the others."""
    try:
        written.notes += write(path)
        written.files.append(path)
    except _FAILURES as error:
        # A text of a library may quote the patient's header; one of ours does not.
        why = str(error) if isinstance(error, SahflError) else f"a library failed ({type(error).__name__})"
        written.failed.append(f"{path.name} is missing: {why}")


def _write_overlay(path: Path, new: NewScan, found: Segmented) -> tuple[str, ...]:
    write_atomic(path, draw_prediction(new, found))
    return ()


def _write_dicom(path: Path, new: NewScan, predictor: Predictor, found: Segmented) -> tuple[str, ...]:
    if new.series is None:
        raise ConfigError("the scan is no DICOM series, which a DICOM segmentation needs to refer to")
    label = np.asarray(new.on_source(found.mask.astype(np.uint8)).dataobj) > 0
    algorithm = f"sahfl {predictor.trained.study} {predictor.trained.method}"
    return write_segmentation(path, label, new.series, algorithm=algorithm)


def describe(new: NewScan, predictor: Predictor, found: Segmented) -> dict[str, Any]:
    """Content of ``prediction.json``: no path or name of the scan, but the hash of its voxels."""
    trained = predictor.trained
    unlike = differences(new, trained.views, predictor.known)
    return {
        "notice": NOTICE,
        "volume_ml": round(found.volume_ml, 3),
        "interval": describe_interval(predictor.calibration.interval(found.volume_ml, found.threshold), unlike),
        "threshold": found.threshold,
        "voxels": int(found.mask.sum()),
        "voxel_ml": found.voxel_ml,
        "most_probable": round(float(found.probability.max()), 4),
        "scan": {"shape": list(new.source.shape), "sha256": new.voxels, "dicom": new.series is not None},
        "findings": [{"rule": item.rule, "severity": item.severity, "text": item.text} for item in new.findings],
        "unlike": [{"id": item.id, "text": item.text} for item in unlike],
        **identity(predictor),
        "sahfl": __version__,
    }


def describe_interval(interval: Interval | str, unlike: Sequence[Difference]) -> dict[str, Any]:
    """An interval as plain values; ``text`` says why there is none, or that it is doubtful for an unlike scan."""
    if isinstance(interval, str):
        return {"low_ml": None, "high_ml": None, "level": None, "n": 0, "text": interval}
    doubt = "; doubtful, because the scan is unlike those of the study" if unlike else ""
    return {**vars(interval), "level": LEVEL, "text": f"{interval}{doubt}"}


def identity(predictor: Predictor) -> dict[str, Any]:
    """Which networks segment; with the threshold, two equal ones give equal masks."""
    trained = predictor.trained
    return {
        "study": trained.study,
        "fingerprint": trained.fingerprint,
        "method": trained.method,
        "folds": list(trained.folds),
        "sha256": list(trained.hashes),
        "part": trained.part,
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
