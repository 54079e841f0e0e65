"""A folder of images and masks as files, paired by their names.

    x.nii.gz, x_mask.nii.gz     or x-label.nrrd, seg_x.mha: a word for a mask among the parts of the name
    images/x.nii, labels/x.nii  or masks, segmentations, imagesTr with labelsTr: a word among the folders
    x/ct.nii.gz, x/mask.nii.gz  a folder for each patient
    sub-01/ct/sub-01_ct.nii.gz, derivatives/manual/sub-01/ct/sub-01_label-blood_mask.nii.gz      BIDS

An image and a mask belong together if their names and folders are equal without such words, or, where the folders
differ, if the names alone fit one image only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sahfl.data.formats.names import is_volume, stem
from sahfl.data.manifest import Case, patient_of, scan_files
from sahfl.errors import DataError

_MASK = """
    annotation annotations contour contours groundtruth gt label labelmap labels labelsts labelstr manual mask masks msk
    roi seg segmentation segmentations segs truth
"""
_IMAGE = """
    0000 anat ct cts data derivatives head image images imagests imagestr img imgs ncct nect original rawdata scan scans
    vol volume volumes
"""
_BLOOD = "bleed blood clot haematoma haemorrhage hematoma hemorrhage ich lesion"
MASK_WORDS, IMAGE_WORDS, BLOOD_WORDS = (frozenset(text.split()) for text in (_MASK, _IMAGE, _BLOOD))
"""Words in the names of masks, of images, and of masks beside an image of the same name without the word."""
_PART = re.compile(r"[^A-Za-z0-9]+")
_TRUTH = re.compile(r"ground[^a-z0-9]*truths?")
_ENTITY = re.compile(r"(?:^|_)(?:label|desc|space|res|dseg|mod)-[A-Za-z0-9]+")
"""Parts of a BIDS name that a mask has beside those of its image."""


@dataclass(frozen=True)
class _Named:
    """A file, and what is left of its folder and name without words for images and masks, in lower case."""

    path: Path
    folder: str
    name: str
    is_mask: bool


@dataclass(frozen=True)
class Pairs:
    """What a folder holds."""

    pairs: tuple[tuple[Path, Path], ...]
    """Images with their masks."""
    images: tuple[Path, ...]
    """Images without a mask."""
    masks: tuple[Path, ...]
    """Masks without an image, and masks of an image that has another one."""


def find_pairs(folder: Path, volumes: Sequence[Path] | None = None) -> Pairs:
    """The images and masks below a folder, in the order of their paths; of ``volumes`` alone, if they are given.

    Raises:
        OSError: a folder cannot be read.
    """
    volumes = list(filter(is_volume, scan_files(folder))) if volumes is None else volumes
    files = _with_masks_by_blood([_named(path, folder) for path in volumes])
    images, masks = ([file for file in files if file.is_mask is wanted] for wanted in (False, True))
    by_place = {(file.folder, file.name): file for file in images}
    counts = Counter(file.name for file in images)
    by_name = {file.name: file for file in images if file.name and counts[file.name] == 1}
    twice = {key for key, n in Counter((file.folder, file.name) for file in images).items() if n > 1}
    found: dict[Path, Path] = {}
    odd = []
    for mask in masks:
        key = mask.folder, mask.name
        image = by_place.get(key) or by_name.get(mask.name)
        if image is None or image.path in found or key in twice:
            odd.append(mask.path)
        else:
            found[image.path] = mask.path
    pairs = tuple((file.path, found[file.path]) for file in images if file.path in found)
    return Pairs(pairs, tuple(file.path for file in images if file.path not in found), tuple(odd))


def read_pairs(folder: Path, site: str, volumes: Sequence[Path] | None = None) -> tuple[Case, ...]:
    """One case per image, in the order of their paths; the check reports an image without a mask.

    Without ``volumes`` it reads all that are below the folder.

    The patient is the BIDS subject, or the folder that holds one image and nothing but words in its name; any other
    image is a patient of its own.

    Raises:
        DataError: a mask has no image, or an image has several; the message names no file.
    """
    try:
        found = find_pairs(folder, volumes)
    except OSError as error:
        raise DataError(f"site {site}: {folder}: {error.strerror}") from error
    if found.masks:
        n = len(found.masks)
        text = f"{n} mask(s) fit no image, or an image that has another mask, beside {len(found.pairs)} that fit"
        remedy = (
            "name each mask like its image with _mask behind it, or list the pairs in a CSV file (image,mask,patient)"
        )
        raise DataError(f"site {site}: {folder}: {text}; {remedy}")
    masks = dict(found.pairs)
    cases = []
    for index, image in enumerate(sorted([*masks, *found.images])):
        patient, from_name = _patient(image, folder)
        label = masks.get(image, image.with_name(f"{stem(image)}_mask{image.name[len(stem(image)) :]}"))
        cases.append(Case(f"{site}-{index:04d}", image, label, patient, None, from_name))
    return tuple(cases)


def _named(path: Path, folder: Path) -> _Named:
    name = _ENTITY.sub("", stem(path))
    parents = path.parent.relative_to(folder).parts
    if "derivatives" in parents:  # BIDS: derivatives/PIPELINE/sub-01
        at = parents.index("derivatives")
        parents = parents[:at] + parents[at + 2 :]
    words = [_words(part) for part in parents]
    is_mask = any(MASK_WORDS & set(part) for part in (_words(path.name), *words))
    kept = ["-".join(_without(part)) for part in words]
    return _Named(path, "/".join(filter(None, kept)), "-".join(_without(_words(name))), is_mask)


def _with_masks_by_blood(files: Sequence[_Named]) -> list[_Named]:
    """Take ``x_blood`` as the mask of ``x`` where both are there and no name has a word for a mask."""
    names = {(file.folder, file.name) for file in files if not file.is_mask}
    result = []
    for file in files:
        parts = file.name.split("-")
        shorter = "-".join(part for part in parts if part not in BLOOD_WORDS)
        if shorter != file.name and (file.is_mask or (file.folder, shorter) in names):
            file = _Named(file.path, file.folder, shorter if (file.folder, shorter) in names else file.name, True)
        result.append(file)
    return result


def _words(text: str) -> list[str]:
    return [part for part in _PART.split(_TRUTH.sub("groundtruth", text.lower())) if part]


def _without(words: Sequence[str]) -> list[str]:
    """The words that stand for neither image nor mask."""
    return [word for word in words if word not in MASK_WORDS | IMAGE_WORDS]


def _patient(image: Path, folder: Path) -> tuple[str, bool]:
    """The patient of an image, and whether only its name says so."""
    subject, from_name = patient_of(stem(image))
    if not from_name:
        return subject, False
    own, parents = _without(_words(stem(image))), image.parent.relative_to(folder).parts
    of_folder = [part for part in parents if _without(_words(part))]
    if of_folder and (not own or _words(of_folder[-1]) == own):  # x/ct.nii.gz, x/x.nii.gz
        return "/".join(of_folder), True
    return "/".join([*of_folder, stem(image)]), True
