"""The folders that the authority writes: each is completed under a temporary name, then renamed to its final name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sahfl.atomic import flush_folder, make_folder, write_atomic
from sahfl.errors import StorageError, TrustError
from sahfl.process import locked
from sahfl.trust.keys import write_private


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Lock a folder against other commands, and create it if it is absent.

    Raises:
        TrustError: another command uses it.
        StorageError: something in it cannot be written.
    """
    try:
        make_folder(folder)
        busy = TrustError(f"{folder}: another sahfl is working in it; wait until it is done")
        with locked(folder, busy=busy):
            yield
    except OSError as error:
        where = error.filename or folder
        raise StorageError(
            f"{where}: cannot be written ({error.strerror}); no key is lost: run the same command again afterwards"
        ) from error


def aside(final: Path) -> Path:
    """Temporary name of a folder while it is made; no site's name begins with a dot."""
    return final.with_name(f".{final.name}.new")


def make_aside(final: Path, files: Mapping[str, bytes | str]) -> Path:
    """Make a folder under its temporary name; only the owner can read private keys (``*.key``)."""
    folder = aside(final)
    make_folder(folder, new=True)
    for name, content in files.items():
        if name.endswith(".key"):
            write_private(folder / name, content if isinstance(content, bytes) else content.encode())
        else:
            write_atomic(folder / name, content)
    return folder


def put_in_place(final: Path) -> None:
    """Rename a finished folder to its final name; the previous one is kept as ``<name>.previous``."""
    if final.exists():
        final.rename(unused(final))
    aside(final).rename(final)
    flush_folder(final.parent)


def put_pair_in_place(final: Path, key: str, certificate: str) -> None:
    """Replace a key and its certificate in a folder that may be in use; the old ones are kept as ``*.previous``.

    If a call is interrupted between the two files, the next call finishes the replacement.
    """
    for name in (key, certificate):
        if (aside(final) / name).exists():
            if (final / name).exists():
                os.link(final / name, unused(final / name))
            (aside(final) / name).rename(final / name)
    flush_folder(final)
    discard(final)


def discard(final: Path) -> None:
    """Remove a folder that was never renamed to its final name."""
    if aside(final).exists():
        shutil.rmtree(aside(final))


def unused(path: Path) -> Path:
    """An unused name for a file or folder that is replaced; nothing is ever overwritten."""
    names = [f"{path.name}.previous", *(f"{path.name}.previous-{n}" for n in range(2, 1000))]
    return next(free for name in names if not (free := path.with_name(name)).exists())
