"""What is written is for its owner only, whatever the umask of whoever starts a program."""

import ast
import os
import stat
import subprocess
import sys

import pytest
import yaml
from harness.import_graph import FILES, ROOT
from harness.site_folders import as_nnunet
from harness.tiny_study import TINY, changed
from sahfl_client import main as client

import sahfl
from sahfl import cli
from sahfl.atomic import make_folder
from sahfl.data.phantom import CohortSpec, write_cohort
from sahfl.regular_files import open_to_append


@pytest.fixture(autouse=True)
def open_to_all():
    before = os.umask(0)
    yield
    os.umask(before)


def readable_by_others(folder):
    """Files and folders that others than their owner may read, write or enter."""
    found = [path for path in folder.rglob("*") if not path.is_symlink()]
    assert found
    return [path for path in found if stat.S_IMODE(path.stat().st_mode) & 0o077]


def test_folders_are_made_for_their_owner_each_of_them(tmp_path):
    make_folder(tmp_path / "a" / "b" / "c")
    assert readable_by_others(tmp_path) == []
    make_folder(tmp_path / "a" / "b" / "c")
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "a", new=True)
    (tmp_path / "file").touch(mode=0o600)
    with pytest.raises(OSError, match="file"):
        make_folder(tmp_path / "file" / "below")


def test_a_log_is_made_for_its_owner(tmp_path):
    open_to_append(tmp_path / "log").close()
    assert readable_by_others(tmp_path) == []


@pytest.mark.slow
def test_a_simulation_from_python_writes_nothing_that_others_can_read(tmp_path):
    sahfl.simulate(
        changed(TINY, pretrain__rounds=1, finetune__rounds=1), out=tmp_path / "run", workers=1, progress=False
    )
    assert (tmp_path / "run" / "results.json").is_file()
    assert {path.name for path in (tmp_path / "run" / "sites" / "sah_a").iterdir()} >= {"cache", "manifest.json"}
    assert readable_by_others(tmp_path) == []


@pytest.mark.slow
def test_a_program_writes_nothing_that_others_can_read(tmp_path):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(TINY))
    code = "import sys; sys.argv = sys.argv[1:]\nfrom sahfl.cli import main\nmain()"
    command = ["sahfl", "phantom", str(tmp_path / "new" / "scans"), "--study", str(tmp_path / "study.yaml")]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, umask=0)
    assert done.returncode == 0, done.stderr
    assert readable_by_others(tmp_path / "new") == []


def program(monkeypatch, main, *arguments):
    monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)


def test_no_command_of_a_site_writes_what_others_can_read_even_without_the_umask_of_the_programs(tmp_path, monkeypatch):
    write_cohort(tmp_path / "phantoms", CohortSpec("bern", "sah", "standard", 3, seed=1, shape=(40, 48, 8),
                                                   spacing_mm=(5.0, 5.0, 12.0)))  # fmt: skip
    scans, folder = as_nnunet(tmp_path / "phantoms", tmp_path / "raw"), tmp_path / "new"
    folder.mkdir(mode=0o700)
    monkeypatch.setattr(os, "umask", lambda mask: 0)
    site, study, consortium = (folder / f"{name}.yaml" for name in ("site", "study", "consortium"))
    program(monkeypatch, cli.main, "init", site, "--site-file", "--site", f"bern={scans}")
    program(monkeypatch, cli.main, "init", study, "--site", f"bern={scans}")
    program(monkeypatch, cli.main, "init", consortium, "--consortium", "--site", "bern")
    program(monkeypatch, cli.main, "check", site)
    program(monkeypatch, client.main, "accept-base", site, "e" * 64)
    program(monkeypatch, client.main, "new-secret", site)
    program(monkeypatch, client.main, "withdraw", site, "bern-0001")
    program(monkeypatch, client.main, site, "--dry-run")
    written = {path.name for path in (folder / "bern-site").iterdir()}
    assert written >= {"manifest.json", "audit.jsonl", "batches.key", "withdrawn.json", "daemon.lock"}
    assert readable_by_others(folder) == []


def test_what_leaves_a_provisioning_is_for_its_owner_only_too(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "umask", lambda mask: 0)
    (tmp_path / "consortium.yaml").write_text("name: test\nserver: {host: localhost}\nsites: [bern]\n")
    (tmp_path / "consortium.yaml").chmod(0o600)
    keys = tmp_path / "keys"
    program(monkeypatch, cli.main, "provision", tmp_path / "consortium.yaml", "--out", keys)
    program(monkeypatch, cli.main, "renew", "bern", "--folder", keys)
    program(monkeypatch, cli.main, "revoke", "bern", "--folder", keys)
    assert readable_by_others(keys) == []


def test_one_module_makes_folders():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("mkdir", "makedirs"):
                assert path.relative_to(ROOT).as_posix() == "sahfl/atomic.py"
