"""``sahfl predict``: segmenting one scan, or many, with what a run trained."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sahfl.commands.program import read_fold
from sahfl.errors import RunError, RunFailed

if TYPE_CHECKING:
    from sahfl.prediction.many import Outcome
    from sahfl.prediction.scan_list import Wish
    from sahfl.prediction.segment import Predictor
    from sahfl.prediction.workers import Job

NOT_ALL = RunFailed.exit_code
"""Exit code if a scan was refused, or a file that was asked for could not be written."""


def predict(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, of sahfl export, or a site's own folder.")],
    scan: Annotated[
        Path,
        typer.Argument(
            help="NIfTI file, folder of one DICOM series, or one of its files; or a folder, datalist or CSV."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("prediction"),
    method: Annotated[
        str | None, typer.Option(help="Id of the method; by default the report's choice, or the first adapter.")
    ] = None,
    fold: Annotated[str, typer.Option(help="One fold's network, or the mean of all.", metavar="K|all")] = "all",
    threshold: Annotated[
        float | None, typer.Option(min=0.001, max=0.999, help="Probability of blood; by default the study's.")
    ] = None,
    probability: Annotated[bool, typer.Option("--probability", help="Write the probabilities as NIfTI too.")] = False,
    dicom_seg: Annotated[bool, typer.Option("--dicom-seg", help="Write a DICOM segmentation object too.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Write over the results of an earlier call.")] = False,
    each: Annotated[
        bool, typer.Option("--each", help="Take each file and folder in a folder for a scan of its own.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes that segment many scans side by side.")] = 1,
) -> None:
    """Segment a scan, or many, with what a run trained. For research use only; not a medical device.

    A scan has to pass the checks of the training data, but needs no annotation; exit code 2 if it is no head CT in HU.
    The command writes mask.nii.gz on the scan's own grid, overlay.png and prediction.json, and prints the volume.

    Of a folder of scans, a datalist or a CSV with a column image, each scan gets a folder in --out, and results.csv has
    a row for each. The same call goes on where an interrupted one ended. Exit code 3 if a scan was refused or a file is
    missing.

    Example: sahfl predict runs/a scan.nii.gz

    Example: sahfl predict runs/a dicom-folder --method cp_lora-r8 --fold 0 --out result --dicom-seg

    Example: sahfl predict runs/a scans --out results --workers 4
    """
    # torch reads it at its import. Otherwise waiting threads take the processor from those that have work: beside other
    # programs a scan takes ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from sahfl.prediction.scan_list import list_scans, masks_in
    from sahfl.prediction.segment import read_predictor
    from sahfl.prediction.workers import Job
    from sahfl.prediction.written import Wanted

    wanted = Wanted(probability=probability, dicom_seg=dicom_seg, replace=replace)
    predictor = read_predictor(run, method=method, fold=read_fold(fold), threshold=threshold)
    job = Job(run, predictor.trained.method, read_fold(fold), predictor.threshold, out, wanted)
    wishes = list_scans(scan, each=each)
    if wishes and not each and scan.is_dir() and (n_masks := len(masks_in(scan))):
        print(f"note: {n_masks} mask(s) beside their images are left out; --each takes every file", file=sys.stderr)
    if predictor.trained.caution:
        print(f"warning: {predictor.trained.caution}", file=sys.stderr)
    whole = _predict_one(scan, job, predictor) if wishes is None else _predict_many(wishes, job, predictor, workers)
    if not whole:
        raise typer.Exit(NOT_ALL)


def _predict_one(scan: Path, job: Job, predictor: Predictor) -> bool:
    """Segment one scan and print the result; whether all files could be written."""
    from sahfl.console import counting
    from sahfl.data.new_scan import read_new_scan
    from sahfl.prediction.segment import segment
    from sahfl.prediction.written import NOTICE, check_output, write_prediction

    began, trained = time.monotonic(), predictor.trained
    new = read_new_scan(scan)
    check_output(job.out, new, job.wanted)
    for item in new.findings:
        print(f"{item.severity}: {item.text} ({item.rule})", file=sys.stderr)
    with counting(["segmented"], Console(stderr=True), unit="slices") as show:
        found = segment(
            new, trained, threshold=predictor.threshold, on_slice=lambda done, total: show("segmented", done, total)
        )
    written = write_prediction(job.out, new, predictor, found, job.wanted)
    unlike = [f"{item['text']} ({item['id']})" for item in written.note["unlike"]]
    for text in (*(f"unlike the training data: {item}" for item in unlike), *written.notes, *written.failed):
        print(f"warning: {text}", file=sys.stderr)
    listed = ", ".join(map(str, trained.folds))
    folds = f"fold{'s' * (len(trained.folds) > 1)} {listed}" if trained.folds else "the base network"
    print(
        f"{found.volume_ml:.2f} mL of blood ({trained.study}, {trained.method}, {folds}; threshold {found.threshold:g})"
    )
    print(written.note["interval"]["text"])
    print(*written.files, sep="\n")
    print(f"{time.monotonic() - began:.1f} s", file=sys.stderr)
    print(NOTICE)
    return not written.failed


def _predict_many(wishes: tuple[Wish, ...], job: Job, predictor: Predictor, workers: int) -> bool:
    """Segment many scans and print how many; whether none was refused and no file is missing."""
    from sahfl.atomic import make_folder
    from sahfl.data.dicom.write_segmentation import require_highdicom
    from sahfl.prediction.many import TABLE, check_folder, predict_many
    from sahfl.prediction.workers import runner
    from sahfl.prediction.written import NOTICE
    from sahfl.process import locked

    if job.wanted.dicom_seg:
        require_highdicom()
    done = check_folder(job.out, wishes, predictor, job.wanted)
    make_folder(job.out)
    with (
        locked(job.out, busy=RunError(f"{job.out}: another call writes its results here; wait for its end")),
        _progress(len(done), len(wishes)) as show,
    ):
        outcomes = predict_many(job.out, wishes, done, runner(job, predictor, workers), show)
    n_refused = sum(item.note is None for item in outcomes)
    n_incomplete = sum(item.note is not None and not item.is_whole for item in outcomes)
    earlier = f" ({len(done)} of them by an earlier call)" if done else ""
    print(f"{len(wishes)} scans{earlier}: {len(wishes) - n_refused} segmented, {n_refused} refused")
    if n_incomplete:
        print(f"{n_incomplete} segmented without a file that was asked for; see the column missing")
    print(job.out / TABLE)
    print(NOTICE)
    return not n_refused and not n_incomplete


@contextmanager
def _progress(n_done: int, n_all: int) -> Iterator[Callable[[int, int, Outcome], None]]:
    """Show how many scans are done: a bar in a terminal, lines elsewhere; never a name of a scan."""
    console = Console(stderr=True)
    n_refused = 0

    def text() -> str:
        return f"{n_refused} refused" if n_refused else "none refused"

    if not console.is_terminal:

        def line(done: int, total: int, outcome: Outcome) -> None:
            nonlocal n_refused
            n_refused += outcome.note is None
            print(f"{done} of {total} scans done, {text()}", file=sys.stderr, flush=True)

        yield line
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(text(), total=n_all, completed=n_done)

        def move(done: int, total: int, outcome: Outcome) -> None:
            nonlocal n_refused
            n_refused += outcome.note is None
            progress.update(bar, completed=done, description=text())

        yield move
