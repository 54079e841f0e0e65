"""A run on disk: journal, checkpoints, base, adapters, results. After a crash at any moment the run can be resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sahfl import __version__, regular_files
from sahfl.adapters import AdapterState, digest
from sahfl.adapters.files import load_tensors, save_tensors
from sahfl.atomic import left_overs, write_atomic
from sahfl.config import Study, parse
from sahfl.errors import AdapterError, ConfigError, RunError, VersionsDiffer
from sahfl.events import Warned, emit
from sahfl.process import locked
from sahfl.regular_files import LIST_BYTES, RESULTS_BYTES, check_links, open_to_append, read_json, read_text
from sahfl.run.journal_line import is_event, read_line
from sahfl.run.storing import storing

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
    """The folder of one run: ``study.json`` settings, ``journal.jsonl`` one line per event, ``state/`` checkpoints.

    ``base/`` has the pretrained network, ``adapters/`` the results of fine-tuning, ``evaluation/`` sums, ``sites/`` one
    folder per simulated site, ``logs/`` one file per site; beside them lie ``results.json`` and ``report.html``.

    A round is committed by one rename. Its checkpoint also contains the journal line, which is added to the journal if
    it is missing after a crash, so the two always agree. A hash of tensors, line and cell is checked on loading.

    A link that leads out of the folder is refused (UnfitFile), except a log's to a device; the folder may be a link.
    """

    def __init__(self, path: Path) -> None:
        check_links(path)
        self.path = path

    # ------------------------------------------------------------------------------------------- opening

    @classmethod
    def create(cls, path: Path, study: Study) -> RunFolder:
        """Start a run in an empty or new folder.

        Raises:
            RunError: the folder is not empty, or cannot be written.
        """
        if path.exists() and (not path.is_dir() or set(path.iterdir()) - set(left_overs(path / "study.json"))):
            hint = f", or go on with sahfl simulate --resume {path}" if (path / "study.json").is_file() else ""
            raise RunError(f"{path}: is not empty; name another folder (out){hint}")
        try:
            write_atomic(path / "study.json", study.model_dump_json(indent=1))
        except OSError as error:
            raise RunError(f"{path}: cannot be written ({error.strerror}); name another folder (out)") from error
        return cls(path)

    @classmethod
    def reopen(cls, path: Path) -> RunFolder:
        """Open a run to resume it.

        Raises:
            RunError: the folder holds no run.
        """
        if not (path / "study.json").is_file():
            raise RunError(f"{path}: holds no run to resume (study.json is missing)")
        (folder := cls(path)).study()
        return folder

    def study(self) -> Study:
        """The run's settings, with the defaults of its start.

        Raises:
            VersionsDiffer: another version of sahfl worked on the run, and has other settings.
        """
        path = self.path / "study.json"
        try:
            return parse(Study, read_json(path, most=LIST_BYTES), where=str(path))
        except ConfigError:
            self.require_own_version()
            raise
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: cannot be read as settings") from error

    def require_own_version(self) -> None:
        """Refuse a run on which another version of sahfl worked last.

        Raises:
            VersionsDiffer: names both versions.
        """
        starts = (line for line in self.journal() if line["event"] in ("started", "resumed"))
        versions = [line["sahfl"] for line in starts if "sahfl" in line]
        if versions and versions[-1] != __version__:
            hint = "install that version to go on, or archive the run (sahfl study archive) and run its study anew"
            raise VersionsDiffer(f"{self.path}: ran with sahfl {versions[-1]}, this is sahfl {__version__}; {hint}")

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
            StorageError: the disk is full or the line cannot be written; the journal is as it was.
        """
        path = self.path / "journal.jsonl"
        with storing(path), open_to_append(path) as stream:
            stream.seek(max(0, stream.tell() - 1))
            torn = stream.read() not in (b"", b"\n")
            regular_files.append_whole(stream, b"\n" * torn + json.dumps(record, sort_keys=True).encode() + b"\n")

    def journal(self) -> list[Record]:
        """All readable lines; ``unreadable_lines`` counts the others."""
        return self._read_journal()[0]

    def unreadable_lines(self) -> int:
        """Number of journal lines that contain no event: damaged, or incomplete after a crash."""
        return self._read_journal()[1]

    def _read_journal(self) -> tuple[list[Record], int]:
        path = self.path / "journal.jsonl"
        records, unreadable = [], 0
        for line in read_text(path, most=RESULTS_BYTES, errors="replace").split("\n") if path.exists() else ():
            if (record := read_line(line)) is not None:
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
        if not is_event(record) or "round" not in record:
            raise AdapterError(f"{path}: its record is not the line of a round")
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

    def evaluation(self, cell: str, part: str | None = None, after_round: int = 0) -> Record:
        """Results of a cell's evaluation: ``sums`` and ``missing``, each by site; both empty before the evaluation.

        ``part`` names what was evaluated of a method with a part at each site (``task.Part``), ``after_round`` one of
        the study's ``evaluated_rounds``; 0 is the evaluation after the training.
        """
        name = _evaluation(cell, part, after_round)
        found = self.read_json(name) or {"sums": {}, "missing": {}}
        if not isinstance(found, dict) or not all(isinstance(found.get(key), dict) for key in ("sums", "missing")):
            raise RunError(f"{self.path / name}: is no evaluation; delete it to have it made again")
        return found

    def write_evaluation(self, cell: str, evaluation: Record, part: str | None = None, after_round: int = 0) -> None:
        """Write the results of a cell's evaluation on one line, because it has tens of thousands of numbers a site.

        Errors as of ``write_json``.
        """
        text = json.dumps(evaluation, sort_keys=True, allow_nan=False, separators=(",", ":"))
        self._write(_evaluation(cell, part, after_round), text)

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
            how = f"sahfl simulate --resume {self.path}, or the same call again; a server goes on by itself"
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
            return read_json(path, most=RESULTS_BYTES) if path.exists() else None
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: is damaged; delete it to have it made again") from error


def base_file(site: str | None = None) -> Path:
    """File of the base network of all pretraining sites, or of one site's own, relative to a run's folder."""
    return BASE_FILE if site is None else BASE_FILE.with_name(f"base-of-{site}.safetensors")


def _evaluation(cell: str, part: str | None = None, after_round: int = 0) -> str:
    endings = (f"-{part}" if part else "", f"-round-{after_round}" if after_round else "")
    return f"evaluation/{cell}{''.join(endings)}.json"


def _seal(cell: str, record: Record) -> str:
    """Hash of a checkpoint's cell and record; it covers the tensors too, because the record contains their hash."""
    return hashlib.sha256(json.dumps([cell, record], sort_keys=True).encode()).hexdigest()
