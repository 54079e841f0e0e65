"""Writing into a run's folder: the error of a full or failing disk, with what to do about it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sahfl.errors import StorageError

NO_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM}
"""Error numbers of a disk that is full, read-only or failing."""


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn the operating system's error of a failed write into a StorageError with a remedy."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_WRITING:
            raise
        hint = "what was committed is whole; make room, then go on"
        raise StorageError(f"{path}: cannot be written ({error.strerror}); {hint}") from error
