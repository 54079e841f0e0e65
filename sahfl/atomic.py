"""Writing files so that they are complete or absent."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sahfl.errors import StorageError
from sahfl.regular_files import OWNER_ONLY

OWNER_ONLY_FOLDER = 0o700
"""Mode of folders that nobody but their owner lists or enters."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the operating system in the block, which writes a file, into a StorageError with a remedy."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror}); make room") from error


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file so that a crash at any moment leaves the old file or the new one, never a part.

    The content goes to ``<name>.<process>.tmp`` beside the file, is flushed to the disk, and is renamed; the folder is
    flushed too, so that the rename survives a power cut. Missing folders are made. If several processes write the file,
    the last one wins. The next write of the file removes what a crash left.

    Text is written as UTF-8. Nobody but the owner can read or write the file, whatever the umask is.

    Raises:
        OSError: the disk is full or the folder is not writable; the old file is unchanged.
    """
    make_folder(path.parent)
    for old in left_overs(path):  # an old one could have other permissions, or be a link
        old.unlink(missing_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            os.fchmod(stream.fileno(), OWNER_ONLY)
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def make_folder(folder: Path, *, new: bool = False) -> None:
    """Make a folder that is missing, and those above it, for nobody but their owner, whatever the umask is.

    Raises:
        OSError: the folder cannot be made, is a file, or with ``new`` exists already.
    """
    for missing in reversed([above for above in folder.parents if not above.exists()]):
        missing.mkdir(mode=OWNER_ONLY_FOLDER, exist_ok=True)
    folder.mkdir(mode=OWNER_ONLY_FOLDER, exist_ok=not new)


def left_overs(path: Path) -> list[Path]:
    """Unfinished files of ``write_atomic`` whose process has ended, or is this one."""
    form = re.compile(re.escape(path.name) + r"\.([1-9][0-9]{0,6})\.tmp")
    found = [(item, named[1]) for item in path.parent.glob("*.tmp") if (named := form.fullmatch(item.name))]
    return [item for item, process in found if int(process) == os.getpid() or not _is_alive(int(process))]


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # the process belongs to another user
        pass
    return True


def flush_folder(folder: Path) -> None:
    """Flush a folder to the disk, so that renames in it survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
