"""The rules across all cases of a site: copies of one scan, two ids of one patient, and likely repeat scans."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sahfl.data.manifest import Case, case_name
from sahfl.data.repeat_scans import repeat_scans
from sahfl.data.rules import Finding, finding

ALIKE_HU = 10.0
"""Two small volumes with a smaller mean difference show the same scan. Measured: 0-9 for copies with noise, padding or
another grid; 21 and more for neighbouring slices of one patient; 23 and more for two phantoms."""

LEAST_VOXELS = 20
"""Annotated voxels from which on two drawings are not equal by chance."""
CORRECTED = re.compile(r"(?:_(?:Tilt|Eq)(?:_\d+)?)+$")
"""dcm2niix appends this to the name of a copy whose gantry tilt or uneven slice distances it corrected."""


@dataclass(frozen=True)
class Trace:
    """What is kept of a readable case for the comparison with other cases."""

    case: Case
    voxels: str
    """SHA-256 of the image's voxels in RAS+ order; copies in another file format or orientation have the same."""
    signature: NDArray[np.float32]
    """A small volume of mean HU."""
    mask: str
    """SHA-256 of the annotation's voxels; empty if they are too few to be of one drawing alone."""


def judge_site(traces: Sequence[Trace], cases: Sequence[Case]) -> Iterator[tuple[Case, Finding]]:
    """Findings across cases; the later of two cases gets the finding, and its text names the earlier one.

    Of likely repeat scans of a patient, each case gets the finding.
    """
    yield from _copies(traces)
    known: dict[str, Case] = {}
    for case in cases:
        first = known.setdefault(_plain(case.patient), case)
        if first.patient != case.patient:
            text = f"case {case.id}: its patient id is almost that of case {first.id}"
            yield case, finding("patient_alike", text)
        for what in case.left_out:
            yield case, finding("left_out", f"case {case.id}: beside the site's cases, {what}; it is left out")
        if case.n_same_id:
            text = f"case {case.id}: {case.n_same_id} of {len(cases)} folders hold one patient id, each is a patient"
            yield case, finding("one_id", text)
    groups = repeat_scans(cases)
    for number, group in enumerate(groups, start=1):
        for case in group:
            text = f"case {case.id}: by its name likely one of {len(group)} scans of a patient (group {number} of"
            yield case, finding("repeat_scan", f"{text} {len(groups)})")


def _copies(traces: Sequence[Trace]) -> Iterator[tuple[Case, Finding]]:
    first: dict[str, Trace] = {}
    for trace in traces:
        earlier = first.setdefault(trace.voxels, trace)
        if earlier is not trace:
            same = "the same patient" if earlier.case.patient == trace.case.patient else "another patient id"
            text = f"case {trace.case.id}: same voxels as case {earlier.case.id} ({same})"
            yield trace.case, finding("duplicate", text)
    corrected = {trace.case.id: (trace.case, text) for trace, text in _corrected(first.values())}
    yield from ((case, finding("corrected_copy", text)) for case, text in corrected.values())
    yield from _look_alikes([trace for trace in first.values() if trace.case.id not in corrected])


def _corrected(traces: Iterable[Trace]) -> Iterator[tuple[Trace, str]]:
    """Pairs of a trace whose file name differs from an earlier one by dcm2niix' endings only, and a finding's text."""
    first: dict[tuple[Path, str], Trace] = {}
    for trace in traces:
        image = trace.case.image
        stem = _dcm2niix_name(image)
        earlier = first.setdefault((image.parent, CORRECTED.sub("", stem)), trace)
        if _dcm2niix_name(earlier.case.image) != stem:
            which = "a corrected" if CORRECTED.search(stem) else "the uncorrected"
            yield trace, f"case {trace.case.id}: by its file name it is {which} copy of case {earlier.case.id}"


def _dcm2niix_name(image: Path) -> str:
    """A file's name without its ending and nnU-Net's channel; a folder's name (a whole series) is unchanged."""
    name = case_name(image)
    return name.removesuffix("_0000") if name != image.name else name


def mask_hash(label: NDArray[np.bool_]) -> str:
    """SHA-256 over the voxels of an annotation; empty for fewer than ``LEAST_VOXELS`` of blood."""
    if int(label.sum()) < LEAST_VOXELS:
        return ""
    return hashlib.sha256(repr(label.shape).encode() + np.packbits(label).tobytes()).hexdigest()


def _look_alikes(kept: Sequence[Trace]) -> Iterator[tuple[Case, Finding]]:
    if len(kept) < 2:
        return
    signatures = np.stack([trace.signature.ravel() for trace in kept])
    drawn = {kept[0].mask: kept[0]}
    for index in range(1, len(kept)):
        distance = np.abs(signatures[:index] - signatures[index]).mean(axis=1)
        nearest = int(distance.argmin())
        if distance[nearest] < ALIKE_HU:
            case, other = kept[index].case, kept[nearest].case
            text = f"case {case.id}: differs from case {other.id} by {distance[nearest]:.1f} HU"
            yield case, finding("near_duplicate", text)
        elif kept[index].mask in drawn and kept[index].mask:
            case, other = kept[index].case, drawn[kept[index].mask].case
            text = f"case {case.id}: its annotation has exactly the voxels of that of case {other.id}, another image"
            yield case, finding("same_annotation", text)
        drawn.setdefault(kept[index].mask, kept[index])


def _plain(patient: str) -> str:
    """The id without case, punctuation and leading zeros: ``P-007`` equals ``p7``, ``1-12`` differs from ``11-2``."""
    letters = re.sub(r"(?<=[0-9])[^a-z0-9]+(?=[0-9])", "-", patient.lower())
    letters = re.sub(r"(?![0-9])[^a-z0-9-]|(?<![0-9])-|-(?![0-9])", "", letters)
    return re.sub(r"(?<![0-9])0+(?=[0-9])", "", letters)
