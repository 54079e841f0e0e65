"""The command ``sahfl-client``: its help, its exit codes, its errors in one line, its dry run."""

import os
import subprocess
import sys
import tomllib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from flwr.app import RecordDict
from harness.live_site import consortium_of, write_site
from harness.tiny_study import TINY
from sahfl_client import main as command
from sahfl_client.daemon import load_kit, only_one

from sahfl.config import load_site
from sahfl.errors import BaseNotAccepted, ConfigError, StorageError
from sahfl.federation.site.answered import Answered
from sahfl.federation.site.audit import FILE, read_lines
from sahfl.federation.site.known_bases import require_accepted
from sahfl.federation.site.ledger import Ledger
from sahfl.federation.site.masked_once import note_summed
from sahfl.federation.site.secret import commitment, site_secret
from sahfl.federation.site.site import Site
from sahfl.masking.context import Context
from sahfl.payload import Header
from sahfl.trust.roster import load_roster


@pytest.fixture(scope="module")
def consortium(tmp_path_factory):
    return consortium_of(tmp_path_factory.mktemp("consortium"), ["sah_a", "sah_b"])


@pytest.fixture
def site_file(tmp_path, consortium):
    return write_site(tmp_path, TINY, "sah_a", consortium)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["sahfl-client", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        command.main()
    return ended.value.code


def test_the_command_is_installed_under_its_name():
    scripts = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts["sahfl-client"] == "sahfl_client.main:main"


def test_C10_telemetry_is_off_whatever_is_imported_first():
    code = (
        "import sahfl_client.daemon\n"
        "from flwr.supercore import telemetry\n"
        "import os; print(telemetry.FLWR_TELEMETRY_ENABLED, os.environ['FLWR_DISABLE_UPDATE_CHECK'])\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["0", "1"]


def test_the_process_that_waits_for_requests_loads_no_torch_and_no_scans():
    code = "import sys, sahfl_client.daemon; print({'torch', 'monai', 'nibabel'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"


def test_help_has_examples_for_serving_and_for_a_dry_run(monkeypatch, capsys):
    assert run(monkeypatch, "-h") == 0
    assert "forget-round" in capsys.readouterr().out
    assert run(monkeypatch, "serve", "-h") == 0
    shown = capsys.readouterr().out
    assert "Example: sahfl-client site.yaml" in shown
    assert "--dry-run" in shown


def error_of(monkeypatch, capsys, site_file, **changes):
    site_file.write_text(yaml.safe_dump(yaml.safe_load(site_file.read_text()) | changes))
    assert run(monkeypatch, site_file) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_a_site_without_a_kit_or_with_that_of_another_is_told_so(monkeypatch, capsys, site_file, consortium):
    line = error_of(monkeypatch, capsys, site_file, kit=None)
    text = "site sah_a: kit is missing; expected the folder that the coordinating centre sent"
    assert line == f"error: {site_file}, line {line_of(site_file, 'kit')}, kit: {text}"
    line = error_of(monkeypatch, capsys, site_file, kit=str(consortium.sites["sah_b"]))
    assert line.endswith("got the kit of site sah_b, expected that of sah_a; see name and kit")


def line_of(file, setting):
    """Number of the line of a setting at the top of a file."""
    return next(n for n, line in enumerate(file.read_text().splitlines(), 1) if line.startswith(f"{setting}:"))


def test_a_wrong_path_is_named_with_its_file_line_and_setting_by_every_command(
    monkeypatch, capsys, site_file, tmp_path
):
    line = error_of(monkeypatch, capsys, site_file, kit=str(tmp_path / "nowhere"))
    start = f"error: {site_file}, line {line_of(site_file, 'kit')}, kit: {tmp_path / 'nowhere'}/"
    assert line.startswith(start)
    settings = {"kit": None, "data": {"source": "folder", "path": str(tmp_path / "scans")}}
    site_file.write_text(yaml.safe_dump(yaml.safe_load(site_file.read_text()) | settings, sort_keys=True))
    at = line_of(site_file, "data") + 1
    assert run(monkeypatch, "withdraw", site_file, "sah_a-0001") == 2
    place = f"error: {site_file}, line {at}, data.path: site sah_a: {tmp_path / 'scans'}: got nothing (no such"
    assert place in capsys.readouterr().err
    (tmp_path / "file").touch()
    folder = {"folder": str(tmp_path / "file" / "site")}
    site_file.write_text(yaml.safe_dump(yaml.safe_load(site_file.read_text()) | folder))
    assert run(monkeypatch, "withdraw", site_file, "sah_a-0001") != 0
    start = f"error: {site_file}, line {line_of(site_file, 'folder')}, folder: {tmp_path / 'file' / 'site'}: cannot be"
    assert start in capsys.readouterr().err


def test_C10_a_key_that_others_can_read_is_refused(monkeypatch, capsys, tmp_path):
    consortium = consortium_of(tmp_path / "c", ["sah_a"])
    site_file = write_site(tmp_path, TINY, "sah_a", consortium)
    (consortium.sites["sah_a"] / "node.key").chmod(0o640)
    assert "node.key" in error_of(monkeypatch, capsys, site_file)


def test_wrong_settings_are_all_named(monkeypatch, capsys, site_file):
    line = error_of(monkeypatch, capsys, site_file, device="gpu", threads=0)
    assert "2 problems" in line


def test_a_study_without_a_dry_run_is_refused(monkeypatch, capsys, site_file):
    assert run(monkeypatch, site_file, "--study", site_file) == 2
    assert "--study is for --dry-run" in capsys.readouterr().err


def test_a_folder_belongs_to_one_process_and_is_free_after_it(tmp_path):
    folder = tmp_path / "site"
    with (
        only_one(folder),
        pytest.raises(ConfigError, match="another sahfl-client works in this folder"),
        only_one(folder),
    ):
        pass
    with only_one(folder):
        pass


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"), only_one(tmp_path / "file" / "site"):
        pass


def test_a_site_s_own_kit_is_taken(site_file):
    assert load_kit(load_site(site_file)).site == "sah_a"


def test_A15_a_kit_of_another_time_is_no_reason_not_to_start(tmp_path):
    then = datetime.now(UTC) - timedelta(days=500)
    consortium = consortium_of(tmp_path / "c", ["sah_a"], now=then)
    assert load_kit(load_site(write_site(tmp_path, TINY, "sah_a", consortium))).certificate_expires < datetime.now(UTC)


@pytest.mark.parametrize("with_study", [False, True])
def test_a_dry_run_says_what_would_leave_and_connects_to_nobody(monkeypatch, capsys, site_file, study_file, with_study):
    monkeypatch.setattr("socket.socket.connect", None)
    arguments = [site_file, "--dry-run", *(["--study", study_file] if with_study else [])]
    monkeypatch.setattr(sys, "argv", ["sahfl-client", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "What leaves site sah_a under its policy" in shown
    assert ("Study tiny, fingerprint" in shown) == with_study
    assert not (Path(yaml.safe_load(site_file.read_text())["folder"]) / "status.json").exists()


def test_a_round_is_released_by_its_name_and_the_audit_log_has_it(monkeypatch, capsys, site_file):
    config = load_site(site_file)
    header = Header("a" * 64, stage="finetune", method="cp_lora-r2", fold=0, round=2, base="")
    Answered(config, header.study).keep(header, bytes(32), RecordDict())
    assert run(monkeypatch, "forget-round", site_file, header.training, "3") == 2
    assert f"has answered no round 3 or later of '{header.training}'; nothing was changed" in capsys.readouterr().err
    assert run(monkeypatch, "forget-round", site_file, header.training, "2") == 0
    assert f"Released: 1 answered rounds of training {header.training}" in capsys.readouterr().out
    assert not Answered(config, header.study).took_part(header)
    (*_, line) = read_lines(config.folder / FILE)
    assert (line["event"], line["details"]) == (
        "round_released", {"training": header.training, "round": 2, "released": 1},
    )  # fmt: skip


def test_scans_are_released_for_sums_over_other_sites_and_the_audit_log_has_it(monkeypatch, capsys, site_file):
    config, sum_ = load_site(site_file), Context("a" * 64, "0" * 16, 0, "evaluation")
    header = Header("a" * 64, stage="finetune", method="zero_shot", fold=0, round=0, base="")
    assert run(monkeypatch, "forget-sums", site_file) == 2
    assert "no scan of this site is in a masked sum of an evaluation; nothing was changed" in capsys.readouterr().err
    note_summed(config, sum_, header, sites=["bern", "graz", "wels"], scans={"e" * 64, "d" * 64})
    assert run(monkeypatch, "forget-sums", site_file) == 0
    assert capsys.readouterr().out == "Released: 2 held-out scans, for masked sums over other sites.\n"
    (*_, line) = read_lines(config.folder / FILE)
    assert (line["event"], line["details"]) == ("sums_released", {"scans": 2})
    note_summed(config, sum_, header, sites=["bern", "graz", "thun"], scans={"e" * 64})


def test_a_base_network_is_listed_until_it_is_accepted_by_its_hash(monkeypatch, capsys, site_file):
    config = load_site(site_file)
    closed = config.model_copy(update={"policy": config.policy.model_copy(update={"bases": ()})})
    header = Header("a" * 64, stage="finetune", method="cp_lora-r2", fold=0, round=1, base="e" * 64)
    with pytest.raises(BaseNotAccepted):
        require_accepted(closed, header)

    def client(*arguments):
        assert run(monkeypatch, "accept-base", site_file, *arguments) == 0
        return capsys.readouterr().out

    assert client().startswith(f"{'e' * 64}  waits since ")
    assert client("e" * 64) == client("e" * 64) == f"accepted: base network {'e' * 64}\n"
    assert client("d" * 64) == f"accepted: base network {'d' * 64}; no request has named it yet\n"
    assert [line.split()[1] for line in client().splitlines()] == ["accepted", "accepted"]
    assert [line["event"] for line in read_lines(config.folder / FILE)] == ["base_accepted", "base_accepted"]
    require_accepted(closed, header)
    assert run(monkeypatch, "accept-base", site_file, "e" * 63) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
@pytest.mark.parametrize(
    "arguments",
    [
        ("accept-base", "e" * 64),
        ("accept-roster", "e" * 64),
        ("forget-round", "0" * 16, "1"),
        ("forget-sums",),
        ("withdraw", "p"),
    ],
)
def test_root_writes_nothing_into_the_folder_of_another_user(monkeypatch, capsys, site_file, arguments):
    folder = load_site(site_file).folder
    folder.mkdir(parents=True, exist_ok=True)
    os.chown(folder, 12345, 12345)
    before = sorted(folder.iterdir())
    name, *more = arguments
    assert run(monkeypatch, name, site_file, *more) == 2
    assert "call it as that user: sudo -u '#12345' sahfl-client" in capsys.readouterr().err
    assert sorted(folder.iterdir()) == before


def test_a_roster_is_shown_with_its_changes_until_it_is_accepted_by_its_hash(monkeypatch, capsys, site_file):
    config = load_site(site_file)
    roster = load_roster(config.kit)

    def client(*arguments, code=0):
        assert run(monkeypatch, "accept-roster", site_file, *arguments) == code
        return capsys.readouterr()

    shown = client().out.splitlines()
    assert shown[0] == f"roster {roster.sha256} waits"
    assert [line.split(",")[0] for line in shown[1:]] == ["new: sah_a", "new: sah_b"]
    assert f"has the hash {roster.sha256}" in client("0" * 64, code=2).err
    assert "expected the whole hash, 64 hex digits" in client(roster.sha256[:63], code=2).err
    assert client(roster.sha256).out == f"accepted: roster {roster.sha256}, 2 sites\n"
    assert client().out == f"in force: roster {roster.sha256}, 2 sites\n"
    assert [line["event"] for line in read_lines(config.folder / FILE)] == ["roster_accepted"]


def test_a_patient_is_withdrawn_while_the_service_is_stopped_and_the_studies_are_printed(
    monkeypatch, capsys, site_file
):
    config = load_site(site_file)
    Site(config).prepare(lambda done, total: None)
    first, *others = Site(config).known_cases()
    header = Header("a" * 64, stage="finetune", method="cp_lora-r2", fold=0, round=3, base="")
    for round_, scans in ((2, [first, *others]), (3, [first]), (4, others)):
        named = replace(header, round=round_)
        Ledger(config).reserve("round", named, f"{round_:064x}", [item.content for item in scans])
    with only_one(config.folder):
        assert run(monkeypatch, "withdraw", site_file, first.case.id) == 2
    assert "another sahfl-client works in this folder; stop it first" in capsys.readouterr().err
    assert run(monkeypatch, "withdraw", site_file, "nobody") == 2
    assert "have no patient or case of this name; sahfl check lists the cases" in capsys.readouterr().err
    assert run(monkeypatch, "withdraw", site_file, first.case.id) == 0
    out = capsys.readouterr().out
    assert out.startswith("withdrawn: one patient; scans: 1; files and results deleted: ")
    assert f"closed at this site: study {'a' * 64}\n  cp_lora-r2, fold 0: trained in rounds [2, 3]\n" in out
    assert [line.strip() for line in out.split("take these files out of the site's data:\n")[1].splitlines()] == [
        str(path) for path in sorted(first.case.files())
    ]


def test_a_new_secret_is_drawn_from_from_now_on_and_the_audit_log_has_it(monkeypatch, capsys, site_file):
    config = load_site(site_file).model_copy(update={"secret": None})
    site_file.write_text(yaml.safe_dump(yaml.safe_load(site_file.read_text()) | {"secret": None}))
    before = site_secret(config)
    assert run(monkeypatch, "new-secret", site_file) == 0
    assert capsys.readouterr().out == "batches are drawn from a new secret from now on\n"
    assert site_secret(config) != before
    (*_, line) = read_lines(config.folder / FILE)
    assert (line["event"], line["details"]) == ("secret_renewed", {"batches": commitment(config)})
