"""The queue of studies in the server's folder: the files that wait, and those that ended."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from sahfl.atomic import make_folder, write_atomic
from sahfl.config import POOLS, Study, load_study
from sahfl.errors import ConfigError, RunError
from sahfl.process import now
from sahfl.settings_file import about_setting
from sahfl.trust.records import SiteList, read_note


class Studies:
    """Study files below a server's folder; a file's name without ``.yaml`` is the study's name and that of its run.

    ``queue/`` holds the files that wait, in the order of their names; ``runs/<name>`` is the run folder of each;
    ``done/`` and ``failed/`` hold the files of studies that ended, a failed one with its reason in ``<name>.txt``;
    ``archive/`` holds studies that nobody needs in the lists any more, each with all of this in a folder of its own;
    ``cells/`` holds the finished cells (``CellStore``), which later studies share.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._unusable: set[Path] = set()

    def submit(self, file: Path, *, kit: Path | None = None) -> Path:
        """Check a study file and put it into the queue by its name; those of an earlier attempt leave ``failed/``.

        ``kit`` is the server's; without it the sites of the study are not compared with its list.

        Raises:
            ConfigError: the file has problems, names the sites' data, or names sites that the list does not have, or
                has as revoked; a study that has begun goes on without revoked sites.
            RunError: a study of this name waits already, or ran with other settings.
            TrustError: the list cannot be read.
        """
        study = read_deployed(file)
        target = self.folder / "queue" / f"{study.name}.yaml"
        if target.exists():
            raise RunError(f"{target}: waits already; take it out of the queue, or change name in {file}")
        self.check_run(study.name, study)
        if kit is not None:
            self._check_sites(study, kit)
        for ending in ("yaml", "txt"):  # who watches this attempt must not see the outcome of an earlier one
            (self.folder / "failed" / f"{study.name}.{ending}").unlink(missing_ok=True)
        write_atomic(target, study.model_dump_json(indent=1) + "\n")  # JSON is YAML; paths in it are absolute
        return target

    def _check_sites(self, study: Study, kit: Path) -> None:
        with about_setting("kit"):
            listed = read_note(SiteList, kit / "sites.json").sites
        check_registered(study, listed)
        if self.is_fresh(study.name):
            check_not_revoked(study, {site for site, entry in listed.items() if entry.state == "revoked"})

    def is_fresh(self, name: str) -> bool:
        """Whether a study has not begun."""
        return not (self.run_of(name) / "journal.jsonl").exists()

    def check_run(self, name: str, study: Study) -> None:
        """Compare a study with an earlier run of its name.

        Raises:
            RunError: that run had other settings.
            VersionsDiffer: that run is of another version of sahfl.
        """
        from sahfl.run.folder import RunFolder

        path = self.run_of(name)
        if not (path / "study.json").is_file():
            return
        folder = RunFolder.reopen(path)
        folder.require_own_version()
        if folder.study() != study:
            raise RunError(f"{path}: ran with other settings; give the changed study another name")

    def waiting(self) -> list[Path]:
        """Files of the queue: interrupted studies first, then in the order of their names."""
        files = [path for path in (self.folder / "queue").glob("*.yaml") if path not in self._unusable]
        return sorted(files, key=lambda path: (self.is_fresh(path.stem), path))

    @property
    def cells(self) -> Path:
        """Folder of the finished cells."""
        return self.folder / "cells"

    def run_of(self, name: str) -> Path:
        """Run folder of a study."""
        return self.folder / "runs" / name

    def cancel(self, name: str) -> Path:
        """Take a study out of the queue; a server that runs it stops between two messages, and keeps what is committed.

        Returns:
            The study's file, in ``failed/``; ``submit`` puts it back, and the run goes on.

        Raises:
            RunError: no study of this name waits or runs.
        """
        file = self.folder / "queue" / f"{name}.yaml"
        if not _is_name(name) or not file.exists():
            raise RunError(f"study {name}: is not in the queue (in it: {self._listed([self.folder / 'queue'])})")
        self.end(file, "cancelled; submit it again to go on")
        return self.folder / "failed" / file.name

    def archive(self, name: str) -> Path:
        """Move a study that ended, and its run, into a folder of their own below ``archive/``; the name is free again.

        Raises:
            RunError: the study waits or runs, or there is none of this name.
        """
        if _is_name(name) and (self.folder / "queue" / f"{name}.yaml").exists():
            raise RunError(f"study {name}: waits or runs; cancel it first")
        ended = [self.folder / state / f"{name}.{ending}" for state in ("done", "failed") for ending in ("yaml", "txt")]
        parts = [path for path in (self.run_of(name), *ended) if path.exists()]
        if not parts or not _is_name(name):
            known = self._listed([self.folder / state for state in ("runs", "done", "failed")])
            raise RunError(f"study {name}: there is none (ended: {known})")
        target = self.folder / "archive" / f"{name}-{now():%Y%m%d-%H%M%S}"
        make_folder(target, new=True)
        for path in parts:
            path.rename(target / ("run" if path == self.run_of(name) else f"{path.parent.name}-{path.name}"))
        return target

    def _listed(self, folders: Iterable[Path]) -> str:
        names = {path.stem for folder in folders if folder.is_dir() for path in folder.iterdir()}
        return ", ".join(sorted(names)) or "none"

    def end(self, file: Path, reason: str = "") -> None:
        """Move a file out of the queue: to ``done``, or with a reason to ``failed``."""
        target = self.folder / ("failed" if reason else "done") / file.name
        if reason:
            write_atomic(target.with_suffix(".txt"), reason + "\n")
        make_folder(target.parent)
        try:
            file.replace(target)
        except FileNotFoundError:  # the file was taken out of the queue meanwhile
            self._unusable.add(file)


def _is_name(name: str) -> bool:
    """Whether it is the name of one file: ``.`` and ``../x`` would lead to the folders of all studies."""
    return name not in ("", "..") and Path(name).name == name


def check_registered(study: Study, registered: Collection[str]) -> None:
    """Refuse a study with sites that are not registered at the server; ConfigError names them."""
    if strangers := [site for site in study.sites if site not in registered]:
        raise ConfigError(
            f"study {study.name}: names {', '.join(strangers)}, expected registered sites (there are: "
            f"{', '.join(registered) or 'none'}); provision them, or take them out of the study"
        )


def check_not_revoked(study: Study, revoked: Collection[str]) -> None:
    """Refuse a study with revoked sites; ConfigError names them."""
    if named := [site for site in study.sites if site in revoked]:
        raise ConfigError(
            f"study {study.name}: names {', '.join(named)}, revoked; expected sites that may take part. Take them "
            "out of the study, or give them new kits with `sahfl renew`; then submit the study again"
        )


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
