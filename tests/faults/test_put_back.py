"""A server whose folder was put back to an earlier time, while the sites remember what they answered since."""

import shutil

import pytest
from harness.commands import tensors
from harness.in_process import Stop
from harness.tiny_study import TINY, changed

from sahfl.errors import RunFailed

METHOD = {"method": "cp_lora", "rank": 2}


def study(rounds, **method):
    settings = changed(TINY, finetune__methods=[METHOD | method], finetune__rounds=rounds, pretrain__rounds=1)
    return changed(settings, common_random_numbers=False, finetune__sites=["sah_a", "sah_b"])


REAL = {"site": {"simulated": False}, "policy": {"bounded_starts": True}}
"""Sites that remember what they answered, and bound the starts of rounds, as hospitals do."""


def at_round(fold, round_):
    """A change that stops the server's process when a site answers a round."""

    def stop(site, request, reply):
        header = request.content["header"]
        if (header["stage"], header["fold"], header["round"]) == ("finetune", fold, round_):
            raise Stop
        return reply

    return stop


def put_back(run, earlier):
    """Put back all that the server has of a run, and nothing of its sites."""
    for path in run.iterdir():
        if path.name != "sites":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in earlier.iterdir():
        (shutil.copytree if path.is_dir() else shutil.copy)(path, run / path.name)


def put_back_in_the_middle(federate, tmp_path, settings, *, saved, lost):
    """A run that is stopped, saved, goes on, and is put back; returns its folder."""
    run, earlier = tmp_path / "run", tmp_path / "earlier"
    with pytest.raises(Stop):
        federate(settings, change=at_round(*saved), **REAL)
    shutil.copytree(run, earlier, ignore=shutil.ignore_patterns("sites"))
    with pytest.raises(Stop):
        federate(settings, change=at_round(*lost), **REAL)
    put_back(run, earlier)
    return run


def rounds(folder):
    return [line for line in folder.journal() if line["event"] == "round" and line["stage"] == "finetune"]


@pytest.mark.slow
def test_a_server_that_was_put_back_by_two_rounds_and_a_fold_ends_in_the_same_adapters(federate, tmp_path):
    settings = study(4)
    whole, _ = federate(settings, name="whole")
    put_back_in_the_middle(federate, tmp_path, settings, saved=(0, 3), lost=(1, 2))
    folder, _ = federate(settings, **REAL)
    assert not [line for line in rounds(folder) if line["refused"] or line["missing"]]
    assert tensors(folder.path) == tensors(whole.path)


@pytest.mark.slow
def test_a_training_whose_site_keeps_no_part_of_that_time_is_refused_until_it_begins_anew(federate, tmp_path):
    settings = study(6, private_rank=1)
    whole, _ = federate(settings, name="whole")
    run = put_back_in_the_middle(federate, tmp_path, settings, saved=(0, 3), lost=(1, 1))
    with pytest.raises(RunFailed, match=r"cp_lora-r2-private1/fold-0, round 3, .*PrivatePartLost"):
        federate(settings, **REAL)
    shutil.rmtree(run / "state" / "cp_lora-r2-private1" / "fold-0")  # as docs/keeping.md says
    folder, _ = federate(settings, **REAL)
    assert tensors(folder.path) == tensors(whole.path)
