"""Results in TensorBoard and in MLflow: the same numbers, once, and a clear word where the extra lacks."""

import sys

import pytest
from report.test_report_sample import failed, gain

from sahfl.errors import RunError
from sahfl.tracking import PACKAGES, export_mlflow, export_tensorboard, learning_curves, method_metrics


def scalars(folder):
    """Tag -> step -> value of a folder of event files."""
    records = pytest.importorskip("tensorboardX.record_writer")
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in folder.glob("events.out.tfevents*"):
        data, place = path.read_bytes(), 0
        while place < len(data):  # each record: length (8 bytes) and its checksum (4), content and its checksum (4)
            length = int.from_bytes(data[place : place + 8], "little")
            event = Event.FromString(data[place + 12 : place + 12 + length])
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found.setdefault(value.tag, {})[event.step] = value.simple_value
            place += 16 + length
    assert records
    return found


def test_learning_curves_hold_each_committed_round_once():
    points = list(learning_curves(gain()))
    assert len(points) == 2 * (6 + 2 * 3 * 5)
    assert {point.training for point in points} == {"pretrain", "cp_lora-r8", "full"}
    first = next(p for p in points if (p.training, p.curve, p.round) == ("cp_lora-r8", "loss/fold-1", 1))
    assert first.value == pytest.approx((8 * 0.5 + 12 * 0.55) / 20)


def test_a_failed_method_has_no_metrics_and_unknown_ones_are_left_out():
    assert method_metrics(failed()["methods"][1]) == {}
    results = gain()
    results["methods"][0]["metrics"]["dice"]["overall"] |= {"low": None}
    found = method_metrics(results["methods"][0])
    assert found["dice/mean"] == 0.412
    assert "dice/low" not in found
    assert "hd95_mm/median" in found


def test_event_files_hold_curves_and_metrics_of_each_training(tmp_path):
    pytest.importorskip("tensorboardX", reason="pip install tensorboardX")
    folder = export_tensorboard(gain(), tmp_path)
    assert folder == tmp_path / "demo-c0ffeec0"
    assert sorted(path.name for path in folder.iterdir()) == ["cp_lora-r8", "full", "pretrain", "zero_shot"]
    found = scalars(folder / "cp_lora-r8")
    assert found["dice/mean"] == {0: pytest.approx(0.503)}
    assert found["loss/fold-1"][1] == pytest.approx((8 * 0.5 + 12 * 0.55) / 20)
    assert sorted(found["loss/fold-0"]) == [1, 2, 3, 4, 5]
    assert "loss" in scalars(folder / "pretrain")


def test_a_study_is_written_to_tensorboard_once(tmp_path):
    pytest.importorskip("tensorboardX", reason="pip install tensorboardX")
    export_tensorboard(gain(), tmp_path)
    with pytest.raises(RunError, match=r"demo-c0ffeec0: holds this study already; delete it to write it again"):
        export_tensorboard(gain(), tmp_path)


@pytest.mark.filterwarnings("default")  # of MLflow's own dependencies
def test_mlflow_holds_a_run_for_each_training_once(tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="pip install mlflow-skinny alembic sqlalchemy")
    uri = export_mlflow(gain(), str(tmp_path / "store"))
    assert uri == f"sqlite:///{tmp_path}/store/mlflow.db"
    client = mlflow.MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name("demo").experiment_id])
    by_name = {run.info.run_name: run for run in runs}
    assert sorted(by_name) == ["cp_lora-r8", "full", "pretrain", "zero_shot"]
    run = by_name["cp_lora-r8"]
    assert run.data.params["rank"] == "8"
    assert run.data.metrics["dice/mean"] == 0.503
    assert len(client.get_metric_history(run.info.run_id, "loss/fold-0")) == 5
    with pytest.raises(RunError, match="experiment 'demo' holds this study already; delete its runs"):
        export_mlflow(gain(), uri)


@pytest.mark.parametrize(
    ("export", "module", "extra"),
    [(export_tensorboard, "tensorboardX", "tensorboard"), (export_mlflow, "mlflow", "mlflow")],
    ids=["tensorboard", "mlflow"],
)
def test_an_extra_that_is_not_installed_is_named(monkeypatch, tmp_path, export, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RunError, match=rf"{module} is not installed; pip install {PACKAGES[extra]}"):
        export(gain(), tmp_path / "out" if extra == "tensorboard" else str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
