"""The kinds of settings files, telling them apart, and reading a study file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from sahfl.adapters import digest
from sahfl.adapters.files import load_tensors
from sahfl.config.consortium import Consortium
from sahfl.config.server import ServerConfig
from sahfl.config.site import SiteFile
from sahfl.config.stages import LoadedBase
from sahfl.config.study import Study
from sahfl.errors import AdapterError, ConfigError
from sahfl.section import Section
from sahfl.settings_file import about_setting, naming_lines, parse, read_settings

Kind = Literal["study", "site", "server", "consortium"]
KINDS: dict[Kind, type[Section]] = {
    "study": Study,
    "site": SiteFile,
    "server": ServerConfig,
    "consortium": Consortium,
}
"""What each kind of settings file is read as."""


def kind_of(path: Path) -> Kind:
    """The kind of a settings file, by its keys; ConfigError if it cannot be read or has another content."""
    keys = read_settings(path).content.keys()
    study, site = keys & {"pretrain", "finetune"}, keys & {"folder", "max_refused_share", "policy", "kit"}
    consortium = keys & {"server", "sites", "valid_days"}
    if {"kit", "folder"} <= keys and "name" not in keys:
        return "server"
    if study and not site:
        return "study"
    if site and not study:
        return "site"
    if consortium and not study and not site:
        return "consortium"
    raise ConfigError(
        f"{path}: is neither a study file (name, data, pretrain, finetune), nor a site file (name, folder, data), nor "
        "a server file (kit, folder, port), nor a consortium file (name, server, sites); see configs/demo.yaml, "
        "configs/site.example.yaml, configs/server.example.yaml and configs/consortium.example.yaml"
    )


def load_study(path: Path, *, datalist: Path | None = None) -> Study:
    """Read a study file, as ``settings_file.load``; the hash of its base network is that of the file, if none is given.

    Args:
        path: the study file.
        datalist: takes the place of ``data.path`` in it.

    Raises:
        ConfigError: as ``settings_file.load``, or the base network cannot be read or has another hash.
    """
    file = read_settings(path)
    data = file.content.get("data")
    if datalist is not None:
        if not isinstance(data, dict) or data.get("source") != "datalist":
            raise ConfigError(f"{path}: a datalist was named; it needs a study whose data.source is 'datalist'")
        data["path"] = os.path.realpath(datalist)
    study = parse(Study, file.content, where=str(path), folder=path.parent, lines=file.lines)
    with naming_lines(path):
        return with_base_hash(study)


def with_base_hash(study: Study) -> Study:
    """The study with the hash of its base network's file; ConfigError as for ``load_study``."""
    with about_setting("base"):
        return study.model_copy(update={"base": _with_hash(study, study.base)})


def _with_hash(study: Study, base: LoadedBase | str | None) -> LoadedBase | str | None:
    """The base with the hash of its file; a hospital that looks at a study has the hash and not the file."""
    if not isinstance(base, LoadedBase):
        return base
    if not base.path.exists() and base.content_sha256 and study.data.source == "sites":
        return base
    if base.content_sha256 is None and study.data.source == "sites":
        raise ConfigError("content_sha256 is missing; sahfl check of a study on this machine prints it")
    try:
        found = digest(load_tensors(base.path)[0])
    except AdapterError as error:
        raise ConfigError(f"{error}; expected base/base.safetensors of a finished run") from error
    if base.content_sha256 not in (None, found):
        expected = f"expected content_sha256 {base.content_sha256}"
        raise ConfigError(f"{base.path} has the hash {found}, {expected}; correct one of them")
    return base.model_copy(update={"content_sha256": found})
