"""Checks of a site's data, done once before the first round: the findings for each case, kept at the site.

``rules`` is the table of possible findings; ``scan_rules``, ``file_rules`` and ``site_rules`` detect them.
"""

from __future__ import annotations

import functools
import hashlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from sahfl.atomic import write_atomic
from sahfl.data.ct import Scan, read_scan
from sahfl.data.dicom import dicom_hash, is_dicom, scan_parts
from sahfl.data.file_rules import judge_files
from sahfl.data.formats.volume import files_of
from sahfl.data.manifest import Case, pseudonym
from sahfl.data.measures import Measures, measure, signature
from sahfl.data.nifti import check_unpacked
from sahfl.data.rules import BY_ID, Finding, finding
from sahfl.data.scan_rules import judge_scan
from sahfl.data.site_rules import Trace, judge_site, mask_hash
from sahfl.errors import DataChanged, DataError, DataRefused, ScanProblem
from sahfl.regular_files import RESULTS_BYTES, SCAN_BYTES, open_regular, read_bytes

HASHED_BYTES = 256_000_000
"""Bytes read again in each round to compare content: 0.2 s from memory, 2 s from a slow disk."""


@dataclass(frozen=True)
class CheckedCase:
    """A case with its findings."""

    case: Case
    volume_ml: float
    """Annotated blood, mL; 0 for a legal empty annotation, and for a case that cannot be read."""
    content: str
    """SHA-256 over the bytes of image and annotation (of every file, for DICOM) and the labels that the site names as
    blood; empty if they cannot be read."""
    stamp: tuple[int, ...]
    """Sizes, modification and change times of the case's files when they were checked."""
    findings: tuple[Finding, ...]
    voxels: str = ""
    """SHA-256 over the image's voxels, independent of file format and orientation; empty if they cannot be read."""

    @property
    def usable(self) -> bool:
        """True if the case breaks no rule of severity error."""
        return all(finding.severity != "error" for finding in self.findings)


MANIFEST = "manifest.json"
"""The checked cases, in a site's own folder."""
_manifest_format = TypeAdapter(tuple[CheckedCase, ...])
OnScan = Callable[[CheckedCase, Scan | None, Measures | None], None]


def check_cases(
    cases: Sequence[Case],
    *,
    on_case: Callable[[int, int], None] = lambda done, total: None,
    on_scan: OnScan = lambda checked, scan, measures: None,
) -> tuple[CheckedCase, ...]:
    """Check all cases of a site in the datalist's order, with one scan in memory at a time.

    ``on_case`` is called with (done, total) after each case; ``on_scan`` with each case and its scan (None if it cannot
    be read), before the rules across cases.
    """
    checked, traces = [], []
    for case in cases:
        item, scan, measures = _examine(case)
        if scan is not None and item.usable:  # a copy of a refused case may be the good one
            traces.append(Trace(case, item.voxels, signature(scan.image), mask_hash(scan.label)))
        on_scan(item, scan, measures)
        del scan
        checked.append(item)
        on_case(len(checked), len(cases))
    found: dict[str, tuple[Finding, ...]] = {}
    for case, extra in judge_site(traces, cases):
        found[case.id] = (*found.get(case.id, ()), extra)
    return tuple(replace(item, findings=item.findings + found.get(item.case.id, ())) for item in checked)


def write_manifest(folder: Path, checked: tuple[CheckedCase, ...]) -> None:
    """Write the checked cases of a site into its own folder, where they stay: which case is which file."""
    write_atomic(folder / MANIFEST, _manifest_format.dump_json(checked, indent=1))


def read_manifest(folder: Path, site: str) -> tuple[CheckedCase, ...]:
    """The checked cases in a site's own folder.

    Raises:
        DataError: they were not checked there yet, or the file is damaged.
    """
    try:
        return _manifest_format.validate_json(read_bytes(folder / MANIFEST, most=RESULTS_BYTES))
    except (OSError, ValidationError) as error:
        raise DataError(f"site {site}: {folder / MANIFEST} is missing or damaged; check the data again") from error


def usable_cases(checked: Iterable[CheckedCase], *, max_refused_share: float = 1.0) -> tuple[CheckedCase, ...]:
    """The cases that a site may use, of all its cases.

    Raises:
        DataRefused: more than ``max_refused_share`` of the cases have errors, or none is usable; the message lists each
            broken rule with its count and one example.
    """
    checked = tuple(checked)
    usable = tuple(item for item in checked if item.usable)
    refused = len(checked) - len(usable)
    if usable and refused <= max_refused_share * len(checked) + 1e-9:
        return usable
    errors = [(item, broken) for item in checked for broken in item.findings if broken.severity == "error"]
    examples = {broken.rule: broken.text for _, broken in errors}
    counts = count_findings(checked)
    listed = "\n".join(f"  {rule} ({counts[rule]}x), for example: {text}" for rule, text in examples.items())
    if not usable:
        raise DataRefused(f"none of {len(checked)} case(s) can be used:\n{listed}")
    share = f"{refused} of {len(checked)} case(s) are refused ({refused / len(checked):.1%})"
    raise DataRefused(f"{share}, the site's max_refused_share is {max_refused_share:.1%}:\n{listed}")


def count_findings(checked: Iterable[CheckedCase]) -> dict[str, int]:
    """Number of cases per broken rule, in the table's order; a site sends nothing else about its findings."""
    counts = Counter(rule for item in checked for rule in {broken.rule for broken in item.findings})
    return {rule: counts[rule] for rule in BY_ID if rule in counts}


def verify_unchanged(checked: Sequence[CheckedCase], *, turn: int = 0, whole: bool = False) -> None:
    """Compare the files with their state at the check: a study must not train on changing data.

    Every call compares sizes and times of all files, and the content of those that differ. To detect changed files
    whose size and times are the same, each call also hashes another part of the cohort, about ``HASHED_BYTES``. All of
    it is hashed in ``ceil(bytes / HASHED_BYTES)`` calls with consecutive turns; ``whole`` hashes all of it at once.

    Raises:
        DataChanged: a file's content changed, or the file vanished or cannot be read any more.
    """
    n_bytes = sum(sum(item.stamp[::3]) for item in checked)
    stride = 1 if whole else max(1, -(-n_bytes // HASHED_BYTES))  # whole numbers: a damaged list may hold any
    for index, item in enumerate(checked):
        verify_untouched(item, hashed=index % stride == turn % stride)


def verify_untouched(item: CheckedCase, *, hashed: bool = False) -> None:
    """Raise DataChanged if a case's content changed since its check; unless ``hashed``, only touched files are read."""
    stamp = _stamp(item.case)
    if (hashed and _digest(item.case) != item.content) or (
        stamp != item.stamp and not _same(item.case, stamp, item.content)
    ):
        raise DataChanged(f"case {item.case.id}: its files changed after they were checked; start a new run")


def patient_keys(checked: Iterable[CheckedCase], salt: str) -> dict[str, str]:
    """Salted key of each patient, from the content of the patient's scans; only who has the scans can compute it."""
    contents: dict[str, list[str]] = {}
    for item in checked:
        contents.setdefault(item.case.patient, []).append(item.content)
    return {patient: pseudonym(" ".join(sorted(parts)), salt) for patient, parts in contents.items()}


def scan_keys(checked: Iterable[CheckedCase], salt: str) -> dict[str, str]:
    """Salted key of each case, from the image's voxels; two sites that hold the same scan get the same key."""
    return {item.case.id: pseudonym(item.voxels, salt) for item in checked}


def data_key(checked: Iterable[CheckedCase], salt: str) -> str:
    """One salted key of all cases; it changes if a case is changed, added, removed or assigned to another patient."""
    cases = (f"{item.content} {item.case.patient} {item.case.fold}" for item in checked)
    return pseudonym("\n".join(sorted(cases)), salt)


def _examine(case: Case) -> tuple[CheckedCase, Scan | None, Measures | None]:
    stamp = _stamp(case)  # before reading, so that a change during the reading is detected later
    try:
        scan, content, of_files = read_scan(case), _content(case), tuple(judge_files(case))
    except ScanProblem as problem:
        return CheckedCase(case, 0.0, "", stamp, (finding(problem.rule, str(problem)),)), None, None
    measures = measure(scan)
    findings = sorted(
        (*judge_scan(case.id, scan, measures), *of_files, *_notes(case, scan)),
        key=lambda found: list(BY_ID).index(found.rule),
    )
    return CheckedCase(case, scan.volume_ml, content, stamp, tuple(findings), voxel_hash(scan.image)), scan, measures


def _notes(case: Case, scan: Scan) -> list[Finding]:
    """Findings about what was done to the annotation when it was read."""
    return [finding(rule, f"case {case.id}: {text}") for rule, text in scan.notes]


def voxel_hash(image: NDArray[np.float32]) -> str:
    """SHA-256 over voxels (X, Y, Z), rounded to whole HU, whatever number format they were stored in."""
    sha = hashlib.sha256(repr(image.shape).encode())
    for plane in np.moveaxis(image, 2, 0):
        sha.update(np.ascontiguousarray(np.clip(np.rint(plane), -1e9, 1e9).astype("<i4")).tobytes())
    return sha.hexdigest()


def _content(case: Case) -> str:
    """Same as ``_digest``, but unpacks a .gz to its end, because nibabel does not compare its checksum."""
    try:
        hashes, files = _parts(case)
        for path in files:
            check_unpacked(path)
        return _hash_of(hashes, files)
    except ScanProblem as problem:
        raise ScanProblem(problem.rule, f"case {case.id}: {problem}") from problem
    except (OSError, EOFError, zlib.error) as error:
        raise ScanProblem("unreadable", f"case {case.id}: a file is damaged (its checksum does not fit)") from error


def _digest(case: Case) -> str:
    """SHA-256 over all that a case is read from; empty if a file cannot be read."""
    try:
        return _hash_of(*_parts(case))
    except (OSError, ScanProblem):
        return ""


def _hash_of(hashes: Iterable[bytes], files: Iterable[Path]) -> str:
    sha = hashlib.sha256()
    for part in hashes:
        sha.update(part)
    for path in files:
        _add(sha, path)
    return sha.hexdigest()


def _parts(case: Case) -> tuple[tuple[bytes, ...], tuple[Path, ...]]:
    """What a case is read from: hashes of what is read of DICOM files, and files that are hashed whole.

    Which labels are blood is a part of it: another choice makes another annotation of the same files.
    """
    hashes = () if case.blood is None else (f"blood {sorted(map(str, case.blood))}\n".encode(),)
    files: tuple[Path, ...] = ()
    for path in dict.fromkeys((case.image, case.label)):
        if path.is_dir():
            more, found = scan_parts(path)
            hashes, files = (*hashes, *more), (*files, *found)
        elif path == case.label != case.image and is_dicom(path):
            hashes = (*hashes, dicom_hash(path))
        else:
            files = (*files, *files_of(path))
    return hashes, files


def _add(sha: hashlib._Hash, path: Path) -> None:
    with open_regular(path, most=SCAN_BYTES) as stream:
        while part := stream.read(1 << 20):
            sha.update(part)


@functools.lru_cache(maxsize=10_000)
def _same(case: Case, stamp: tuple[int, ...], content: str) -> bool:
    """Test whether touched files still have their content; cached, so that a backup costs only one reading."""
    return bool(stamp) and bool(content) and _digest(case) == content


def _stamp(case: Case) -> tuple[int, ...]:
    try:
        stats = [path.stat() for path in case.files()]
    except (OSError, ValueError):  # gone, or in a damaged manifest no path at all
        return ()
    return tuple(value for stat in stats for value in (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
