"""Export of a run's results to trackers: TensorBoard's event files, and MLflow.

Both need further packages (``PACKAGES``). They get settings, learning curves and
the metrics of each method from ``results.json``, and no data of patients beyond those in the report.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sahfl.atomic import make_folder
from sahfl.errors import DataError, RunError

Results = Mapping[str, Any]
PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow-skinny alembic sqlalchemy"}
"""What each tracker needs, as names for pip."""
SETTINGS = ("method", "rank", "aggregation", "trained_at", "trainable", "bytes_up_per_round")
MOST_AT_ONCE = 1000
"""Limit of metrics in one call to MLflow."""


@dataclass(frozen=True)
class Point:
    """One value of a curve."""

    training: str
    """Id of the method, or ``pretrain``."""
    curve: str
    round: int
    value: float


def learning_curves(results: Results) -> Iterator[Point]:
    """Mean loss of the sites, weighted by their scans, and bytes sent up in each committed round of each fold."""
    for entry in results["rounds"]:
        if not entry["committed"]:
            continue
        training = entry["method"] or entry["stage"]
        fold = "" if entry["fold"] is None else f"/fold-{entry['fold']}"
        known = [(used["loss"], used["n_volumes"]) for used in entry["used"] if used["loss"] is not None]
        if total := sum(n for _, n in known):
            yield Point(training, f"loss{fold}", entry["round"], sum(loss * n for loss, n in known) / total)
        elif entry.get("loss") is not None:  # of a masked round
            yield Point(training, f"loss{fold}", entry["round"], entry["loss"])
        yield Point(training, f"bytes_up{fold}", entry["round"], sum(used["bytes_up"] for used in entry["used"]))


def method_metrics(method: Results) -> dict[str, float]:
    """Mean, SD and interval ends of every metric over all cases; missing values are left out."""
    if method["failed"] is not None:
        return {}
    found = {}
    for name, part in method["metrics"].items():
        for key in ("mean", "sd", "median", "low", "high"):
            if part["overall"][key] is not None:
                found[f"{name}/{key}"] = float(part["overall"][key])
    return found


def export_tensorboard(results: Results, folder: Path) -> Path:
    """Write event files, one folder per training, and return the folder that contains them.

    Raises:
        RunError: tensorboardX is not installed, or the folder holds this study already and would show it twice.
    """
    writer_of = _optional("tensorboardX", "tensorboard").SummaryWriter
    target = folder / f"{results['name']}-{results['fingerprint'][:8]}"
    if target.exists():
        raise RunError(f"{target}: holds this study already; delete it to write it again")
    for training, method, points in _trainings(results):
        writer = writer_of(str(target / training))
        if method is not None:
            writer.add_text("settings", "\n".join(f"- {key}: {value}" for key, value in _settings(method).items()))
        for point in points:
            writer.add_scalar(point.curve, point.value, point.round)
        writer.close()
    return target


def export_mlflow(results: Results, store: str) -> str:
    """Log one MLflow run per training under an experiment with the study's name, and return the tracking URI.

    ``store`` is a tracking URI, or a folder for the SQLite store ``mlflow.db``.

    Raises:
        RunError: mlflow-skinny is not installed, or the experiment holds this study already.
        DataError: the tracking server refuses the results.
    """
    mlflow = _optional("mlflow", "mlflow")
    uri = store
    if "://" not in store:
        make_folder(Path(store))
        uri = f"sqlite:///{Path(store).absolute()}/mlflow.db"
    try:
        _log_to_mlflow(mlflow, results, uri)
    except mlflow.exceptions.MlflowException as error:
        raise DataError(f"mlflow at {uri}: {error}") from error
    return uri


def _log_to_mlflow(mlflow: Any, results: Results, uri: str) -> None:
    client, fingerprint = mlflow.MlflowClient(tracking_uri=uri), results["fingerprint"]
    known = client.get_experiment_by_name(results["name"])
    experiment = client.create_experiment(results["name"]) if known is None else known.experiment_id
    if client.search_runs([experiment], f"tags.fingerprint = '{fingerprint}'", max_results=1):
        raise RunError(f"mlflow at {uri}: experiment {results['name']!r} holds this study already; delete its runs")
    tags, entities = {"fingerprint": fingerprint, "sahfl": results["sahfl"]}, mlflow.entities
    for training, method, points in _trainings(results):
        run = client.create_run(experiment, run_name=training, tags=tags).info.run_id
        settings = _settings(method) if method else {}
        client.log_batch(run, params=[entities.Param(key, str(value)) for key, value in settings.items()])
        metrics = [entities.Metric(point.curve, point.value, 0, point.round) for point in points]
        for start in range(0, len(metrics), MOST_AT_ONCE):
            client.log_batch(run, metrics[start : start + MOST_AT_ONCE])
        client.set_terminated(run, "FAILED" if method and method["failed"] else "FINISHED")


def _trainings(results: Results) -> Iterator[tuple[str, Results | None, list[Point]]]:
    """Each training with its method (None for pretraining), and its curves and metrics, the metrics at round 0."""
    methods, curves = {method["id"]: method for method in results["methods"]}, list(learning_curves(results))
    for training in dict.fromkeys([*(point.training for point in curves), *methods]):
        method = methods.get(training)
        metrics = method_metrics(method) if method else {}
        points = [point for point in curves if point.training == training]
        yield training, method, points + [Point(training, name, 0, value) for name, value in metrics.items()]


def _settings(method: Results) -> dict[str, Any]:
    return {key: "none" if method[key] is None else method[key] for key in SETTINGS}


def _optional(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RunError(f"{module} is not installed; pip install {PACKAGES[extra]}") from error
