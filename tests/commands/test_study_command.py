"""The command ``sahfl study``: what it plans, starts, goes on with, takes from earlier studies, and watches."""

import json
import os
import re
import signal
import subprocess
import threading
import time
from contextlib import contextmanager

import pytest
import yaml
from harness.commands import SAHFL, journal, tensors, wait_for_no_process, wait_for_round, write
from harness.tiny_study import TINY, changed
from harness.trust_kits import make_consortium
from report.test_report_sample import gain
from typer.testing import CliRunner

from sahfl.atomic import write_atomic
from sahfl.commands import study as command
from sahfl.commands.app import app
from sahfl.config import Study, parse
from sahfl.errors import ConfigError, RunError, RunFailed
from sahfl.federation.server.plan import Speed
from sahfl.federation.server.studies import Studies
from sahfl.run.folder import RunFolder
from sahfl.trust.provision import revoke

ONE = changed(TINY, finetune__methods=[{"method": "zero_shot"}])
MORE = changed(ONE, finetune__methods=[{"method": "zero_shot"}, {"method": "cp_lora", "rank": 2}])
DEPLOYED = changed(TINY, name="trial", data={"source": "sites"}, rounds__unmasked=True)


def start(folder, *arguments):
    return subprocess.Popen(
        [SAHFL, "study", *map(str, arguments)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(folder, *arguments):
    process = start(folder, *arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def called(*arguments):
    """The command in this process; its errors are raised, as ``sahfl.cli.main`` sees them."""
    return CliRunner().invoke(app, ["study", *map(str, arguments)], standalone_mode=False)


def folder_of(settings):
    study = parse(Study, settings, where="test")
    return f"runs/{study.name}-{study.fingerprint()[:8]}"


@pytest.mark.slow
def test_a_study_that_was_interrupted_or_grew_goes_on_with_the_same_command(tmp_path):
    write(tmp_path / "study.yaml", MORE)
    process = start(tmp_path, "study.yaml")
    wait_for_round(process, tmp_path / folder_of(MORE), cell="cp_lora-r2/fold-0")
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; go on with: sahfl study study.yaml" in err
    wait_for_no_process(process.pid)
    code, out, err = run(tmp_path, "study.yaml")
    assert code == 0, err
    assert out.strip() == f"{folder_of(MORE)}/report.html"
    assert "cells done" in err
    assert [line["event"] for line in journal(tmp_path / folder_of(MORE)) if "at" in line] == [
        "started",
        "interrupted",
        "resumed",
        "finished",
    ]
    code, out, err = run(tmp_path, "study.yaml")
    assert (code, out.strip()) == (0, f"{folder_of(MORE)}/report.html")
    assert err.startswith("finished already; nothing is left to do\nSIMULATED. All scans are made by a program.")
    assert "CP-LoRA (rank 2)" in err
    write(tmp_path / "study.yaml", ONE)  # of another folder, and nothing of it is new
    code, _, err = run(tmp_path, "study.yaml")
    assert code == 0, err
    assert "zero_shot/fold-0: taken from an earlier run" in err
    assert json.loads((tmp_path / folder_of(ONE) / "results.json").read_text())["cells"] == {"total": 3, "reused": 3}
    assert tensors(tmp_path / folder_of(ONE)).items() <= tensors(tmp_path / folder_of(MORE)).items()


def test_the_plan_names_every_training_what_it_sends_and_the_time_that_it_may_take(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(
        "sahfl.federation.server.plan.measure_speed", lambda study: Speed(train_s=0.25 / 3072, segment_s=0.125 / 3072)
    )
    path = write(tmp_path / "study.yaml", changed(MORE, rounds__payload="float16"))
    result = called(path, "--plan", "--cells", tmp_path / "cells")
    assert result.exception is None
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["pretrain", "zero_shot", "cp_lora-r2"]
    assert re.search(r"cp_lora-r2 +3 sites +2 +4,112 +8.2", lines[3])  # 4112 numbers of 2 bytes
    # Steps: 2 sites x 2 batches of 2, and twice 3 sites x 2 batches of 2. Slices: 48 of each of 7 scans, for 2 methods.
    # A slice has 48 x 64 = 3072 pixels.
    rounds = MORE["pretrain"]["rounds"], MORE["finetune"]["rounds"]
    assert [row.split()[-2:] for row in lines[1:4]] == [
        [f"{rounds[0] * 8 * 0.25:.0f}", "s"],
        [f"{48 * 7 * 0.125:.0f}", "s"],
        [f"{rounds[1] * 24 * 0.25 + 48 * 7 * 0.125:.0f}", "s"],
    ]
    seconds = rounds[0] * 2 + rounds[1] * 6 + 2 * 42
    work = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
    assert lines[4].startswith(f"5 cells; {work} of work, so about {seconds / 2:.0f} s on 2 core(s), a rough guess")
    assert not (tmp_path / "cells").exists()


def test_a_folder_of_another_study_is_refused_by_name(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "study.json").write_text(parse(Study, MORE, where="test").model_dump_json())
    with pytest.raises(RunError, match="holds another study"):
        raise called(write(tmp_path / "study.yaml", ONE), "--out", tmp_path / "run").exception


def test_a_study_of_hospitals_needs_a_server_and_only_it_takes_one(tmp_path):
    path = write(tmp_path / "study.yaml", DEPLOYED)
    with pytest.raises(ConfigError, match="name the consortium's server with --server"):
        raise called(path).exception
    with pytest.raises(ConfigError, match="expected 'sites' with --server"):
        raise called(write(tmp_path / "here.yaml", TINY), "--server", tmp_path / "server.yaml").exception


# --- at a server -----------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The folder of a server that does not run; ``ends`` plays one that ends a study."""
    monkeypatch.setattr(command, "LOOK_S", 0.01)
    (tmp_path / "server").mkdir()
    paths = make_consortium(tmp_path / "consortium", sites=parse(Study, DEPLOYED, where="test").sites)
    write(tmp_path / "server.yaml", {"kit": str(paths.server), "folder": "server", "port": 1024})
    return tmp_path / "server"


@contextmanager
def ends(server, name, how):
    def end():
        waiting, limit = server / "queue" / f"{name}.yaml", time.monotonic() + 20
        while not waiting.exists() and time.monotonic() < limit:
            time.sleep(0.01)
        time.sleep(0.3)  # the command looks at the server meanwhile
        if how == "failed":
            write_atomic(server / "failed" / f"{name}.txt", "got 1 of 3 sites\n")
        (server / how).mkdir(exist_ok=True)
        waiting.replace(server / how / f"{name}.yaml")

    thread = threading.Thread(target=end)
    thread.start()
    yield
    thread.join()


def test_a_study_is_put_into_the_server_s_queue_and_watched_to_its_end(server, tmp_path):
    path = write(tmp_path / "trial.yaml", DEPLOYED)
    with ends(server, "trial", "done"):
        result = called(path, "--server", tmp_path / "server.yaml")
    assert result.exception is None
    assert result.stdout.strip().endswith("server/runs/trial/report.html")
    assert "submitted: " in result.stderr
    assert "the server does not run; the study waits in its queue" in result.stderr
    assert parse(Study, yaml.safe_load((server / "done" / "trial.yaml").read_text()), where="test").name == "trial"
    assert "no table of the results: " in result.stderr  # this server has no results
    (server / "runs" / "trial").mkdir(parents=True)
    (server / "runs" / "trial" / "results.json").write_text(json.dumps(gain()))
    again = called(path, "--server", tmp_path / "server.yaml")
    assert "finished already" in again.stderr
    assert "CP-LoRA (rank 8)" in again.stderr
    assert again.stdout == result.stdout
    assert not (server / "queue" / "trial.yaml").exists()


def test_who_stops_watching_is_told_the_command_that_watches_again(server, tmp_path):
    write(tmp_path / "trial.yaml", DEPLOYED)
    process = start(tmp_path, "trial.yaml", "--server", "server.yaml")
    said = process.stderr.readline() + process.stderr.readline()
    assert "the server does not run; the study waits in its queue" in said
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.endswith("the study goes on at the server. Watch again: sahfl study trial.yaml --server server.yaml\n")


def test_a_study_that_failed_at_the_server_says_why_and_can_be_tried_again(server, tmp_path):
    path = write(tmp_path / "trial.yaml", DEPLOYED)
    for how in ("failed", "done"):
        with ends(server, "trial", how):
            result = called(path, "--server", tmp_path / "server.yaml")
        if how == "failed":
            assert isinstance(result.exception, RunFailed)
            assert str(result.exception) == "trial: got 1 of 3 sites"
    assert result.exception is None


def test_a_study_that_was_submitted_again_otherwise_is_not_failed_by_its_earlier_reason(server, tmp_path):
    path = write(tmp_path / "trial.yaml", DEPLOYED)
    write_atomic(server / "failed" / "trial.txt", "got 1 of 3 sites\n")
    Studies(server).submit(path)
    with ends(server, "trial", "done"):
        assert called(path, "--server", tmp_path / "server.yaml").exception is None


def test_a_refused_study_leaves_the_reason_of_its_earlier_failure(server, tmp_path):
    write_atomic(server / "failed" / "trial.txt", "got 1 of 3 sites\n")
    RunFolder.create(server / "runs" / "trial", parse(Study, changed(DEPLOYED, seed=99), where="test"))
    path = write(tmp_path / "trial.yaml", DEPLOYED)
    with pytest.raises(RunError, match="ran with other settings"):
        raise called(path, "--server", tmp_path / "server.yaml").exception
    assert (server / "failed" / "trial.txt").exists()


def test_a_study_with_a_revoked_site_is_refused_before_it_waits(server, tmp_path):
    revoke(tmp_path / "consortium", "tbi_b")
    path = write(tmp_path / "trial.yaml", DEPLOYED)
    with pytest.raises(ConfigError, match=r"study trial: names tbi_b, revoked; .* `sahfl renew`"):
        raise called(path, "--server", tmp_path / "server.yaml").exception
    assert not (server / "queue").exists()


@pytest.mark.parametrize("option", [("--out", "run"), ("--workers", "2"), ("--lanes", "2")])
def test_options_of_a_run_here_are_refused_with_a_server(server, tmp_path, option):
    path = write(tmp_path / "trial.yaml", DEPLOYED)
    with pytest.raises(ConfigError, match="leave them out with --server"):
        raise called(path, "--server", tmp_path / "server.yaml", *option).exception
    assert not (server / "queue").exists()


def test_another_study_of_the_same_name_in_the_queue_is_refused(server, tmp_path):
    path = write(tmp_path / "trial.yaml", DEPLOYED)
    (server / "queue").mkdir()
    write(server / "queue" / "trial.yaml", changed(DEPLOYED, seed=99))
    with pytest.raises(RunError, match="waits with other settings"):
        raise called(path, "--server", tmp_path / "server.yaml").exception


def test_what_the_server_does_is_one_line(server):
    begun = {"doing": "training", "round": 2, "rounds": 3, "attempt": 1, "waiting_for": ["sah_b"]}
    cells = {"cp_lora-r2/fold-1": begun, "zero_shot/fold-0": begun | {"doing": "evaluating", "waiting_for": []}}
    found = {"name": "trial", "stage": "fine-tuning and evaluation", "cells": cells, "waiting_for": []}
    status = {"schema": 3, "study": found}
    (server / "status.json").write_text(json.dumps(status))
    with running(server):
        line = "fine-tuning and evaluation; cp_lora-r2, fold 1: round 2 of 3; zero_shot, fold 0: evaluating"
        line += "; waiting for sah_b"
        assert command._doing("trial", server) == line
        assert command._doing("next", server) == "waits in the queue behind trial"


@contextmanager
def running(server):
    """Hold the lock that a server holds while it runs."""
    import fcntl

    with (server / "server.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
