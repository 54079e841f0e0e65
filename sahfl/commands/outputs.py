"""``sahfl report``, ``sahfl compare`` and ``sahfl export``: what a finished run gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sahfl.commands.program import read_fold
from sahfl.errors import ConfigError

Run = Annotated[Path, typer.Argument(help="Folder of a finished run.")]
RunOrSite = Annotated[Path, typer.Argument(help="Folder of a finished run, or a site's own folder.")]


def report(
    run_dir: Run,
    tensorboard: Annotated[
        Path | None, typer.Option(help="Also write event files into this folder; needs the package tensorboardX.")
    ] = None,
    mlflow: Annotated[
        str | None,
        typer.Option(
            help="Also log to this tracking URI, or into this folder; needs mlflow-skinny, alembic and sqlalchemy."
        ),
    ] = None,
) -> None:
    """Write the report of a finished run again, from its results.json: page, figures, CSV and LaTeX tables.

    Example: sahfl report runs/demo-20261122-140000

    Example: sahfl report runs/demo-20261122-140000 --tensorboard events --mlflow tracking
    """
    from sahfl.report.page import write_report
    from sahfl.run.folder import RunFolder
    from sahfl.tracking import export_mlflow, export_tensorboard

    results = RunFolder(run_dir).results()
    print(write_report(results, run_dir))
    if tensorboard is not None:
        print(export_tensorboard(results, tensorboard))
    if mlflow is not None:
        print(export_mlflow(results, mlflow))


def compare(
    run: Run,
    reference: Annotated[Path, typer.Argument(help="Folder of the finished run to compare with.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print every metric and group as JSON.")] = False,
) -> None:
    """Compare two finished runs on the same patients: a paired difference of Dice for each method that both have.

    The runs may differ in views, network, pretraining or fine-tuning; every setting that differs is printed first. If
    their base networks differ, methods that start from them have no verdict. Exit code 2 if the runs differ in seed,
    folds, sites, evaluation or scans of the fine-tuning sites.

    Example: sahfl compare runs/paper-small runs/paper-small-axial
    """
    from sahfl.results.between_runs import compare_runs, comparison_table
    from sahfl.run.folder import RunFolder

    found = compare_runs(RunFolder.reopen(run), RunFolder.reopen(reference))
    print(json.dumps(found, indent=1) if as_json else comparison_table(found), end="\n" if as_json else "")


def export(
    run: RunOrSite,
    method: Annotated[str, typer.Option(help="Id of the method, as in the report.")],
    to: Annotated[Path, typer.Option(help="Folder of the export.")],
    fold: Annotated[str, typer.Option(help="One fold's network, or each.", metavar="K|all")] = "all",
    form: Annotated[
        list[str] | None,
        typer.Option("--format", help="safetensors, bundle (MONAI), onnx or adapter; several times for several."),
    ] = None,
    with_private: Annotated[
        bool, typer.Option("--with-private", help="Export a site's own networks, trained on its patients.")
    ] = False,
) -> None:
    """Write a run's networks, merged, in other programs' forms; each is read back and compared.

    A bundle and an ONNX folder have the networks of all folds, and run without sahfl: their README.md says how. The
    largest difference of logits is printed; exit code 3 if it is above 0.001.

    A site's own folder has the networks that stay there. They were trained on this site's patients and may reveal
    something of them, so that their export needs --with-private.

    Example: sahfl export runs/a --method cp_lora-r8 --to export --format bundle --format onnx

    Example: sahfl export runs/a --method cp_lora-r8 --fold 0 --to export --format safetensors

    Example: sahfl export runs/a/sites/sah_a --method cp_lora-r8-private4 --to export --with-private
    """
    from sahfl.export.folders import FORMS
    from sahfl.export.folders import export as write
    from sahfl.export.parity import MOST_DIFFERENCE

    wanted = form or ["safetensors"]
    if odd := [name for name in wanted if name not in FORMS]:
        raise ConfigError(f"--format: got {odd[0]!r}, expected {', '.join(FORMS)}")
    forms = [name for name in FORMS if name in wanted]
    for written in write(run, to, forms, method=method, fold=read_fold(fold), with_private=with_private):
        print(f"{written.folder}: largest difference of logits {written.difference:.2g} (at most {MOST_DIFFERENCE:g})")
