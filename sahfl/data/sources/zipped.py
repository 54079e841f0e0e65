"""A zip of scans, which a site unpacks into its own folder.

Guarantees: everything is written below one new folder, as regular files for their owner alone; no entry leads out of it
or becomes a link. At most as many bytes are written as the zip's list claims, and only if the list's sum fits the limit
and the disk. The folder appears whole or not at all, and is used again while the zip's list is the same.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from sahfl.atomic import make_folder
from sahfl.errors import DataError, StorageError
from sahfl.regular_files import SCAN_BYTES, open_regular, open_to_append

FOLDER = "unpacked"
"""In the site's folder."""
ZIP_BYTES = 1 << 38
"""A zip, and what it unpacks to: a thousand heads of 250 MB."""
MOST_ENTRIES = 1 << 20
"""Files and folders in a zip: a thousand heads of a thousand slices."""
MAGIC = (b"PK\3\4", b"PK\5\6")
_PART_BYTES = 1 << 20
_IGNORED = ("__MACOSX/",)


def is_zip(path: Path) -> bool:
    """Test whether a regular file begins like a zip."""
    try:
        with open_regular(path, most=ZIP_BYTES) as stream:
            return stream.read(4) in MAGIC
    except OSError:
        return False


def unpack(path: Path, into: Path) -> Path:
    """Unpack a zip into a folder below ``into``, unless it is there; the folder that holds the scans.

    A folder of an earlier state of the zip is removed. A single folder around everything is left out of the result.

    Raises:
        DataError: it is no zip, is damaged or encrypted, claims too much, or an entry could lead out of the folder.
        StorageError: the disk has no room.
    """
    try:
        with open_regular(path, most=ZIP_BYTES) as stream, zipfile.ZipFile(stream) as archive:
            entries = _checked_entries(path, archive.infolist())
            target = into / FOLDER / _key(entries)
            if not target.is_dir():
                _require_room(path, into, sum(entry.file_size for entry in entries))
                shutil.rmtree(into / FOLDER, ignore_errors=True)
                _write(path, archive, entries, target)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise DataError(f"{path}: is no zip that can be unpacked here, or is damaged; pack it again as .zip") from error
    return inner(target)


def inner(folder: Path) -> Path:
    """The folder itself, or the only folder in it, if nothing else is there, and so on."""
    while True:
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
        if len(entries) != 1 or not entries[0].is_dir():
            return folder
        folder = entries[0]


def _checked_entries(path: Path, listed: Sequence[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
    """The files in a zip, after a check of its whole list."""
    files = [entry for entry in listed if not entry.filename.endswith("/") and not entry.filename.startswith(_IGNORED)]
    if len(listed) > MOST_ENTRIES:
        raise DataError(f"{path}: has {len(listed)} entries, expected at most {MOST_ENTRIES}")
    for number, entry in enumerate(files, 1):
        where = f"{path}: file {number} of {len(files)} in it"
        if entry.flag_bits & 1:
            raise DataError(f"{where} is encrypted; pack it again without a password")
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise DataError(f"{where} is a link or a device, expected files alone; pack copies in the place of links")
        parts = PurePosixPath(entry.filename).parts
        odd = ".." in parts or "\\" in entry.filename or "\0" in entry.orig_filename
        if odd or entry.filename.startswith("/") or not parts:
            raise DataError(f"{where} has a name that could lead out of the folder; pack the folder again")
        if entry.file_size > SCAN_BYTES:
            raise DataError(f"{where} claims {entry.file_size} bytes, expected at most {SCAN_BYTES}")
    if (total := sum(entry.file_size for entry in files)) > ZIP_BYTES:
        raise DataError(
            f"{path}: unpacks to {total} bytes, expected at most {ZIP_BYTES}; unpack it by hand, or split it"
        )
    names = {PurePosixPath(entry.filename) for entry in files}
    if len(names) < len(files) or any(parent in names for name in names for parent in name.parents):
        raise DataError(f"{path}: has two files of one name; pack the folder again")
    return files


def _key(entries: Sequence[zipfile.ZipInfo]) -> str:
    sha = hashlib.sha256()
    for entry in sorted(entries, key=lambda entry: entry.filename):
        sha.update(f"{entry.filename}\0{entry.file_size}\0{entry.CRC}\0".encode("utf-8", "surrogatepass"))
    return sha.hexdigest()[:16]


def _require_room(path: Path, into: Path, n_bytes: int) -> None:
    make_folder(into)
    free = shutil.disk_usage(into).free
    if n_bytes > free * 0.9:
        text = f"unpacks to {n_bytes / 1e9:.2f} GB, and {into} has {free / 1e9:.2f} GB left"
        raise StorageError(f"{path}: {text}; make room, or unpack it by hand and name the folder")


def _write(path: Path, archive: zipfile.ZipFile, entries: Sequence[zipfile.ZipInfo], target: Path) -> None:
    """Write all files into a folder of another name, and rename it."""
    part = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(part, ignore_errors=True)
    try:
        for number, entry in enumerate(entries, 1):
            place = part / PurePosixPath(entry.filename)
            make_folder(place.parent)
            with open_to_append(place) as stream, archive.open(entry) as source:  # a new file: no name is there twice
                left = entry.file_size
                while block := source.read(min(_PART_BYTES, left + 1)):
                    if (left := left - len(block)) < 0:
                        raise DataError(f"{path}: file {number} of {len(entries)} in it has more bytes than it claims")
                    stream.write(block)
        make_folder(part)
        part.replace(target)  # whole or not at all
    except OSError as error:
        raise StorageError(f"{part}: cannot be written ({error.strerror}); make room, then go on") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
