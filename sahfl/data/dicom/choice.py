"""The series of a patient's folder that is used: the only real one, the one a site names, or the one by rule.

Never a series: localizers, secondary captures and single images beside a whole series (dose screens, surveys), and
reformats beside axial slices. Of several that are left, the site's setting decides, else the annotation if it fits one
alone, else the rule: original before derived, soft kernel before bone, without contrast agent before with it, the whole
head before a part, and then the thinnest slices, because thin blood fades in thick ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sahfl.data.dicom.foreign import listed
from sahfl.data.dicom.grouping import FEWEST, MOST_SINGLES, group, normal_of
from sahfl.data.dicom.protocol import is_sharp, names_agent
from sahfl.data.dicom.survey import Contents, Found
from sahfl.data.series_choice import SeriesChoice
from sahfl.data.volume_size import MOST_VOXELS
from sahfl.errors import ScanProblem

AXIAL_DEGREES = 50.0
"""Largest lean of an axial slice: a gantry's tilt and a turned head."""
WHOLE_SHARE = 0.9
"""Least length of a series that counts as whole, relative to the longest."""
FITTED = "the annotation's geometry"
Notes = tuple[tuple[str, str], ...]
Fits = Callable[[Sequence[Found]], bool]
Length = Callable[[Sequence[Found]], float]


@dataclass(frozen=True)
class Chosen:
    """The files of one series, and what a site should see of the choice."""

    files: tuple[Found, ...]
    notes: Notes


def choose(
    contents: Contents,
    wanted: SeriesChoice | None,
    *,
    length_mm: Length,
    fits: Fits | None = None,
    of: Path | None = None,
) -> Chosen:
    """The series of a folder that is used.

    Args:
        contents: the folder.
        wanted: the site's setting.
        length_mm: how much of the head a series shows along its slices.
        fits: whether the folder's annotation fits a series; None if there is no annotation.
        of: a file of the series that a user named; None if none is named.

    Raises:
        ScanProblem: there is no CT series, or several and nothing decides between them, or those of several patients.
    """
    images = [item for item in contents.found if item.kind in ("slice", "frames")]
    series = group(images)
    if of is not None:
        uids = {item.series for item in contents.found if item.path == of}
        series = [items for items in series if any(item.path == of or item.series in uids for item in items)]
    if not series:
        raise _nothing(contents)
    _require_one_patient([item for items in series for item in items])
    real, aside = _real(series)
    notes: Notes = ()
    if scrambled := sum(len(items) for items in series if len({item.series for item in items}) > 1):
        notes = (("scrambled_uids", f"{scrambled} slices have a series UID each; their geometry puts them together"),)
    if len(real) == 1 and (wanted is None or wanted.annotated or _wants(wanted, real[0])):
        why = ""
        (best,) = real
    else:
        best, why = _best(real, wanted, fits, length_mm)
    others = [item for item in (*real, *aside) if item is not best]
    if others:
        notes += (("series_choice", _told(best, others, why)),)
    return Chosen(tuple(best), (*notes, *_doubts(best)))


def _doubts(best: Sequence[Found]) -> Notes:
    """What speaks against a series, though it is the best of its folder."""
    found: Notes = ()
    if _is_derived(best, ()):
        found += (("derived_series", "the header says that the images are derived or secondary"),)
    if _is_turned(best, ()):
        found += (("not_axial", "the slices are coronal or sagittal"),)
    return found


def _nothing(contents: Contents) -> ScanProblem:
    n_localizers = sum(item.kind == "localizer" for item in contents.found)
    if n_localizers:
        return ScanProblem("localizer", f"got {n_localizers} localizer image(s) only, expected a CT series")
    others = Counter(item.modality for item in contents.found if item.kind in ("other", "segmentation"))
    text = ", ".join(f"{n} x {modality}" for modality, n in sorted(others.items())) or "no DICOM file"
    kinds = {kind: n for kind, n in contents.foreign.items() if not kind.startswith("DICOM ")}
    return ScanProblem("not_ct", f"got {text}{f' ({listed(kinds)})' if kinds else ''}, expected a CT series")


def _require_one_patient(images: Sequence[Found]) -> None:
    """Check that no series is another patient's; an id for each image is a program's, and of no person."""
    ids = {item.patient for item in images if item.patient}
    if 1 < len(ids) < _n_images(images):
        raise ScanProblem("mixed_patients", f"the CT images hold {len(ids)} patient ids, expected one")


def _real(series: list[list[Found]]) -> tuple[list[list[Found]], list[list[Found]]]:
    """The series that may be used, and what lies beside them and never decides."""
    real, aside = list(series), []
    for unfit in (_is_single, _is_derived, _is_turned):
        left = [items for items in real if not unfit(items, real)]
        if left:
            aside += [items for items in real if unfit(items, real)]
            real = left
    return real, aside


def _n_images(items: Sequence[Found]) -> int:
    return sum(item.n_frames for item in items)


def _is_single(items: Sequence[Found], among: Sequence[Sequence[Found]]) -> bool:
    return _n_images(items) <= MOST_SINGLES and max(map(_n_images, among)) >= FEWEST


def _is_derived(items: Sequence[Found], among: Sequence[Sequence[Found]]) -> bool:
    return all(item.derived for item in items)


def _is_turned(items: Sequence[Found], among: Sequence[Sequence[Found]]) -> bool:
    normal = normal_of(items[0])
    return normal is not None and abs(normal[2]) / np.linalg.norm(normal) < np.cos(np.radians(AXIAL_DEGREES))


def _wants(wanted: SeriesChoice, items: Sequence[Found]) -> bool:
    first = items[0]
    about = {"uid": first.series, "description": first.description, "kernel": first.kernel}
    thickness = float(np.median([item.thickness_mm for item in items]))
    return wanted.fits(**about, thickness_mm=thickness)


def _best(
    real: list[list[Found]], wanted: SeriesChoice | None, fits: Fits | None, length_mm: Length
) -> tuple[list[Found], str]:
    """The series to use, and why."""
    why = ""
    if wanted is not None:
        named = [items for items in real if _wants(wanted, items)]
        if not named:
            text = f"none of {len(real)} CT series ({_sizes(real)}) fits the setting data.series ({wanted.names()})"
            raise ScanProblem("several_series", text)
        real, why = named, f"the setting data.series ({wanted.names()})"
    if fits is not None and (len(real) > 1 or (wanted is not None and wanted.annotated)):
        fitted = [items for items in real if fits(items)]
        if wanted is not None and wanted.annotated and len(fitted) != 1:
            text = f"the annotation fits {len(fitted)} of {len(real)} CT series ({_sizes(real)}), expected one"
            raise ScanProblem("several_series", text)
        if fitted:
            real, why = fitted, FITTED
    if len(real) == 1:
        return real[0], why
    _require_one_occasion(real, annotated=fits is not None and why != FITTED)
    return _by_rule(real, length_mm), "the rule: soft kernel, no contrast agent, whole head, thinnest slices"


def _require_one_occasion(real: list[list[Found]], *, annotated: bool) -> None:
    """Check that a rule about kernels and slices may decide.

    It cannot decide between two studies of a patient. Nor can it, if the annotation fits no series, between several
    frames of reference: the annotation would be put into the coordinates of another one.
    """
    studies, frames = _common(real, "study"), _common(real, "frame_of_reference")
    if len(studies) > 1:
        what = f"of {len(studies)} studies"
    elif annotated and len(frames) > 1:
        what = f"in {len(frames)} frames of reference, none with the voxels of the annotation"
    else:
        return
    text = f"got {len(real)} CT series ({_sizes(real)}) {what}, between which nothing decides, expected one"
    raise ScanProblem("several_series", f"{text}; name the one to use under data.series, or keep one")


def _common(series: Iterable[Sequence[Found]], name: str) -> set[str]:
    """The UIDs that all images of a series have in common, of each series that has one."""
    found = [{str(getattr(item, name)) for item in items} for items in series]
    return {uid for uids in found if len(uids) == 1 for uid in uids if uid}


def _by_rule(real: list[list[Found]], length_mm: Length) -> list[Found]:
    lengths = [length_mm(items) for items in real]
    ranks = []
    for items, length in zip(real, lengths, strict=True):
        first = items[0]
        whole = length >= WHOLE_SHARE * max(lengths)
        thickness = length / max(1, _n_images(items) - 1)
        too_large = first.shape[0] * first.shape[1] * _n_images(items) > MOST_VOXELS
        ranks.append((too_large, _sharp(first), names_agent(first.agent), not whole, round(thickness, 2)))
    order = sorted(range(len(real)), key=lambda index: ranks[index])
    if ranks[order[0]] == ranks[order[1]]:
        text = f"got {len(real)} CT series ({_sizes(real)}) between which nothing decides, expected one"
        raise ScanProblem("several_series", f"{text}; name the one to use under data.series, or keep one")
    return real[order[0]]


def _sharp(item: Found) -> bool:
    return is_sharp(item.kernel.split("\\")[0].strip())


def _sizes(series: Iterable[Sequence[Found]]) -> str:
    return "of " + ", ".join(map(str, sorted(map(_n_images, series)))) + " slices"


def _told(best: Sequence[Found], others: Sequence[Sequence[Found]], why: str) -> str:
    used = f"of {1 + len(others)} series, the one of {_n_images(best)} slices{_thick(best)} is used"
    left = ", ".join(f"{_n_images(items)} image(s){_thick(items)}{_kind(items)}" for items in others)
    return f"{used}{f', by {why}' if why else ''}; left out: {left}"


def _thick(items: Sequence[Found]) -> str:
    thickness = float(np.median([item.thickness_mm for item in items]))
    return f" of {thickness:g} mm" if 0 < thickness < 1000 else ""


def _kind(items: Sequence[Found]) -> str:
    first = items[0]
    words = [
        *(["derived"] if first.derived else []),
        *(["sharp kernel"] if _sharp(first) else []),
        *(["contrast agent"] if names_agent(first.agent) else []),
        *(["another plane"] if _is_turned(items, ()) else []),
    ]
    return f" ({', '.join(words)})" if words else ""
