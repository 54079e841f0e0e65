"""Studies on this machine, from Python and for the commands: from settings to the folder of a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

from sahfl.config import Study, load_study, parse, with_base_hash
from sahfl.errors import ConfigError, RunError
from sahfl.finished_run import Run, load
from sahfl.run.folder import RunFolder
from sahfl.settings_file import naming_lines


def simulate(
    study: str | Path | Mapping[str, Any] | Study,
    *,
    out: str | Path | None = None,
    workers: int | None = None,
    lanes: int | None = None,
    cells: str | Path | None = None,
    progress: bool = True,
) -> Run:
    """Run a study as a simulated federation on this machine, like ``sahfl study``.

    Call it again to continue after an interruption; a finished run is opened as it is. The sites work in processes of
    their own, which need no ``if __name__ == "__main__"`` in a script.

    Args:
        study: a study file (YAML), or its settings as a mapping; a relative path in a mapping starts at the current
            folder.
        out: folder of the run; by default ``runs/NAME-HASH``, with the settings' hash.
        workers: number of worker processes; by default one per site, two per core at most. Does not change the result.
        lanes: number of cells in work at a time; by default one more than workers. Does not change the result.
        cells: folder of finished cells that runs share, such as ``runs/cells``; by default every cell is computed, so
            that ``Run.cases`` has the cases of all.
        progress: whether the progress is shown on standard error.

    Raises:
        ConfigError: the study has problems (the message lists all), or its scans lie at hospitals.
        DataError: there are no scans at a path of the study.
        RunError: the folder holds another run, or another process works on it.
        RunFailed: fewer sites answered than the quorum requires.
        StorageError: the run cannot be written.
        LosingSite: the run is complete, and a site does not gain what the study requires.
        KeyboardInterrupt: the run was interrupted; the same call continues it.
    """
    for name, value in (("workers", workers), ("lanes", lanes)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}: got {value}, expected 1 or more")
    with naming_lines(Path(study) if isinstance(study, str | Path) else "study"):
        folder = open_run(_settings(study), None if out is None else Path(out))
        if is_finished(folder):
            check_gain(folder)
        else:
            kept = None if cells is None else Path(cells)
            run_study(folder, workers=workers, lanes=lanes, cells=kept, progress=progress)
    return load(folder.path)


def open_run(study: Study, path: Path | None = None) -> RunFolder:
    """The folder of a study's run on this machine, by default ``runs/NAME-HASH``: a new one, or the one of this study.

    Raises:
        ConfigError, DataError: the study's scans are not on this machine; nothing is written then.
        RunError: the folder holds another study.
    """
    path = path or Path("runs") / f"{study.name}-{study.fingerprint()[:8]}"
    if (path / "study.json").exists():
        folder = RunFolder.reopen(path)
        if folder.study() != study:
            raise RunError(f"{path}: holds another study, or this one on data elsewhere; name another folder (out)")
        return folder
    return new_run(study, path)


def new_run(study: Study, path: Path) -> RunFolder:
    """A new run of a study whose scans are on this machine; errors as of ``open_run``."""
    study.data.for_sites(study.sites, study=study.name, seed=study.seed)
    return RunFolder.create(path, study)


def is_finished(folder: RunFolder) -> bool:
    """Whether a run has its results and its report."""
    return all((folder.path / name).exists() for name in ("results.json", "report.html"))


def check_gain(folder: RunFolder) -> None:
    """Check a finished run against its study's ``require_gain``; LosingSite if a site gains less."""
    from sahfl.results.gains import check_gains

    check_gains(folder.study(), folder.results().get("gains", ()))


def run_study(
    folder: RunFolder, *, workers: int | None, lanes: int | None, cells: Path | None, progress: bool = True
) -> Path:
    """Run a study on this machine from its last committed state to its report, and return the report's path.

    Errors are those of ``simulation.simulate``.
    """
    from sahfl.console import showing
    from sahfl.simulation.simulate import simulate as run_to_end

    # In a notebook, plain lines: rich would show each line as a cell's output of its own.
    with showing(folder.study(), Console(stderr=True, force_jupyter=False)) if progress else nullcontext():
        return run_to_end(folder, workers=workers, lanes=lanes, cells=cells)


def _settings(study: str | Path | Mapping[str, Any] | Study) -> Study:
    if isinstance(study, str | Path):
        return load_study(Path(study))
    if isinstance(study, Mapping):
        study = parse(Study, dict(study), where="study", folder=Path.cwd())
    return with_base_hash(study)
