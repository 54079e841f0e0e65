"""Export of a run's results to trackers: TensorBoard's event files, and MLflow.

Both are optional (``pip install 'sahfl[tensorboard]'``, ``'sahfl[mlflow]'``) and use only ``results.json``: settings,
learning curves, and the metrics of each method. They contain no data of patients beyond those in the report.
"""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sahfl.errors import DataError, RunError

Results = Mapping[str, Any]
SETTINGS = ("method", "rank", "aggregation", "trained_at", "trainable", "bytes_up_per_round")
MOST_AT_ONCE = 1000
"""Limit of metrics in one call to MLflow."""


@dataclass(frozen=True)
class Point:
    """One value of a curve."""

    training: str
    """Id of the method as in the rounds, or ``pretrain``."""
    curve: str
    round: int
    value: float


def learning_curves(results: Results) -> Iterator[Point]:
    """Loss (mean over sites, weighted by their scans) and bytes sent up in every committed round, fold by fold."""
    for entry in results["rounds"]:
        if not entry["committed"]:
            continue
        training = entry["method"] or entry["stage"]
        fold = "" if entry["fold"] is None else f"/fold-{entry['fold'] + 1}"
        known = [(used["loss"], used["n_volumes"]) for used in entry["used"] if used["loss"] is not None]
        if total := sum(n for _, n in known):
            yield Point(training, f"loss{fold}", entry["round"], sum(loss * n for loss, n in known) / total)
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
    methods, points = {method["id"]: method for method in results["methods"]}, _by_training(results)
    for training in dict.fromkeys([*points, *methods]):
        writer = writer_of(str(target / training))
        for point in points.get(training, []):
            writer.add_scalar(point.curve, point.value, point.round)
        if training in methods:
            settings = {key: _plain(methods[training][key]) for key in SETTINGS}
            writer.add_text("settings", "\n".join(f"- {key}: {value}" for key, value in settings.items()))
            for name, value in method_metrics(methods[training]).items():
                writer.add_scalar(name, value, 0)
        writer.close()
    return target


def export_mlflow(results: Results, store: str) -> str:
    """Log one MLflow run per training under an experiment with the study's name, and return the tracking URI.

    Args:
        results: the content of ``results.json``.
        store: a tracking URI, or a folder for the SQLite store ``mlflow.db``.

    Raises:
        RunError: mlflow-skinny is not installed, or the experiment holds this study already.
        DataError: the tracking server refuses the results.
    """
    mlflow = _optional("mlflow", "mlflow")
    uri = store
    if "://" not in store:
        Path(store).mkdir(parents=True, exist_ok=True)
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
    methods, points = {method["id"]: method for method in results["methods"]}, _by_training(results)
    tags, entities = {"fingerprint": fingerprint, "sahfl": results["sahfl"]}, mlflow.entities
    for training in dict.fromkeys([*points, *methods]):
        run = client.create_run(experiment, run_name=training, tags=tags).info.run_id
        method = methods.get(training)
        logged = [(point.curve, point.value, point.round) for point in points.get(training, [])]
        logged += [(name, value, 0) for name, value in (method_metrics(method) if method else {}).items()]
        params = [entities.Param(key, str(_plain(method[key]))) for key in SETTINGS] if method else []
        client.log_batch(run, params=params)
        for start in range(0, len(logged), MOST_AT_ONCE):
            part = logged[start : start + MOST_AT_ONCE]
            client.log_batch(run, [entities.Metric(name, value, 0, step) for name, value, step in part])
        client.set_terminated(run, "FAILED" if method and method["failed"] else "FINISHED")


def _by_training(results: Results) -> dict[str, list[Point]]:
    points: dict[str, list[Point]] = defaultdict(list)
    for point in learning_curves(results):
        points[point.training].append(point)
    return dict(points)


def _plain(value: Any) -> Any:
    return "none" if value is None else value


def _optional(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RunError(f"{module} is not installed; pip install 'sahfl[{extra}]'") from error
