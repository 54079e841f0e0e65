"""Opening files: regular ones of bounded size only, so that no pipe, device, socket or growing file stops a program.

Every file that this project opens is opened here (``tests/test_regular_files.py``). A limit belongs to what a file is
for; its reason stands below it.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from sahfl.errors import UnfitFile

OWNER_ONLY = 0o600
"""Mode of files that nobody but their owner reads or writes."""
SETTINGS_BYTES = 1 << 18
"""A YAML file that a person writes. The parser takes ten seconds for a megabyte."""
TRUST_BYTES = 1 << 20
"""A key, certificate or signature, or the note of a kit: a few thousand bytes each."""
LIST_BYTES = 1 << 24
"""A list that one program keeps for itself: certificates of 1000 sites, known bases and studies, a status."""
DATALIST_BYTES = 1 << 26
"""The cases of all sites: 100 000 of them at 600 bytes."""
RESULTS_BYTES = 1 << 29
"""A journal, an evaluation or results of a study: 500 kB from each of 1000 sites."""
TENSORS_BYTES = 1 << 31
"""A network, an adapter or a kept answer: as much as one message may hold."""
SCAN_BYTES = 1 << 31
"""One file of a scan or an annotation; ``data.volume_size`` limits the voxels in it."""
LOG_BYTES = 1 << 40
"""A log or a cache that is read in parts, never as a whole."""
JSON_PARTS, JSON_VALUES = 1 << 23, 1 << 26
"""Lists, mappings and keys in a JSON file, for which Python takes 50 to 200 bytes each however short their text, and
values: 8000 and 60 000 from each of 1000 sites. An evaluation has 42 000 numbers of a site."""
LINE_BYTES = 1 << 20
"""One line of a log that is read line by line."""

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_APPEND = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def open_regular(path: Path, *, most: int) -> BinaryIO:
    """Open a regular file of at most ``most`` bytes for reading; it never waits for a writer.

    Raises:
        UnfitFile: it is no regular file, or larger.
        OSError: it cannot be opened; the error of a folder is IsADirectoryError.
    """
    return _checked(path, _READ, most)


def open_to_append(path: Path, *, or_device: bool = False) -> BinaryIO:
    """Open a regular file for reading and for writing at its end; a new one is for its owner only.

    ``or_device`` is for logs, which nothing reads again: people link them to /dev/null.

    Raises:
        UnfitFile: it is no regular file, and no device where ``or_device`` allows one.
        OSError: it cannot be opened.
    """
    return _checked(path, _APPEND, LOG_BYTES, or_device=or_device)


def append_whole(stream: BinaryIO, content: bytes, *, safely: bool = True) -> None:
    """Write at the end of a file that ``open_to_append`` opened, all of it or nothing; ``safely`` waits for the disk.

    The stream's own buffer is not used: it keeps what a full disk did not take, and writes that when it is closed,
    after the file was cut back.

    Raises:
        OSError: the disk is full; the file is as it was.
    """
    descriptor = stream.fileno()
    size = os.fstat(descriptor).st_size
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(descriptor, left) :]
        if safely:
            os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def check_regular(path: Path, *, most: int) -> None:
    """Check a file that a library opens by its path.

    Raises:
        UnfitFile: it is no regular file, or larger than ``most`` bytes.
        OSError: it cannot be opened.
    """
    open_regular(path, most=most).close()


def check_writers(path: Path) -> None:
    """Check that nobody but the owner may change a file or folder that decides whom this machine trusts.

    Raises:
        UnfitFile: its group or others may write it.
        OSError: there is none.
    """
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        remedy = f"run `chmod go-w {path}`"
        raise UnfitFile(path, f"others may change it (mode {mode:04o}), expected its owner alone; {remedy}")


def check_inside(path: Path, folder: Path) -> None:
    """Check that no link leads a path out of the folder around it, which somebody else may have made.

    The folder may be a link itself. A device is no file of any folder, and is refused where it is opened.

    Raises:
        UnfitFile: the path leads to another place.
    """
    place = os.path.realpath(path)
    inside = Path(place).is_relative_to(os.path.realpath(folder))
    if not inside and not Path(place).is_char_device():
        remedy = "put a copy in the place of the link, or delete the link"
        raise UnfitFile(path, f"leads by a link to {place}, expected a place in {folder}; {remedy}")


def check_links(folder: Path) -> None:
    """Check all links in a folder as ``check_inside``, at any depth; a folder that is missing has none.

    Raises:
        UnfitFile: one leads out of the folder, or a folder in it cannot be listed.
    """
    waiting = [folder] if folder.is_dir() else []
    try:
        while waiting:
            # Another process may work in the folder, and delete parts of it meanwhile.
            with suppress(FileNotFoundError), os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        check_inside(Path(entry.path), folder)
                    elif entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
    except PermissionError as error:
        raise UnfitFile(Path(error.filename), "cannot be listed; see who owns it, and its mode") from error


def read_bytes(path: Path, *, most: int) -> bytes:
    """The content of a regular file of at most ``most`` bytes, even if it grows meanwhile.

    Raises:
        UnfitFile: it is no regular file, or larger.
        OSError: it cannot be read.
    """
    with open_regular(path, most=most) as stream:
        size = min(os.fstat(stream.fileno()).st_size, most)  # it may have grown since it was opened
        content = stream.read(size + 1)
        if len(content) > size:  # it grew, or is a file of the kernel, whose size is 0
            content += stream.read(most - size)
    if len(content) > most:
        raise UnfitFile(path, f"grew beyond {most} bytes while it was read")
    return content


def read_text(path: Path, *, most: int, errors: str = "strict") -> str:
    """The text of a UTF-8 file, with line feeds between its lines; as ``read_bytes``.

    Raises:
        UnicodeDecodeError: it is not UTF-8, with ``errors`` strict.
    """
    text = read_bytes(path, most=most).decode("utf-8", errors)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, *, most: int, strict: bool = False) -> Any:
    """The value in a JSON file; as ``read_bytes``.

    ``strict`` is for files that people write: a key that is given twice, of which Python would take the last, is an
    error, and so is NaN, which JSON does not have.

    Raises:
        ValueError: it is not JSON in UTF-8, has too many parts or values, or is nested too deeply for Python.
    """
    return parse_json(read_bytes(path, most=most), strict=strict)


def parse_json(content: bytes, *, strict: bool = False, **hooks: Any) -> Any:
    """The value of a JSON text, whose values are counted before they are made; ``hooks`` are those of ``json.loads``.

    Raises:
        ValueError: as ``read_json``.
    """
    if strict:
        hooks |= {"object_pairs_hook": _without_repetition, "parse_constant": _no_number}
    if sum(map(content.count, b"[{:")) > JSON_PARTS or content.count(b",") > JSON_VALUES:  # within texts too
        raise ValueError(f"has more than {JSON_PARTS} lists, mappings and keys, or more than {JSON_VALUES} values")
    try:
        return json.loads(content.decode("utf-8-sig"), **hooks)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"key {twice[:40]!r} is given twice")
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _checked(path: Path, flags: int, most: int, *, or_device: bool = False) -> BinaryIO:
    try:
        descriptor = os.open(path, flags, OWNER_ONLY)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket cannot be opened at all
            raise UnfitFile(path, "is a socket or a device, expected a regular file") from error
        raise
    except ValueError as error:  # a null byte, or characters of which no file system has names
        raise UnfitFile(Path(ascii(str(path))), "is no path that a file can have") from error
    try:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(found.st_mode) and not (or_device and stat.S_ISCHR(found.st_mode)):
            kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
            raise UnfitFile(path, f"is {kind}, expected a regular file")
        if found.st_size > most:
            raise UnfitFile(path, f"has {found.st_size} bytes, expected at most {most}")
        return os.fdopen(descriptor, "rb" if flags == _READ else "a+b")
    except BaseException:
        os.close(descriptor)
        raise
