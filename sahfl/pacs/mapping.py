"""Who is who: a folder beside the fetched scans that only its owner reads, and that never leaves the hospital."""

from __future__ import annotations

import csv
import io
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sahfl.atomic import make_folder, write_atomic
from sahfl.errors import PacsError
from sahfl.pacs.orders import Order
from sahfl.regular_files import LIST_BYTES, TRUST_BYTES, read_bytes, read_json

SECRET, TABLE = "secret", "mapping.csv"
COLUMNS = ("pseudonym", "patient", "study", "accession", "state", "series", "images", "reason")


@dataclass
class Known:
    """What is known of one fetched study."""

    pseudonym: str
    patient: str
    study: str
    """StudyInstanceUID in the archive."""
    accession: str = ""
    uids: dict[str, str] = field(default_factory=dict)
    """New UID to old one."""
    series: int = 0
    images: int = 0
    finished: bool = False
    pushed: list[str] = field(default_factory=list)
    """SOPInstanceUIDs of segmentations that were pushed, so that none is pushed twice."""

    def __repr__(self) -> str:
        return f"Known({self.pseudonym!r})"


class Mapping:
    """The mapping of a folder of fetched scans: ``<folder>-mapping`` beside it."""

    def __init__(self, scans: Path) -> None:
        whole = Path(os.path.abspath(scans))  # "." has no name
        self.folder = whole.with_name(f"{whole.name}-mapping")

    def secret(self) -> bytes:
        """The key of the UIDs; made once.

        Raises:
            PacsError: the file is damaged.
        """
        path = self.folder / SECRET
        if not path.exists():
            make_folder(self.folder)
            write_atomic(path, secrets.token_hex(32) + "\n")
        try:
            found = bytes.fromhex(read_bytes(path, most=TRUST_BYTES).decode().strip())
        except ValueError as error:
            raise PacsError(f"{path}: is damaged; restore it from a backup, or fetch into another folder") from error
        if len(found) != 32:
            raise PacsError(f"{path}: is damaged; restore it from a backup, or fetch into another folder")
        return found

    def read(self, pseudonym: str) -> Known | None:
        """What is known of a study; None if it was never begun.

        Raises:
            PacsError: its file is damaged.
        """
        path = self._file(pseudonym)
        if not path.exists():
            return None
        try:
            return Known(**read_json(path, most=LIST_BYTES))
        except (OSError, ValueError, TypeError) as error:
            raise PacsError(f"{path}: is damaged; restore it from a backup, or fetch the study anew") from error

    def write(self, known: Known) -> None:
        """Write what is known of a study; nobody but the owner can read it."""
        write_atomic(self._file(known.pseudonym), json.dumps(asdict(known)) + "\n")

    def write_table(self, orders: Sequence[Order], all_known: dict[str, Known], reasons: dict[str, str]) -> None:
        """Write ``mapping.csv`` of all studies, for people; ``reasons`` has why a study was not fetched."""
        stream = io.StringIO()
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for order in orders:
            known, reason = all_known.get(order.pseudonym), reasons.get(order.pseudonym, "")
            row = {"pseudonym": order.pseudonym, "patient": order.patient, "reason": reason}
            row |= {"study": known.study if known else order.study, "accession": order.accession}
            row["state"] = "refused" if reason else "fetched" if known and known.finished else "waiting"
            row |= {"series": str(known.series), "images": str(known.images)} if known else {}
            writer.writerow(row)
        write_atomic(self.folder / TABLE, stream.getvalue())

    def _file(self, pseudonym: str) -> Path:
        return self.folder / f"{pseudonym}.json"
