"""A run on disk: journal, checkpoints, base, adapters, results. After a crash at any moment the run can be resumed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sahfl.adapters import AdapterState, digest
from sahfl.adapters.files import load_tensors, save_tensors
from sahfl.atomic import left_overs, write_atomic
from sahfl.config import Study, parse
from sahfl.errors import AdapterError, RunError, StorageError
from sahfl.events import Warned, emit
from sahfl.process import locked

NO_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM}
"""Error numbers of a disk that is full, read-only or failing."""
KEPT_CHECKPOINTS = 2
"""The newest checkpoint, and the previous one in case the newest is damaged."""
Record = dict[str, Any]
BASE_FILE = Path("base") / "base.safetensors"
"""The base network, relative to a run's folder."""


@dataclass(frozen=True)
class Checkpoint:
    """The global state after a committed round, with that round's journal line."""

    round: int
    state: AdapterState
    record: Record


class RunFolder:
    """The folder of one run.

    ``study.json`` settings, ``journal.jsonl`` one line per event, ``state/`` checkpoints, ``base/`` the pretrained
    network, ``adapters/`` the results of fine-tuning, ``evaluation/`` sums, ``sites/`` one folder per simulated site,
    ``logs/`` one file per site, ``results.json`` and ``report.html``.

    A round is committed by one rename. Its checkpoint also contains the journal line, which is added to the journal if
    it is missing after a crash, so the two always agree. A hash of tensors, line and cell is checked on loading.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    # ------------------------------------------------------------------------------------------- opening

    @classmethod
    def create(cls, path: Path, study: Study) -> RunFolder:
        """Start a run in an empty or new folder.

        Raises:
            RunError: the folder is not empty, or cannot be written.
        """
        if path.exists() and (not path.is_dir() or set(path.iterdir()) - set(left_overs(path / "study.json"))):
            hint = f", or go on with --resume {path}" if (path / "study.json").is_file() else ""
            raise RunError(f"{path}: is not empty; name another folder with --out{hint}")
        try:
            write_atomic(path / "study.json", study.model_dump_json(indent=1))
        except OSError as error:
            raise RunError(f"{path}: cannot be written ({error.strerror}); name another folder with --out") from error
        return cls(path)

    @classmethod
    def reopen(cls, path: Path) -> RunFolder:
        """Open a run to resume it.

        Raises:
            RunError: the folder holds no run.
        """
        if not (path / "study.json").is_file():
            raise RunError(f"{path}: holds no run to resume (study.json is missing)")
        folder = cls(path)
        folder.study()
        return folder

    def study(self) -> Study:
        """The run's settings, with the defaults of its start."""
        path = self.path / "study.json"
        try:
            return parse(Study, json.loads(path.read_text(encoding="utf-8")), where=str(path))
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: cannot be read as settings") from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the run against other processes; the lock ends with this process, even if it is killed.

        Raises:
            RunError: another process works on this run.
        """
        busy = RunError(f"{self.path}: another process works on this run; wait for it, or stop it")
        with locked(self.path / "run.lock", busy=busy):
            yield

    # ------------------------------------------------------------------------------------------- journal

    def note(self, record: Record) -> None:
        """Append a line to the journal and flush it to the disk; a line that a crash left incomplete is ended first.

        Raises:
            StorageError: the disk is full or the line cannot be written; the line may then be incomplete.
        """
        path = self.path / "journal.jsonl"
        with storing(path), path.open("ab+") as stream:
            stream.seek(max(0, stream.tell() - 1))
            torn = stream.read() not in (b"", b"\n")
            stream.write(b"\n" * torn + json.dumps(record, sort_keys=True).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    def journal(self) -> list[Record]:
        """All readable lines; ``unreadable_lines`` counts the others."""
        return self._read_journal()[0]

    def unreadable_lines(self) -> int:
        """Number of journal lines that contain no event: damaged, or incomplete after a crash."""
        return self._read_journal()[1]

    def _read_journal(self) -> tuple[list[Record], int]:
        path = self.path / "journal.jsonl"
        records, unreadable = [], 0
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else ():
            try:
                record = json.loads(line or "null")
            except (ValueError, RecursionError):
                record = None
            if isinstance(record, dict) and isinstance(record.get("event"), str):
                records.append(record)
            else:
                unreadable += bool(line.strip())
        return records, unreadable

    # ------------------------------------------------------------------------------------------- checkpoints

    def commit(self, cell: str, checkpoint: Checkpoint) -> None:
        """Commit a round: write the checkpoint, add its line to the journal, then delete old checkpoints.

        Raises:
            StorageError: the disk is full; the previous checkpoints are unchanged.
        """
        record = checkpoint.record | {"sha256": digest(checkpoint.state)}
        path = self._checkpoint(cell, checkpoint.round)
        with storing(path):
            save_tensors(path, checkpoint.state, {"cell": cell, "record": record, "seal": _seal(cell, record)})
        self.note(record)
        for old in self._checkpoints(cell)[:-KEPT_CHECKPOINTS]:
            old.unlink()

    def last_checkpoint(self, cell: str) -> Checkpoint | None:
        """The newest intact checkpoint of a cell; damaged ones are skipped, with a warning and a journal line."""
        for path in reversed(self._checkpoints(cell)):
            try:
                state, record = self._load(cell, path)
            except AdapterError:
                self.note({"event": "damaged_checkpoint", "cell": cell, "file": path.name})
                emit(Warned(f"{cell}: {path.name} is damaged; the run goes on from the checkpoint before"))
                path.unlink()
                continue
            if record not in self.journal():
                self.note(record)
            return Checkpoint(record["round"], state, record)
        return None

    def has_begun(self, cell: str, *, trained: bool) -> bool:
        """True if the folder has work on a cell: a committed round, or an evaluation for a cell without training."""
        if trained:
            return bool(self._checkpoints(cell))
        return (self.path / _evaluation(cell)).exists()

    def _load(self, cell: str, path: Path) -> tuple[AdapterState, Record]:
        """Tensors and record of a checkpoint; AdapterError if one of them is not what was committed for this cell."""
        tensors, note = load_tensors(path)
        record = note.get("record")
        if not isinstance(record, dict) or note.get("cell") != cell or note.get("seal") != _seal(cell, record):
            raise AdapterError(f"{path}: its record does not match its hash")
        if digest(tensors) != record.get("sha256") or self._checkpoint(cell, record["round"]) != path:
            raise AdapterError(f"{path}: content does not match its hash")
        return tensors, record

    def _checkpoint(self, cell: str, round_: int) -> Path:
        return self.path / "state" / cell / f"round-{round_:05d}.safetensors"

    def _checkpoints(self, cell: str) -> list[Path]:
        return sorted((self.path / "state" / cell).glob("round-*.safetensors"))

    # ------------------------------------------------------------------------------------------- results

    def adapter(self, cell: str) -> Path:
        """Folder of a cell's adapter."""
        return self.path / "adapters" / cell

    def evaluation(self, cell: str, part: str | None = None) -> Record:
        """Results of a cell's evaluation: ``sums`` and ``missing``, each by site; both empty before the evaluation.

        ``part`` names what was evaluated of a method with a part at each site (``task.Part``).
        """
        return self.read_json(_evaluation(cell, part)) or {"sums": {}, "missing": {}}

    def write_evaluation(self, cell: str, evaluation: Record, part: str | None = None) -> None:
        """Write the results of a cell's evaluation on one line, because it has tens of thousands of numbers a site.

        Raises:
            StorageError: as in ``write_json``.
        """
        self._write(
            _evaluation(cell, part), json.dumps(evaluation, sort_keys=True, allow_nan=False, separators=(",", ":"))
        )

    def rates(self, method: str) -> dict[int, float]:
        """The learning rate that was chosen for a method, by its id, in each fold."""
        chosen = [line for line in self.journal() if line["event"] == "rate_chosen" and line["method"] == method]
        return {line["fold"]: line["rate"] for line in chosen}

    def reused(self) -> set[str]:
        """Cells whose results came from an earlier run."""
        return {line["cell"] for line in self.journal() if line["event"] == "reused"}

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file of the run, atomically.

        Raises:
            StorageError: the disk is full; an older file of this name is unchanged.
        """
        self._write(name, json.dumps(content, indent=1, sort_keys=True, allow_nan=False))

    def _write(self, name: str, text: str) -> None:
        with storing(self.path / name):
            write_atomic(self.path / name, text + "\n")

    def results(self) -> Record:
        """The results of a finished run (``results.json``).

        Raises:
            RunError: the run is not finished, or the file is damaged.
        """
        found = self.read_json("results.json")
        if found is None:
            how = f"sahfl simulate --resume {self.path}, or the same sahfl study; a server goes on by itself"
            raise RunError(f"{self.path}: has no results.json; the run is not finished ({how})")
        if not isinstance(found, dict):
            raise RunError(f"{self.path}: results.json is not a mapping; delete it to have it made again")
        return found

    def read_json(self, name: str) -> Any | None:
        """Read a JSON file of the run; None if it does not exist.

        Raises:
            RunError: the file is damaged.
        """
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: is damaged; delete it to have it made again") from error


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


def base_file(site: str | None = None) -> Path:
    """File of the base network of all pretraining sites, or of one site's own, relative to a run's folder."""
    return BASE_FILE if site is None else BASE_FILE.with_name(f"base-of-{site}.safetensors")


def _evaluation(cell: str, part: str | None = None) -> str:
    return f"evaluation/{cell}.json" if part is None else f"evaluation/{cell}-{part}.json"


def _seal(cell: str, record: Record) -> str:
    """Hash of a checkpoint's cell and record; it covers the tensors too, because the record contains their hash."""
    return hashlib.sha256(json.dumps([cell, record], sort_keys=True).encode()).hexdigest()
