"""Fetching studies from an archive into a folder under pseudonyms."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage

from sahfl.atomic import make_folder, write_atomic
from sahfl.errors import PacsError
from sahfl.pacs.archive import Archive
from sahfl.pacs.mapping import Known, Mapping
from sahfl.pacs.orders import Order
from sahfl.pacs.pseudonyms import new_uid, pseudonymise

CT = (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
"""Classes of CT images; dose screens and reports of a CT study are of other ones."""
STUDY_BYTES = 1 << 33
"""Most bytes of a study on the disk: ten series of 1000 slices of 512 x 512."""
LEAST_SLICES = 8
"""A series with fewer images is a localizer, a dose screen or a single reformat."""
OWN_MODEL = "sahfl predict"
"""Model of the device in segmentations of this program, which are no annotations of a person."""
ANNOTATION = "annotation.dcm"


@dataclass(frozen=True)
class Choice:
    """Which series of a study are fetched."""

    description: str = ""
    """A series' description must contain this text, in small or capital letters."""
    least_slices: int = LEAST_SLICES
    annotations: bool = False
    """Fetch the newest segmentation of a person too."""


@dataclass
class Outcome:
    """What became of the studies; none of its values is an identifier of a patient."""

    n_fetched: int = 0
    n_earlier: int = 0
    """Fetched by earlier calls."""
    n_annotated: int = 0
    reasons: dict[str, str] = field(default_factory=dict)
    """Pseudonym to the reason why the study was refused."""


def fetch(
    archive: Archive,
    orders: Sequence[Order],
    scans: Path,
    choice: Choice,
    on_study: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Fetch the CT series of studies into ``scans/<pseudonym>/``, and the mapping into the folder beside it.

    Guarantees: a study's folder appears when it is complete; a second call goes on, image by image, where the first
    ended. A study that cannot be fetched never ends the others. What is written below ``scans`` has no element of
    the patient (``pseudonyms``).

    Raises:
        PacsError: the mapping is damaged.
        OSError: the disk is full.
    """
    mapping, outcome = Mapping(scans), Outcome()
    secret = mapping.secret()
    make_folder(scans)
    every = {order.pseudonym: known for order in orders if (known := mapping.read(order.pseudonym)) is not None}
    mapping.write_table(orders, every, outcome.reasons)
    for number, order in enumerate(orders, 1):
        one = _OneStudy(archive, order, scans, mapping, secret, choice)
        try:
            earlier = one.is_finished(every.get(order.pseudonym))
            known = one.fetch(every.get(order.pseudonym))
            outcome.n_earlier += earlier
            outcome.n_fetched += 1
            every[order.pseudonym] = known
            outcome.n_annotated += choice.annotations and one.fetch_annotation(known)
        except PacsError as error:
            outcome.reasons[order.pseudonym] = str(error)
        mapping.write_table(orders, every, outcome.reasons)
        on_study(number, len(orders))
    return outcome


@dataclass(frozen=True)
class _OneStudy:
    archive: Archive
    order: Order
    scans: Path
    mapping: Mapping
    secret: bytes
    choice: Choice

    @property
    def folder(self) -> Path:
        return self.scans / self.order.pseudonym

    def is_finished(self, known: Known | None) -> bool:
        """Whether an earlier call fetched the study of this order.

        Raises:
            PacsError: the folder, or the mapping, is of another study.
        """
        if known is None and self.folder.exists():
            raise PacsError("its folder exists and is not in the mapping; move the folder, or use another pseudonym")
        if known is None:
            return False
        same = known.study == self.order.study if self.order.study else known.accession == self.order.accession
        if not same or known.patient != self.order.patient:
            raise PacsError("an earlier call fetched another study, or patient, as this pseudonym; use another one")
        return known.finished and self.folder.is_dir()

    def fetch(self, known: Known | None) -> Known:
        """Fetch what is missing of the study."""
        if known is not None and self.is_finished(known):
            return known
        if known is None:
            known = Known(self.order.pseudonym, self.order.patient, self._study(), self.order.accession)
            self.mapping.write(known)  # before the first image, so that the folder is never without it
        series = list(self._series(known.study))
        part, n_bytes, n_images = self.scans / f".{self.order.pseudonym}.part", 0, 0
        for number, uid in enumerate(series, 1):
            for path in self._fetch_series(part / f"series-{number}", uid, known):
                n_bytes, n_images = n_bytes + path.stat().st_size, n_images + 1
                if n_bytes > STUDY_BYTES:
                    raise PacsError(
                        f"the study has more than {STUDY_BYTES >> 30} GiB of CT; choose series by description"
                    )
        part.rename(self.folder)
        known.series, known.images, known.finished = len(series), n_images, True
        self.mapping.write(known)
        return known

    def _fetch_series(self, folder: Path, series: str, known: Known) -> Iterator[Path]:
        """Fetch the images that are not in a folder yet."""
        earlier = ""
        for image in self._images(known.study, series):
            path = folder / f"{new_uid(image, self.secret)}.dcm"
            known.uids[path.stem] = image
            if path.exists():
                earlier = earlier or image
            else:
                self._keep(path, self._image(known.study, series, image), known)
            yield path
        if earlier:  # the interrupted call has not written the UIDs, such as that of the frame of reference
            pseudonymise(self._image(known.study, series, earlier), self.order.patient, self.secret, known.uids)

    def _study(self) -> str:
        """StudyInstanceUID of the only study that the order names."""
        asked = (
            {"StudyInstanceUID": self.order.study} if self.order.study else {"AccessionNumber": self.order.accession}
        )
        ((name, value),) = asked.items()
        # Some archives ignore a filter that they do not know, and give all studies.
        found = [item for item in self.archive.search("studies", **asked) if str(item.get(name)) == value]
        if len(found) != 1:
            raise PacsError(f"the archive has {len(found)} studies with this {name}, expected one")
        return str(found[0].StudyInstanceUID)

    def _series(self, study: str) -> Iterator[str]:
        found = [item for item in self.archive.search("series", study, Modality="CT") if item.get("Modality") == "CT"]
        text = self.choice.description.casefold()
        chosen = [item for item in found if text in str(item.get("SeriesDescription") or "").casefold()]
        if not chosen:
            said = "none with this description" if found else "expected one or more"
            raise PacsError(f"the study has {len(found)} CT series, {said}")
        n = 0
        for item in sorted(chosen, key=lambda item: (int(item.get("SeriesNumber") or 0), str(item.SeriesInstanceUID))):
            uid = str(item.SeriesInstanceUID)
            if self._is_large(study, uid):
                n += 1
                yield uid
        if not n:
            raise PacsError(f"no CT series of the study has {self.choice.least_slices} images or more")

    def _is_large(self, study: str, series: str) -> bool:
        found = self.archive.search("instances", study, series)
        several = any(str(item.get("SOPClassUID")) in CT[1:] for item in found)
        return several or len(found) >= self.choice.least_slices

    def _images(self, study: str, series: str) -> list[str]:
        found = self.archive.search("instances", study, series)
        return [str(item.SOPInstanceUID) for item in found if str(item.get("SOPClassUID", CT[0])) in CT]

    def _image(self, study: str, series: str, image: str) -> Dataset:
        found = self.archive.retrieve(study, series, image)
        if str(found.get("SOPClassUID")) not in CT:
            raise PacsError("the archive sent an object that is no CT image")
        return found

    def _keep(self, path: Path, found: Dataset, known: Known) -> None:
        made = pseudonymise(found, self.order.patient, self.secret, known.uids)
        stream = io.BytesIO()
        try:
            made.save_as(stream, enforce_file_format=True)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise PacsError(f"an image's header cannot be written again ({type(error).__name__})") from None
        write_atomic(path, stream.getvalue())

    def fetch_annotation(self, known: Known) -> bool:
        """Fetch the newest segmentation of a person that refers to a fetched series; whether there is one."""
        fetched, newest = set(known.uids.values()), None
        for item in self.archive.search("series", known.study, Modality="SEG"):
            if item.get("Modality") != "SEG":
                continue
            uid = str(item.SeriesInstanceUID)
            for image in self.archive.search("instances", known.study, uid):
                found = self.archive.retrieve(known.study, uid, str(image.SOPInstanceUID))
                if found.get("ManufacturerModelName") == OWN_MODEL or not _refers_to(found, fetched):
                    continue
                when = (
                    str(found.get("ContentDate") or ""),
                    str(found.get("ContentTime") or ""),
                    str(image.SOPInstanceUID),
                )
                if newest is None or when > newest[0]:
                    newest = when, found
        if newest is None:
            return False
        self._keep(self.folder / ANNOTATION, newest[1], known)
        self.mapping.write(known)
        return True


def _refers_to(segmentation: Dataset, fetched: set[str]) -> bool:
    series = segmentation.get("ReferencedSeriesSequence") or ()
    return any(str(item.get("SeriesInstanceUID")) in fetched for item in series)
