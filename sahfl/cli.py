"""The command ``sahfl``: parse, one library call, print. Results on stdout, progress and errors on stderr.

Exit codes: 0 done, 1 a bug (with a traceback), 2 wrong input, 3 the run failed, 130 interrupted.
"""

from __future__ import annotations

import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sahfl.commands import audit, consortium, doctor, export, predict, status, study
from sahfl.commands.program import Command, new_app, run
from sahfl.config import kind_of, load_consortium, load_server, load_site, load_study
from sahfl.errors import ConfigError, RunFailed, StorageError

app = new_app(
    "sahfl", "Federated training of head-CT hemorrhage segmentation; only low-rank adapter factors leave a hospital."
)
Datalist = Annotated[
    Path | None, typer.Option(help="Datalist of NIfTI scans; takes the place of data.path in the study file.")
]


@app.command(cls=Command)
def simulate(
    study: Annotated[Path | None, typer.Argument(help="Study file (YAML); not with --resume.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; by default runs/<name>-<time>.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Folder of an interrupted run to go on with.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes; by default one per site, two per core at most.")
    ] = None,
    datalist: Datalist = None,
) -> None:
    """Run a study as a simulated federation on this machine, to a report.

    Example: sahfl simulate configs/demo.yaml

    Example: sahfl simulate --resume runs/demo-20261122-140000
    """
    from sahfl.console import showing
    from sahfl.run.folder import RunFolder
    from sahfl.simulation.simulate import simulate as run_study

    if (study is None) == (resume is None):
        raise ConfigError("simulate: expected either a study file or --resume RUN_DIR; see sahfl simulate -h")
    if resume is not None:
        if out is not None or datalist is not None:
            raise ConfigError(
                "simulate: --resume goes on with the run's own folder and data; leave out the other options"
            )
        folder = RunFolder.reopen(resume)
    else:
        assert study is not None
        settings = load_study(study, datalist=datalist)
        folder = RunFolder.create(out or Path("runs") / f"{settings.name}-{datetime.now():%Y%m%d-%H%M%S}", settings)
    again = f"sahfl simulate --resume {shlex.quote(str(folder.path))}"
    try:
        with showing(folder.study(), Console(stderr=True)):
            report = run_study(folder, workers=workers)
    except KeyboardInterrupt:
        print(f"interrupted; go on with: {again}", file=sys.stderr)
        raise typer.Exit(130) from None
    except (RunFailed, StorageError, OSError):
        print(f"the run can go on: {again}", file=sys.stderr)
        raise
    print(report)


@app.command(cls=Command)
def phantom(
    out: Annotated[Path, typer.Argument(help="Folder for the cohort; an interrupted one is continued.")],
    study: Annotated[
        Path | None, typer.Option(help="Study file whose data section says which sites; by default those of the demo.")
    ] = None,
) -> None:
    """Write a cohort of synthetic head CTs as NIfTI with a datalist, and pictures of it.

    Example: sahfl phantom phantoms/demo

    Example: sahfl phantom phantoms/mine --study configs/demo.yaml
    """
    from sahfl.console import counting
    from sahfl.data.phantom import demo_sites, plan_sites, write_sites
    from sahfl.report.cohort import draw_cohort

    specs = demo_sites() if study is None else plan_sites(load_study(study))
    with counting([spec.site for spec in specs], Console(stderr=True)) as show:
        print(write_sites(out, specs, on_case=show))
    for picture in draw_cohort(out, specs):
        print(picture)


@app.command(cls=Command)
def check(
    file: Annotated[
        Path | None, typer.Argument(help="Study, site, server or consortium file (YAML); told apart by content.")
    ] = None,
    datalist: Datalist = None,
    rules: Annotated[bool, typer.Option("--rules", help="Print the table of data rules (Markdown) instead.")] = False,
) -> None:
    """Check a study, server or consortium file, or the data of a site.

    Other files than a site's are printed with every default filled in. For a site file, every scan is checked against
    the data rules; checks.json and checks.html go into the site's folder; exit code 2 if the site may not train.

    Example: sahfl check configs/demo.yaml

    Example: sahfl check site.yaml
    """
    if rules:
        from sahfl.data.rules import rules_table

        print(rules_table(), end="")
    elif file is None:
        raise ConfigError("check: expected a study file or a site file; see sahfl check -h")
    elif kind_of(file) == "study":
        print(load_study(file, datalist=datalist).model_dump_json(indent=2))
    elif kind_of(file) == "server":
        print(load_server(file).model_dump_json(indent=2))
    elif datalist is not None:
        raise ConfigError(f"{file}: --datalist is for study files; a site file names its own under data.path")
    elif kind_of(file) == "consortium":
        print(load_consortium(file).model_dump_json(indent=2))
    else:
        _check_site(file)


def _check_site(file: Path) -> None:
    from sahfl.console import counting, verdict_table
    from sahfl.federation.site.dry_run import policy_lines
    from sahfl.federation.site.site_check import check_site

    config = load_site(file)
    with counting([config.name], Console(stderr=True)) as show:
        verdict = check_site(config, on_case=lambda done, total: show(config.name, done, total))
    Console().print(verdict_table(verdict.checks))
    print(*policy_lines(config.policy), sep="\n")
    print(verdict.page)
    if not verdict.may_train:
        raise typer.Exit(2)


@app.command(cls=Command)
def report(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    tensorboard: Annotated[
        Path | None, typer.Option(help="Also write event files into this folder; needs sahfl\\[tensorboard].")
    ] = None,
    mlflow: Annotated[
        str | None, typer.Option(help="Also log to this tracking URI, or into this folder; needs sahfl\\[mlflow].")
    ] = None,
) -> None:
    """Write the report of a finished run again, from its results.json: page, figures, CSV and LaTeX tables.

    Example: sahfl report runs/demo-20261122-140000

    Example: sahfl report runs/demo-20261122-140000 --tensorboard events --mlflow tracking
    """
    from sahfl.errors import RunError
    from sahfl.report import write_report
    from sahfl.run.folder import RunFolder
    from sahfl.tracking import export_mlflow, export_tensorboard

    results = RunFolder(run_dir).read_json("results.json")
    if results is None:
        how = f"sahfl simulate --resume {run_dir}, or the same sahfl study; a server goes on by itself"
        raise RunError(f"{run_dir}: has no results.json; the run is not finished ({how})")
    if not isinstance(results, dict):
        raise RunError(f"{run_dir}: results.json is not a mapping; delete it to have it made again")
    print(write_report(results, run_dir))
    if tensorboard is not None:
        print(export_tensorboard(results, tensorboard))
    if mlflow is not None:
        print(export_mlflow(results, mlflow))


for command in (
    study.study,
    predict.predict,
    export.export,
    consortium.provision,
    consortium.renew,
    consortium.revoke,
    status.status,
    doctor.doctor,
):
    app.command(cls=Command)(command)
app.add_typer(audit.app)


def main() -> None:
    """Entry point."""
    run(app)
