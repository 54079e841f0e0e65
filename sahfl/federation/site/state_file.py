"""Reading a JSON file of a site's folder on which its decisions rest."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from sahfl.errors import SiteStateLost
from sahfl.federation.site.audit import RESTORE
from sahfl.regular_files import LIST_BYTES, read_bytes

ContentT = TypeVar("ContentT")


def read_state(path: Path, form: TypeAdapter[ContentT], *, nothing: ContentT) -> ContentT:
    """The content of a file; ``nothing`` before it was written first.

    Raises:
        SiteStateLost: the file cannot be read, or is damaged.
    """
    try:
        return form.validate_json(read_bytes(path, most=LIST_BYTES))
    except FileNotFoundError:
        return nothing
    except (OSError, ValidationError) as error:
        raise SiteStateLost(f"{path}: cannot be read; {RESTORE}") from error
