"""A federation inside one process, for tests that look at every message or change one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid

from harness.tiny_study import TINY
from sahfl.config import SiteConfig, Study, parse
from sahfl.federation import flower
from sahfl.federation.server.coordinator import Coordinator
from sahfl.federation.site.site import Site
from sahfl.run.folder import RunFolder
from sahfl.simulation.apps import simulated_app
from sahfl.simulation.simulate import site_configs
from sahfl.trust.signing import Signer

Change = Callable[[str, Message, Message], Message | None]
"""(site, request, reply) -> the reply that arrives, or None for no reply."""


class Stop(Exception):
    """Stands for a crash of the server's process."""


def stop_at(nth: int) -> Change:
    """A change that stops the server's process at the n-th message."""
    numbers = count(1)

    def stop(site: str, request: Message, reply: Message) -> Message:
        if next(numbers) == nth:
            raise Stop
        return reply

    return stop


class InProcessGrid(Grid):
    """Answers every message at once with the site's real app, and remembers both."""

    def __init__(self, study: Study, folder: Path, change: Change = lambda site, request, reply: reply) -> None:
        self.nodes = {7 + index: site for index, site in enumerate(site_configs(study, folder))}
        self.run_id = flower.new_run_id()
        self.seen: list[tuple[str, Message, Message]] = []
        self._change, self._hostile = change, study.hostile
        self._replies: dict[str, Message] = {}
        self.before: Callable[[str, Message], None] = lambda site, request: None
        """Changes a request on its way to a site, as a hostile server."""
        flower.enter_run(self.run_id)

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        return flower.new_message(content, dst_node_id, message_type, group_id, ttl)

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            self.before(self.nodes[message.metadata.dst_node_id].name, message)
            ids.append(flower.give_id(message))
            site = self.nodes[message.metadata.dst_node_id]
            context = Context(self.run_id, 0, {"site": site.model_dump_json()}, RecordDict(), {})
            try:
                reply = simulated_app(site, hostile=self._hostile)(message, context)
            except Exception as error:
                reply = flower.error_reply(message, str(error))
            self.seen.append((site.name, message, reply))
            if (arrived := self._change(site.name, message, reply)) is not None:
                self._replies[ids[-1]] = arrived
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._replies.pop(id_) for id_ in list(message_ids) if id_ in self._replies]

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError


Federate = Callable[..., tuple[RunFolder, InProcessGrid]]


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny study's phantom patients, made once."""
    folder = tmp_path_factory.mktemp("scans")
    for site in site_configs(parse(Study, TINY, where="test"), folder):
        Site(site).prepare(lambda done, total: None)
    return folder


def federation_in(parent: Path, scans: Path) -> Federate:
    """A function that runs a study of settings to its end; the second call in the same folder resumes.

    ``spoil(folder)`` changes the scans of a new run before it starts, ``policy`` what the sites allow, ``site`` the
    rest of their settings (or what gives it for each); the server signs what it sends with ``signer``, works on
    ``lanes`` cells at a time, and takes finished ones from the folder ``cells``.
    """
    torch.set_num_threads(1)

    def run(
        settings: dict[str, Any],
        *,
        change: Change = lambda site, request, reply: reply,
        name: str = "run",
        spoil: Callable[[Path], None] = lambda folder: None,
        policy: dict[str, Any] | None = None,
        site: dict[str, Any] | Callable[[SiteConfig], dict[str, Any]] | None = None,
        signer: Signer | None = None,
        lanes: int = 1,
        cells: Path | None = None,
    ):
        study = parse(Study, settings, where="test")
        path = parent / name
        if path.exists():
            folder = RunFolder.reopen(path)
        else:
            folder = RunFolder.create(path, study)
            for known in scans.iterdir():
                shutil.copytree(known / "scans", path / "sites" / known.name / "scans")
            spoil(path)
        grid = InProcessGrid(study, path / "sites", change)
        for node, config in grid.nodes.items():
            allowed = config.policy.model_copy(update=policy or {})
            more = site(config) if callable(site) else site or {}
            grid.nodes[node] = config.model_copy(update={"policy": allowed} | more)
        nodes = {node: config.name for node, config in grid.nodes.items()}
        Coordinator(grid, folder, nodes, signer, lanes=lanes, cells=cells).run()
        return folder, grid

    return run


@pytest.fixture
def federate(tmp_path: Path, scans: Path) -> Federate:
    """Studies in a folder of the test's own."""
    return federation_in(tmp_path, scans)


@pytest.fixture(scope="module")
def federate_once(tmp_path_factory: pytest.TempPathFactory, scans: Path) -> Federate:
    """Studies that the tests of a module share; they only read the folders."""
    return federation_in(tmp_path_factory.mktemp("shared"), scans)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, scans: Path) -> tuple[RunFolder, InProcessGrid]:
    """The tiny study, run once to its end; tests only read its folder and its messages."""
    return federation_in(tmp_path_factory.mktemp("whole"), scans)(TINY)
