"""Fuzzed settings files, startup kits, and the notes of an authority."""

import shutil
from pathlib import Path

import yaml

from harness.fuzz.outcome import Reader
from harness.tiny_study import TINY
from harness.trust_kits import make_consortium
from sahfl.config import load_consortium, load_server, load_site, load_study
from sahfl.trust.kit import ServerKit, SiteKit
from sahfl.trust.records import KitNote, Record, read_note

CONFIGS = Path(__file__).parents[3] / "configs"
LOADERS = {"study": load_study, "site": load_site, "server": load_server, "consortium": load_consortium}


def settings(folder: Path) -> Reader:
    """The four kinds of settings files."""
    (folder / "study.yaml").write_text(yaml.safe_dump(TINY))
    for kind in ("site", "server", "consortium"):
        shutil.copy(CONFIGS / f"{kind}.example.yaml", folder / f"{kind}.yaml")
    return Reader.of_folder(folder, lambda name: LOADERS[Path(name).stem](folder / name))


def kit(folder: Path) -> Reader:
    """The kit of a site, as the site reads it before it connects."""
    kit = make_consortium(folder, sites=("bern",), port=8443).sites["bern"]

    def read(name: str) -> None:
        if name == "kit.json":  # its signature would refuse every change before anything is read
            read_note(KitNote, kit / name)
        SiteKit.load(kit).tls()

    names = ("kit.json", "kit.sig", "ca.crt", "client.crt", "client.key", "node.key")
    return Reader.of_folder(kit, read, *names)


def server_kit(folder: Path) -> Reader:
    """The folder of a server, and the record of the authority."""
    paths = make_consortium(folder, sites=("bern", "graz"), port=8443)

    def read(name: str) -> None:
        if name.startswith("authority"):
            read_note(Record, paths.folder / name).site_list()
        else:
            ServerKit.load(paths.server).tls()

    names = ("sites.json", "revoked.crl", "server.crt", "server.key", "signing.key", "ca.crt")
    return Reader.of_folder(paths.folder, read, "authority/issued.json", *(f"server/{name}" for name in names))
