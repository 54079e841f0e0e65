"""The queue of studies in the server's folder: the files that wait, and those that ended."""

from __future__ import annotations

from pathlib import Path

from sahfl.atomic import write_atomic
from sahfl.config import POOLS, Study, load_study
from sahfl.errors import ConfigError, RunError


class Studies:
    """Study files below a server's folder; a file's name without ``.yaml`` is the study's name and that of its run.

    ``queue/`` holds the files that wait, in the order of their names; ``runs/<name>`` is the run folder of each;
    ``done/`` and ``failed/`` hold the files of studies that ended, a failed one with its reason in ``<name>.txt``;
    ``cells/`` holds the finished cells (``CellStore``), which later studies share.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._unusable: set[Path] = set()

    def submit(self, file: Path) -> Path:
        """Check a study file and put it into the queue by its name; those of an earlier attempt leave ``failed/``.

        Raises:
            ConfigError: the file has problems, or names the sites' data.
            RunError: a study of this name waits already, or ran with other settings.
        """
        study = read_deployed(file)
        target = self.folder / "queue" / f"{study.name}.yaml"
        if target.exists():
            raise RunError(f"{target}: waits already; take it out of the queue, or change name in {file}")
        self.check_run(study.name, study)
        for ending in ("yaml", "txt"):  # who watches this attempt must not see the outcome of an earlier one
            (self.folder / "failed" / f"{study.name}.{ending}").unlink(missing_ok=True)
        write_atomic(target, study.model_dump_json(indent=1) + "\n")  # JSON is YAML; paths in it are absolute
        return target

    def check_run(self, name: str, study: Study) -> None:
        """Compare a study with an earlier run of its name.

        Raises:
            RunError: that run had other settings.
        """
        from sahfl.run.folder import RunFolder

        path = self.run_of(name)
        if (path / "study.json").is_file() and RunFolder.reopen(path).study() != study:
            raise RunError(f"{path}: ran with other settings; give the changed study another name")

    def waiting(self) -> list[Path]:
        """Files of the queue: interrupted studies first, then in the order of their names."""
        files = [path for path in (self.folder / "queue").glob("*.yaml") if path not in self._unusable]
        return sorted(files, key=lambda path: (not (self.run_of(path.stem) / "journal.jsonl").exists(), path))

    @property
    def cells(self) -> Path:
        """Folder of the finished cells."""
        return self.folder / "cells"

    def run_of(self, name: str) -> Path:
        """Run folder of a study."""
        return self.folder / "runs" / name

    def end(self, file: Path, reason: str = "") -> None:
        """Move a file out of the queue: to ``done``, or with a reason to ``failed``."""
        target = self.folder / ("failed" if reason else "done") / file.name
        if reason:
            write_atomic(target.with_suffix(".txt"), reason + "\n")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            file.replace(target)
        except FileNotFoundError:  # the file was taken out of the queue meanwhile
            self._unusable.add(file)


def read_deployed(file: Path) -> Study:
    """Read the file of a study that a server can run.

    Raises:
        ConfigError: it has problems, names the sites' data, or has hostile sites or pooled training.
    """
    study = load_study(file)
    if study.data.source != "sites":
        raise ConfigError(
            f"{file}: data.source is {study.data.source!r}, expected 'sites': each site's own file names its scans"
        )
    if study.hostile:
        raise ConfigError(f"{file}: has hostile sites, which only a simulation has; take out the section 'hostile'")
    if study.pools:
        text = "trains on all sites' patients in one place, which only a simulation can; take out trained_at"
        raise ConfigError(f"{file}: {text}: {', '.join(POOLS)}")
    return study
