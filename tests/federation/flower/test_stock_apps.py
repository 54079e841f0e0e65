"""The two apps as stock Flower starts them: settings, the site's file, the bundle; without its processes."""

import json
import logging
import tomllib
import zipfile
from io import BytesIO

import pytest
import torch
import yaml
from flwr.app import Context, Error, Message, RecordDict
from flwr.cli.build import build_fab_from_disk
from harness.in_process import InProcessGrid
from harness.stock_flower import PROJECT
from harness.tiny_study import TINY, changed

from sahfl.config import SiteConfig, SitePolicy, Study, parse
from sahfl.data.sources.datalist import SiteScansDatalist
from sahfl.errors import ConfigError, RunError, RunFailed
from sahfl.events import Warned, listening
from sahfl.federation import flower, protocol
from sahfl.federation.server.app import app, session
from sahfl.federation.server.mailbox import NOT_ACCEPTED, Ask, Mailbox
from sahfl.federation.server.replies import reason_of
from sahfl.federation.site.app import SiteFailure
from sahfl.federation.site.app import app as client_app
from sahfl.payload import Header
from sahfl.run.folder import RunFolder
from sahfl.task import Task


@pytest.fixture(autouse=True)
def quiet():
    """The apps let sahfl's log be printed; undo that, and compute with one thread."""
    torch.set_num_threads(1)
    logger = logging.getLogger("sahfl")
    before = (list(logger.handlers), logger.level)
    yield
    logger.handlers, _ = before[0], logger.setLevel(before[1])


def settings_of(tmp_path, grid, **changes):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(TINY))
    nodes = {node: site.name for node, site in grid.nodes.items()}
    settings = {"run-folder": str(tmp_path / "run"), "study": str(tmp_path / "study.yaml"), "nodes": json.dumps(nodes)}
    return settings | changes


@pytest.fixture
def grid(tmp_path):
    return InProcessGrid(parse(Study, TINY, where="test"), tmp_path / "sites")


def start(grid, settings):
    app(grid, Context(grid.run_id, 0, {}, RecordDict(), settings))


# --- the bundle -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # flwr 1.42 asks pathspec for it by name
def test_the_bundle_holds_settings_and_the_readme_and_no_code():
    names = zipfile.ZipFile(BytesIO(build_fab_from_disk(PROJECT))).namelist()
    assert sorted(names) == [".info/CONTENT", "README.md", "pyproject.toml"]


def test_the_bundle_names_the_apps_of_the_installed_package_and_every_setting_of_a_run():
    section = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert section["components"] == {
        "serverapp": "sahfl.federation.server.app:app",
        "clientapp": "sahfl.federation.site.app:app",
    }
    assert section["config"] == {"run-folder": "", "study": "", "nodes": "{}", "signing-key": ""}


# --- the server's app -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_server_s_app_starts_a_run_from_a_study_file_and_continues_it_the_next_time(tmp_path, grid):
    settings = settings_of(tmp_path, grid)
    start(grid, settings)
    folder = RunFolder(tmp_path / "run")
    assert (folder.path / "report.html").is_file()
    n_rounds = len([line for line in folder.journal() if line["event"] == "round"])
    start(grid, settings | {"study": ""})
    journal = folder.journal()
    assert len([line for line in journal if line["event"] == "round"]) == n_rounds
    assert [line["after"] for line in journal if line["event"] == "resumed"] == ["finished"]


@pytest.mark.slow
def test_the_log_of_the_server_s_app_tells_each_round(tmp_path, grid, caplog):
    with caplog.at_level(logging.INFO, logger="sahfl"):
        start(grid, settings_of(tmp_path, grid))
    said = [record.getMessage() for record in caplog.records if record.name == "sahfl.federation.server.app"]
    assert sum(line.startswith("event=committed cell=") for line in said) == 2 + 2 * 2


WRONG = {
    "no-folder": ({"run-folder": ""}, ConfigError, "run-folder: is empty"),
    "no-study": ({"study": ""}, ConfigError, "study: is empty and .* holds no run"),
    "no-file": ({"study": "/nowhere/study.yaml"}, ConfigError, "/nowhere/study.yaml"),
    "no-json": ({"nodes": "7=bern"}, ConfigError, r"nodes: got '7=bern', expected JSON \{node id: site name\}"),
    "no-ids": ({"nodes": '{"bern": 7}'}, ConfigError, "expected JSON"),
    "no-nodes": ({"nodes": "{}"}, ConfigError, r"nodes: got 0 node\(s\)"),
    "one-site-twice": ({"nodes": '{"7": "bern", "8": "bern"}'}, ConfigError, "each site once"),
}


@pytest.mark.parametrize(("changes", "kind", "text"), WRONG.values(), ids=WRONG.keys())
def test_wrong_settings_of_a_run_are_named(tmp_path, grid, changes, kind, text):
    with pytest.raises(kind, match=text):
        start(grid, settings_of(tmp_path, grid, **changes))
    assert not (tmp_path / "run").exists()


def test_a_folder_with_the_run_of_another_study_is_refused(tmp_path, grid):
    RunFolder.create(tmp_path / "run", parse(Study, changed(TINY, seed=4), where="test"))
    with pytest.raises(RunError, match="holds the run of another study than"):
        start(grid, settings_of(tmp_path, grid))


def test_a_failed_run_raises_and_says_so_in_its_journal(tmp_path):
    grid = InProcessGrid(parse(Study, TINY, where="test"), tmp_path / "sites", lambda site, request, reply: None)
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(changed(TINY, rounds__deadline_s=0.1)))
    with pytest.raises(RunFailed, match="got 0 of 2 sites"):
        start(grid, settings_of(tmp_path, grid, study=str(tmp_path / "short.yaml")))
    assert RunFolder(tmp_path / "run").journal()[-1]["event"] == "failed"


@pytest.mark.parametrize(
    ("raised", "events"),
    [(SystemExit, ["interrupted"]), (KeyboardInterrupt, ["interrupted"]), (RunFailed, ["failed"]), (ValueError, [])],
)
def test_the_journal_tells_how_a_session_ended_and_the_next_one_may_begin(tmp_path, raised, events):
    folder = RunFolder.create(tmp_path / "run", parse(Study, TINY, where="test"))

    def work():
        with session(folder):
            with pytest.raises(RunError, match="another process works on this run"), session(folder):
                pass
            raise raised("why")

    with pytest.raises(raised):
        work()
    assert [line["event"] for line in folder.journal()] == events
    with session(folder):
        pass


# --- the site's app ---------------------------------------------------------------------------------------------------


def ask(node_config):
    flower.enter_run(42)
    study = parse(Study, TINY, where="test")
    task = Task(stage="finetune", seed=study.seed, views=study.views, model=study.model, folds=2)
    header = Header(study.fingerprint(), stage="finetune", method="describe", fold=-1, round=0, base="")
    message = flower.new_message(protocol.request(task, header, {}), 7, protocol.DESCRIBE, "", None)
    flower.give_id(message)
    return client_app(message, Context(42, 7, node_config, RecordDict(), {}))


def site_file(tmp_path, **changes):
    site = {
        "name": "bern",
        "folder": "work",
        "data": {
            "source": "phantom",
            "seed": 3,
            "shape": TINY["data"]["shape"],
            "spacing_mm": TINY["data"]["spacing_mm"],
            "patients": {"kind": "sah", "n_cases": 2},
        },
    }
    site["policy"] = {"require_signature": False}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(site | changes))
    return str(tmp_path / "site.yaml")


def test_the_site_s_app_reads_the_site_from_the_file_that_its_own_supernode_names(tmp_path):
    reply = ask({"site-file": site_file(tmp_path)})
    description = protocol.read_description(reply.content)
    assert (description.site, description.n_volumes) == ("bern", 2)
    assert (tmp_path / "work" / "manifest.json").is_file()


def test_without_a_site_the_log_says_what_to_add_and_the_server_hears_the_name_of_the_error(caplog):
    with pytest.raises(SiteFailure, match=r"^ConfigError$"):
        ask({})
    assert "flower-supernode: no site is named; add --node-config" in caplog.text


def test_a_wrong_site_file_is_told_in_the_log_alone(tmp_path, caplog):
    with pytest.raises(SiteFailure, match=r"^ConfigError$"):
        ask({"site-file": site_file(tmp_path, max_refused_share=2.0)})
    assert "max_refused_share" in caplog.text


@pytest.mark.parametrize("simulated", [True, False])
def test_the_text_of_an_error_is_shown_in_a_simulation_alone(tmp_path, simulated):
    scans = SiteScansDatalist(source="datalist", path=tmp_path / "nothing.json")
    config = SiteConfig(
        name="bern",
        folder=tmp_path / "work",
        data=scans,
        simulated=simulated,
        policy=SitePolicy(require_signature=False),
    )
    heard = []
    with pytest.raises(SiteFailure, match=r"^DataError$"), listening(heard.append):
        ask({"site": config.model_dump_json()})
    shown = [event.text for event in heard if isinstance(event, Warned)]
    assert [text.startswith("bern: ") and "nothing.json" in text for text in shown] == [True] * simulated


# --- replies ----------------------------------------------------------------------------------------------------------


def test_what_a_stock_supernode_wraps_around_an_error_is_taken_off():
    flower.enter_run(42)
    request = flower.new_message(RecordDict(), 7, "train", "", None)
    flower.give_id(request)
    wrapped = str(SiteFailure) + ":<'DataRefused'>"
    assert wrapped == "<class 'sahfl.federation.site.app.SiteFailure'>:<'DataRefused'>"
    for said in (wrapped, "DataRefused"):
        reply = Message(Error(2, said), reply_to=request)
        assert reason_of(reply, 1.0) == "error at the site: DataRefused (details in the site's log)"


@pytest.mark.parametrize("code", [3, 4, 5], ids=["message", "reply", "node"])
def test_what_the_superlink_itself_says_of_a_node_is_not_taken_for_the_site_s_error(code):
    flower.enter_run(42)
    request = flower.new_message(RecordDict(), 7, "train", "", None)
    flower.give_id(request)
    assert reason_of(Message(Error(code, "gone"), reply_to=request), 1.0) == "gone"


class Post(InProcessGrid):
    """Accepts what a stock SuperLink would: no node that it does not know, and nothing if a message is too large."""

    def __init__(self, ids):
        self.ids = ids

    def push_messages(self, messages):
        return self.ids

    def pull_messages(self, message_ids):
        return []


@pytest.mark.parametrize("ids", [["", ""], []], ids=["unknown-nodes", "too-large"])
def test_a_message_that_is_not_accepted_is_that_site_s_error_at_once(ids):
    flower.enter_run(42)
    contents = dict.fromkeys(("bern", "graz"), RecordDict())
    answers = Mailbox(Post(ids)).exchange(Ask(contents, "train", {"bern": 5, "graz": 6}, 600.0))
    reasons = [reason_of(answers.replies[site], 600.0) for site in ("bern", "graz")]
    assert reasons == [NOT_ACCEPTED] * 2
