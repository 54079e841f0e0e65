"""A finished run from Python: its results as tables, its networks, and their prediction for a scan.

torch and pandas are imported by the methods that need them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sahfl.config import Study, ZeroShot
from sahfl.errors import ConfigError, RunError
from sahfl.run.folder import RunFolder

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray
    from torch import nn

    from sahfl.data.new_scan import NewScan
    from sahfl.prediction.segment import Predictor, Segmented
    from sahfl.prediction.written import Written

IDENTITY = ("id", "name", "rank", "trained_at")
DICE = ("dice_mean", "dice_low", "dice_high", "dice_interval", "dice_n")
COST = ("trainable", "bytes_up_per_round")
JUDGED = ("against_zero_shot", "verdict", "failed")
WHOLE = ("rank", "dice_n")
"""Columns of whole numbers that may be unknown."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """A scan as a run segmented it; for research use only, not a medical device."""

    mask: NDArray[np.bool_] = field(repr=False)
    """(X, Y, Z) on the scan's own voxels, in the file's order of axes: True where blood is predicted."""
    probability: NDArray[np.float32] = field(repr=False)
    """(X, Y, Z) on the same voxels: probability of blood."""
    affine: NDArray[np.float64] = field(repr=False)
    """(4, 4) from voxel index to mm, RAS+, as nibabel has it."""
    volume_ml: float
    """Volume of the mask, mL."""
    interval_ml: tuple[float, float | None] | None
    """Where the annotated volume lies with a chance of 90 % or more, from held-out patients; None if they are too few.
    An upper end of None is open."""
    interval_text: str
    """The interval in words, or why there is none."""
    unlike: tuple[str, ...]
    """In what the scan differs from what the network was made for and trained on."""
    threshold: float
    """The mask is True where the probability reaches this value."""
    method: str
    """Id of the method."""
    folds: tuple[int, ...]
    """Folds whose networks were averaged; empty for the base network."""
    warnings: tuple[str, ...]
    """Findings of the data checks, and what the networks lack of the method."""
    files: tuple[Path, ...]
    """Files that were written: none without ``out``."""


@dataclass(frozen=True)
class Run:
    """A finished run: a simulation's or a server's."""

    folder: Path
    """Folder of the run."""
    study: Study = field(repr=False)
    """Settings of the study, with all defaults."""
    results: Mapping[str, Any] = field(repr=False, compare=False)
    """Content of ``results.json``: every number of the report."""

    @property
    def methods(self) -> tuple[str, ...]:
        """Ids of the methods that have a row in the results."""
        return tuple(method["id"] for method in self.results["methods"])

    @property
    def report(self) -> Path:
        """The report, a page for the browser."""
        return self.folder / "report.html"

    def frame(self, *, complete: bool = False) -> pd.DataFrame:
        """The results, one row per method, with its id as index.

        The columns are those of ``tables/methods.csv``: ``dice_mean`` with its 95 % interval from ``dice_low`` to
        ``dice_high`` over ``dice_interval`` (patients, or patients and trainings) and ``dice_n`` scans with blood;
        ``trainable`` parameters; ``bytes_up_per_round``, which one site sends; the difference of Dice
        ``against_zero_shot`` on the same patients, and its ``verdict``. ``complete`` gives every metric.

        Raises:
            ConfigError: pandas is not installed.
        """
        from sahfl.report.paper_files import method_rows

        table = _frame(method_rows(self.results), whole=WHOLE)
        chosen = table if complete else table[[*IDENTITY, *DICE, *COST, *JUDGED]]
        return chosen.set_index("id")

    def comparisons(self, *, complete: bool = False) -> pd.DataFrame:
        """Differences between two methods in mean Dice on the same patients, one row per pair, with the verdict.

        ``complete`` gives every metric and group of patients, as in ``tables/comparisons.csv``. Only mean Dice over
        all scans with blood has a verdict.

        Raises:
            ConfigError: pandas is not installed.
        """
        from sahfl.report.paper_files import comparison_rows

        rows = [
            row
            for row in comparison_rows(self.results)
            if complete or (row["metric"], row["group"]) == ("dice", "overall")
        ]
        return _frame(rows)

    def cases(self) -> pd.DataFrame:
        """The results of every held-out scan, one row per scan and method, of a simulation.

        Columns: ``method``, ``part`` (of a method with a part at each site), ``fold``, ``site``, ``case`` (the site's
        own name for the scan), ``image`` (its file, or the folder of its DICOM series, when the run checked it),
        ``volume_ml`` (annotated), ``predicted_ml``, and the metrics.

        Raises:
            ConfigError: pandas is not installed.
            DataError: the list of a site's files (``sites/SITE/manifest.json``) is missing or damaged.
            RunError: the run has no results per scan: they stay at the hospitals, or cells came from an earlier run.
        """
        if self.study.data.source == "sites":
            raise RunError(f"{self.folder}: has no results per scan, which stay at the hospitals; load a simulation")
        run, cells = RunFolder(self.folder), {cell for cell, _ in self._evaluated()}
        if reused := sorted(run.reused() & cells):
            found = f"{len(reused)} of {len(cells)} cells, such as {reused[0]}, came from an earlier run"
            raise RunError(
                f"{self.folder}: {found}, which has their results per scan; simulate without cells to have all"
            )
        rows = list(self._case_rows())
        if not rows:
            raise RunError(f"{self.folder}: has no results per scan in sites/*/cases.jsonl; copy the whole folder")
        return _frame(rows)

    def _evaluated(self) -> Iterator[tuple[str, str]]:
        """Cell and method of every evaluation."""
        from sahfl.cell_names import cell_of

        for method in self.study.finetune.methods:
            yield from ((cell_of(method, fold), method.id) for fold in range(self.study.finetune.folds))

    def _case_rows(self) -> Iterator[dict[str, Any]]:
        from sahfl.data.checks import read_manifest
        from sahfl.federation.site.case_results import FILE, read_results

        fingerprint, known = self.study.fingerprint(), {method for _, method in self._evaluated()}
        for site in self.study.finetune.sites:
            found: dict[tuple[Any, ...], dict[str, Any]] = {}
            folder, images = self.folder / "sites" / site, {}
            if (folder / FILE).exists():
                images = {item.case.id: str(item.case.image) for item in read_manifest(folder, site)}
            for kept in read_results(folder):
                if kept.study == fingerprint and kept.method in known:
                    place = {
                        "method": kept.method,
                        "part": kept.part,
                        "fold": kept.fold,
                        "site": site,
                        "case": kept.case,
                    }
                    numbers = {name: value for name, value in vars(kept.result).items() if name != "key"}
                    # Of two evaluations the last one counts.
                    found[tuple(place.values())] = place | {"image": images[kept.case]} | numbers
            yield from found.values()

    def network(self, method: str | None = None, fold: int | None = None, view: str | None = None) -> nn.Module:
        """A trained network, its adapter merged, as a plain torch module in evaluation mode.

        Its input is a batch of slices (batch, channels, height, width) in 0..1, with height and width in multiples of
        16; the channels are HU windows times slices (``study.views``). Its output has logits of blood (batch, 1,
        height, width).

        Args:
            method: id of the method; by default the one that the report recommends, or else the first adapter.
            fold: the fold whose patients the network was not trained on; by default the first.
            view: axial, coronal or sagittal, if each view has a network of its own.

        Raises:
            RunError: the run has no such method, fold or view; the message lists what exists.
            AdapterError: a file is damaged.
        """
        from sahfl.model import Network
        from sahfl.prediction.networks import choose_method, read_trained, usual_method

        chosen = choose_method(self.study, method or usual_method(self.study, self.folder), self.folder)
        own, known = self.study.model.planes == "per_view", tuple(self.study.views.weights)
        if (view is None and own) or (view is not None and view not in known):
            found = "each view has a network of its own" if view is None else f"has no view {view!r}"
            raise RunError(f"{self.folder}: {found}; name a view: {', '.join(known)}")
        first = None if isinstance(chosen, ZeroShot) else 0
        trained = read_trained(self.folder, method=chosen.id, fold=first if fold is None else fold)
        net: nn.Module = trained.nets[0]
        if view and own and isinstance(net, Network):
            net = net.plain(view).module
        return net.eval()

    def predict(
        self,
        scan: str | Path,
        method: str | None = None,
        fold: int | None = None,
        *,
        threshold: float | None = None,
        out: str | Path | None = None,
        replace: bool = False,
    ) -> Prediction:
        """Segment a scan, like ``sahfl predict``: for research use only, not a medical device.

        Args:
            scan: a NIfTI file, a folder with one DICOM series, or one of its files.
            method: id of the method; by default the one that the report recommends, or else the first adapter.
            fold: one fold's network; by default the mean of all.
            threshold: probability from which a voxel is blood; by default the study's.
            out: folder for the mask, a picture and a note; by default nothing is written.
            replace: write over the files of an earlier prediction.

        Raises:
            DataRefused: the scan is no head CT in HU; the message lists each broken rule with its remedy.
            RunError: the run has no such method or fold, or ``out`` has files of an earlier prediction.
            ConfigError: the threshold is not between 0 and 1.
            AdapterError: a file of the run is damaged.
        """
        from sahfl.data.new_scan import read_new_scan
        from sahfl.prediction.segment import read_predictor, segment
        from sahfl.prediction.written import Wanted, Written, check_output, write_prediction

        if threshold is not None and not 0 < threshold < 1:
            raise ConfigError(f"threshold: got {threshold}, expected a number between 0 and 1")
        predictor = read_predictor(self.folder, method=method, fold=fold, threshold=threshold)
        new = read_new_scan(Path(scan))
        wanted, written = Wanted(replace=replace), Written()
        if out is not None:
            check_output(Path(out), new, wanted)
        found = segment(new, predictor.trained, threshold=predictor.threshold)
        if out is not None:
            written = write_prediction(Path(out), new, predictor, found, wanted)
        return _prediction(new, predictor, found, written)


def load(folder: str | Path) -> Run:
    """Open a finished run: of ``sahfl.simulate``, of the commands, or of a server.

    Raises:
        RunError: the folder is no run, or the run is not finished.
    """
    path = Path(folder)
    if not (path / "study.json").is_file():
        raise RunError(f"{path}: is no folder of a run (study.json is missing)")
    run = RunFolder(path)
    return Run(path, run.study(), run.results())


def _prediction(new: NewScan, predictor: Predictor, found: Segmented, written: Written) -> Prediction:
    import numpy as np

    from sahfl.prediction.unlike import differences
    from sahfl.prediction.written import describe_interval

    trained, probability = predictor.trained, np.asarray(new.on_source(found.probability).dataobj)
    unlike = differences(new, trained.views, predictor.known)
    interval = describe_interval(predictor.calibration.interval(found.volume_ml, found.threshold), unlike)
    return Prediction(
        mask=probability >= found.threshold,
        probability=probability,
        affine=new.source.affine,
        volume_ml=found.volume_ml,
        interval_ml=(interval["low_ml"], interval["high_ml"]) if interval["n"] else None,
        interval_text=interval["text"],
        unlike=tuple(item.text for item in unlike),
        threshold=found.threshold,
        method=trained.method,
        folds=trained.folds,
        warnings=(*(item.text for item in new.findings), *filter(None, [trained.caution]), *written.failed),
        files=tuple(written.files),
    )


def _frame(rows: Iterable[Mapping[str, Any]], *, whole: Iterable[str] = ()) -> pd.DataFrame:
    try:
        import pandas as pd
    except ImportError as error:
        raise ConfigError("a DataFrame needs pandas, which is not installed; pip install pandas") from error
    return pd.DataFrame(list(rows)).astype(dict.fromkeys(whole, "Int64"))
