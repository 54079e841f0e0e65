"""Preprocessed slices on disk: a scan is preprocessed once per setting, and a process reads only the slices it uses.

A cache folder holds ``<settings>/<content>.slices``: the first name is a hash of the settings of the preprocessing, the
second a hash of the bytes of scan and annotation. A file starts with a line ``<SHA-256 of the rest of the line>
<JSON>``; a record for each slice follows, with its voxels and their CRC-32. Records are read with plain reads and never
mapped into memory. The operating system caches them outside the process's memory, and a file that is cut while it is in
use gives a short read instead of a crash.

The annotation at full resolution, which scoring needs, is not cached: reading it from its source takes a few hundredths
of the time that segmenting the case takes (``benchmarks/README.md``).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter

from sahfl.atomic import write_atomic
from sahfl.data.checks import CheckedCase, verify_untouched
from sahfl.data.ct import Placement, read_scan
from sahfl.data.view_settings import View, ViewsConfig
from sahfl.data.views import CaseViews, SliceStack, make_views
from sahfl.errors import StorageError
from sahfl.log_lines import LogLine
from sahfl.process import locked
from sahfl.regular_files import LOG_BYTES, open_regular

FORMAT = 1
"""Part of every entry's key: raise it when the file format or a result of ``make_views`` or ``read_scan`` changes."""
CACHE = "cache"
"""The cache in a site's own folder."""
KEPT_SETTINGS = 2
"""A folder keeps the entries of the two settings used last, so that two studies can alternate."""
IMAGE, LABEL, CRC = np.dtype("<i2"), np.dtype(np.bool_), np.dtype("<u4")
Found = TypeVar("Found")
log = logging.getLogger(__name__)


class SliceCache:
    """The preprocessed cases of one site.

    Guarantees: a read gives, bit for bit, what preprocessing the scan again would give. A missing, damaged or shortened
    entry is made again when it is detected, at the latest when the damaged slice is read. Processes may share the
    folder. Its size is bounded by the site's cases times ``KEPT_SETTINGS``. It may be deleted at any time; the first
    entry creates it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, items: Sequence[CheckedCase], config: ViewsConfig) -> list[CaseViews]:
        """The cases as slices, which are read from disk when they are used.

        Raises:
            DataError: a case must be preprocessed, and its files changed or cannot be read.
            StorageError: an entry cannot be written; the others are untouched.
        """
        folder = self._folder / _settings_key(config)
        with suppress(OSError):  # the folder does not exist yet
            os.utime(folder)
        entries = [_Entry(folder / f"{item.content}.slices", item, config) for item in items]
        # All entries are made before any result is kept: small objects between large temporary ones would fragment the
        # memory, and the process would grow by one volume with each case.
        for entry in entries:
            entry.read(entry.case_views)
        return [entry.read(entry.case_views) for entry in entries]

    def n_bytes(self) -> int:
        """Bytes of all entries."""
        sizes = 0
        for path in self._folder.glob("*/*.slices"):
            with suppress(OSError):  # removed meanwhile
                sizes += path.stat().st_size
        return sizes

    def keep_only(self, contents: Collection[str]) -> int:
        """Remove the entries of scans that the site no longer has, and unfinished files of killed processes.

        Returns their number.
        """
        if not self._folder.is_dir():
            return 0
        names = {f"{content}.slices" for content in contents}
        with _alone(self._folder):
            removed = [path for path in self._folder.glob("*/*") if path.name not in names]
            for path in removed:
                path.unlink(missing_ok=True)
        return len(removed)


@dataclass(frozen=True)
class _Part:
    """One view in an entry: its images, followed by its annotations."""

    shape: tuple[int, int, int]
    with_blood: tuple[int, ...]


@dataclass(frozen=True)
class _Header:
    """The first line of an entry."""

    placement: Placement
    slice_spacing_mm: float
    start_z: int
    parts: dict[View, _Part]


_header_format = TypeAdapter(_Header)


@dataclass(frozen=True)
class _Entry:
    """One file of the cache, and the case and settings that it is made from."""

    path: Path
    item: CheckedCase
    config: ViewsConfig

    def read(self, find: Callable[[BinaryIO], Found]) -> Found:
        """Apply ``find`` to the open file; a missing or damaged file is made again first."""
        with suppress(OSError, ValueError):
            return self._open(find)
        with _alone(self.path.parent.parent):
            with suppress(OSError, ValueError):
                return self._open(find)  # another process made it meanwhile
            self._make()
        try:
            return self._open(find)
        except (OSError, ValueError) as error:
            raise StorageError(
                f"{self.path.parent}: what was just written cannot be read back; a failing disk?"
            ) from error

    def _open(self, find: Callable[[BinaryIO], Found]) -> Found:
        with open_regular(self.path, most=LOG_BYTES) as stream:
            return find(stream)

    def _make(self) -> None:
        views = make_views(read_scan(self.item.case), self.config)
        verify_untouched(self.item)  # the hash in the entry's name belongs to what was read
        content = _encode(views)
        _make_room(self.path.parent)
        log.info(LogLine("cached", case=self.item.case.id, bytes=len(content), again=self.path.exists()))
        try:
            write_atomic(self.path, content)
        except OSError as error:
            text = f"{self.path.parent}: {len(content) / 1e6:.1f} MB cannot be written ({error.strerror})"
            raise StorageError(f"{text}; make room, then go on") from error

    def case_views(self, stream: BinaryIO) -> CaseViews:
        """The case, with its slices left on disk.

        Raises:
            ValueError: the header is damaged, or the file's length differs from the one in the header.
        """
        line = stream.readline()
        digest, _, text = line.partition(b" ")
        if hashlib.sha256(text).hexdigest().encode() != digest:
            raise ValueError("header: does not match its hash")
        header, offset = _header_format.validate_json(text), len(line)
        stacks: dict[View, SliceStack] = {}
        for view, part in header.parts.items():
            image = StoredSlices(part.shape, IMAGE, offset, self)
            label = StoredSlices(part.shape, LABEL, image.end, self)
            stacks[view], offset = SliceStack(image, label, np.array(part.with_blood, np.intp)), label.end
        if os.fstat(stream.fileno()).st_size != offset:
            raise ValueError(f"got {os.fstat(stream.fileno()).st_size} bytes, expected {offset}")
        # Views in the order of the study: the order of summation decides the last bit of a prediction.
        ordered = {view: stacks[view] for view in self.config.weights if view in stacks}
        return CaseViews(ordered, header.placement, header.slice_spacing_mm, header.start_z)


@dataclass(frozen=True)
class StoredSlices:
    """Slices (n, height, width) on disk, int16 HU or bool; ``slices[first:last]`` reads and verifies them."""

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    offset: int
    """Byte at which the first record begins."""
    entry: _Entry

    @property
    def end(self) -> int:
        """Byte after the last record."""
        return self.offset + self.shape[0] * self._record_bytes

    def __getitem__(self, key: slice) -> NDArray[Any]:
        first, last, step = key.indices(self.shape[0])
        if step != 1:
            raise ValueError(f"slices on disk: got step {step}, expected 1")
        return self.entry.read(lambda stream: self._read(stream, first, max(first, last)))

    @property
    def _record_bytes(self) -> int:
        return self.shape[1] * self.shape[2] * self.dtype.itemsize + CRC.itemsize

    def _read(self, stream: BinaryIO, first: int, last: int) -> NDArray[Any]:
        raw = os.pread(stream.fileno(), (last - first) * self._record_bytes, self.offset + first * self._record_bytes)
        records = np.frombuffer(raw, np.uint8).reshape(last - first, self._record_bytes)  # ValueError if cut short
        voxels, sums = records[:, : -CRC.itemsize], records[:, -CRC.itemsize :]
        if not np.array_equal(_checksums(voxels, first), np.ascontiguousarray(sums).view(CRC)[:, 0]):
            raise ValueError("a slice does not match its checksum")
        return np.ascontiguousarray(voxels).view(self.dtype).reshape(-1, *self.shape[1:])


def _encode(case: CaseViews) -> bytes:
    parts, payload = {}, []
    for view, stack in case.stacks.items():
        n, height, width = stack.image.shape
        parts[view] = _Part((n, height, width), tuple(int(index) for index in stack.with_blood))
        payload += [_records(stack.image[:].astype(IMAGE)), _records(stack.label[:].astype(LABEL))]
    header = _header_format.dump_json(_Header(case.placement, case.slice_spacing_mm, case.start_z, parts)) + b"\n"
    return b"".join([hashlib.sha256(header).hexdigest().encode(), b" ", header, *payload])


def _records(slices: NDArray[Any]) -> bytes:
    voxels = np.ascontiguousarray(slices).reshape(len(slices), -1).view(np.uint8)
    sums = _checksums(voxels, 0)[:, None].view(np.uint8)
    return np.concatenate([voxels, sums], axis=1).tobytes()


def _checksums(voxels: NDArray[np.uint8], first: int) -> NDArray[np.uint32]:
    """CRC-32 of each row, seeded with the slice's number to detect misplaced slices."""
    return np.array([zlib.crc32(row, first + index) for index, row in enumerate(voxels)], CRC)


def _settings_key(config: ViewsConfig) -> str:
    """Hash of library versions and of all settings of the slices; weights, windows and neighbours are applied later."""
    settings = {"format": FORMAT, "views": sorted(config.weights), "spacing_mm": config.spacing_mm}
    settings |= {"size": config.size, "torch": torch.__version__}
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]


def _make_room(folder: Path) -> None:
    """Remove the least recently used settings, so that ``KEPT_SETTINGS`` remain, ``folder`` among them."""
    others = [path for path in folder.parent.iterdir() if path.is_dir() and path != folder]
    others.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in others[KEPT_SETTINGS - 1 :]:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes from changing the folder; the lock ends with this process, even if it is killed."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / "lock"))
        except OSError as error:
            raise StorageError(f"{folder}: cannot be written ({error.strerror})") from error
        yield
