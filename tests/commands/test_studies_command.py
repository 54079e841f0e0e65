"""``sahfl study list, cancel, archive``: what becomes of studies, on this machine and at a server."""

import fcntl
import json

import pytest
import yaml
from harness.deployed import SMALL, Deployment, sahfl_command, wait_for
from harness.tiny_study import TINY, changed

from sahfl.config import Study, parse
from sahfl.federation.server.studies import Studies
from sahfl.run.folder import RunFolder

STUDY = parse(Study, TINY, where="test")


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Three runs in the folder ``runs``: one finished, one interrupted, one at work."""
    monkeypatch.chdir(tmp_path)
    for name in ("done", "stopped", "working"):
        RunFolder.create(tmp_path / "runs" / name, STUDY)
    (tmp_path / "runs" / "done" / "results.json").write_text("{}")
    (tmp_path / "runs" / "done" / "report.html").write_text("page")
    (tmp_path / "runs" / "cells").mkdir()
    with (tmp_path / "runs" / "working" / "run.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield tmp_path / "runs"


def test_the_runs_of_this_machine_are_listed_with_their_state_and_report(sahfl, runs):
    code, out, err = sahfl("study", "list", "--json")
    assert code == 0, err
    found = {row["run"]: (row["study"], row["state"], row["report"]) for row in json.loads(out)}
    assert found == {
        "done": ("tiny", "finished", "runs/done/report.html"),
        "stopped": ("tiny", "interrupted", None),
        "working": ("tiny", "running", None),
    }
    _, out, _ = sahfl("study", "list")
    assert "interrupted" in out
    assert "runs/done/report.html" in out


def test_a_folder_without_runs_is_named(sahfl, tmp_path):
    assert sahfl("study", "list", "--runs", tmp_path)[:2] == (0, f"no study in {tmp_path}\n")


def test_a_run_is_archived_unless_a_process_works_on_it(sahfl, runs):
    code, out, _ = sahfl("study", "archive", "done")
    assert (code, out) == (0, "runs/archive/done\n")
    assert (runs / "archive" / "done" / "report.html").is_file()
    assert not (runs / "done").exists()
    code, _, err = sahfl("study", "archive", "working")
    assert code == 2
    assert "runs/working: a process works on it; stop it with Ctrl-C first" in err
    code, _, err = sahfl("study", "archive", "done")
    assert code == 2
    assert "runs/done: is no run (in runs: " in err
    assert "stopped" in err


def test_names_with_brackets_are_listed_as_they_are(sahfl, runs):
    (runs / "done").rename(runs / "[red]")
    settings = json.loads((runs / "stopped" / "study.json").read_text())
    (runs / "stopped" / "study.json").write_text(json.dumps(settings | {"name": "a [/] b"}))
    code, out, err = sahfl("study", "list")
    assert code == 0, err
    assert "[red]" in out
    assert "a [/] b" in out
    assert sahfl("study", "list", "--runs", "[/]") == (0, "no study in [/]\n", "")


@pytest.mark.parametrize("name", ["../runs/stopped", "archive/done", ".", "archive"])
def test_a_name_that_leads_out_of_the_folder_of_runs_is_no_run(sahfl, runs, name):
    (runs / "archive").mkdir()
    (runs / "archive" / "study.json").write_text("{}")
    code, _, err = sahfl("study", "archive", name)
    assert code == 2
    assert "is no run" in err


@pytest.mark.parametrize("settings", ["[]", "{", '{"name": "a"}'])
def test_a_withdrawal_names_the_run_whose_settings_are_damaged(sahfl, runs, settings):
    (runs / "stopped" / "study.json").write_text(settings)
    code, out, err = sahfl("study", "withdraw", "sah_a")
    assert (code, out) == (2, "")
    assert err.startswith(
        "error: runs/stopped/study.json: is damaged, so that what the run has of a site is not known;"
    )


def test_the_studies_of_a_server_are_listed_cancelled_and_archived(sahfl, tmp_path):
    for name in ("kit", "state"):
        (tmp_path / name).mkdir()
    (tmp_path / "server.yaml").write_text("kit: kit\nfolder: state\n")
    for name in "ab":
        settings = changed(TINY, name=name, data={"source": "sites"}, rounds__unmasked=True)
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(settings))
        Studies(tmp_path / "state").submit(tmp_path / "study.yaml")
    server = ("--server", tmp_path / "server.yaml")
    assert sahfl("study", "cancel", "a", *server)[:2] == (0, f"{tmp_path / 'state' / 'failed' / 'a.yaml'}\n")
    _, out, _ = sahfl("study", "list", "--json", *server)
    assert [(row["study"], row["state"]) for row in json.loads(out)] == [
        ("b", "waits in the queue"),
        ("a", "failed: cancelled; submit it again to go on"),
    ]
    code, out, _ = sahfl("study", "archive", "a", *server)
    assert code == 0
    assert out.startswith(f"{tmp_path / 'state' / 'archive' / 'a-'}")
    assert [row["study"] for row in json.loads(sahfl("study", "list", "--json", *server)[1])] == ["b"]
    assert sahfl("study", "cancel", "a", *server)[0] == 2


@pytest.mark.slow
def test_a_running_study_that_is_cancelled_stops_and_goes_on_when_it_is_submitted_again(tmp_path):
    sites = ("tbi_a", "sah_a")
    study = changed(SMALL, pretrain__sites=["tbi_a"], pretrain__rounds=200, finetune__sites=["sah_a"])
    with Deployment(tmp_path, sites=sites, study=study) as deployment:
        run = deployment.submit()
        server = deployment.server()
        for site in sites:
            deployment.site(site)
        server.wait_for_line("event=committed ", count=3)
        cancelled = sahfl_command("study", "cancel", "tiny", "--server", deployment.server_file)
        assert cancelled.returncode == 0, cancelled.stderr
        server.wait_for_line("event=study_cancelled study=tiny")
        wait_for(lambda: deployment.status()["study"] is None)
        committed = server.log.count("event=committed ")
        assert not (run / "results.json").exists()
        deployment.submit()
        server.wait_for_line("event=committed ", count=committed + 1)
        journal = map(json.loads, (run / "journal.jsonl").read_text().splitlines())
        assert [line["event"] for line in journal].count("round") > committed


def test_what_a_site_had_a_part_in_is_named_also_in_archived_runs_and_a_wrong_name_is_refused(sahfl, runs):
    used = [{"site": "sah_a", "n_volumes": 3}]
    line = {"event": "round", "stage": "finetune", "method": "cp_lora-r2", "fold": 1, "round": 1, "committed": True}
    for name in ("done", "stopped"):
        RunFolder(runs / name).note(line | {"used": used})
    assert sahfl("study", "archive", "done")[0] == 0
    code, out, err = sahfl("study", "withdraw", "sah_a")
    assert code == 0, err
    named = f"study tiny, fingerprint {STUDY.fingerprint()}\n  trained: cp_lora-r2/fold-1\n  evaluated: nothing\n"
    assert out == f"runs/archive/done: {named}runs/stopped: {named}deleted: 0 kept cells with data of sah_a\n"
    code, _, err = sahfl("study", "withdraw", "sah_x")
    assert (code, err.strip()) == (2, "error: sah_x: no run in runs has anything of a site of this name")
