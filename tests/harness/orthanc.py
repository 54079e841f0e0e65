"""Orthanc, the archive of Debian (``apt install orthanc orthanc-dicomweb``), with storage of its own for a test."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

PLUGINS = ("/usr/share/orthanc/plugins/libOrthancDicomWeb.so", "/usr/lib/orthanc/libOrthancDicomWeb.so")
USER, PASSWORD = "sahfl", "Geheim:Wort-9"


def missing() -> str:
    """Why Orthanc cannot be used here; empty if it can."""
    if shutil.which("Orthanc") is None:
        return "Orthanc is not installed (apt install orthanc orthanc-dicomweb)"
    return "" if any(Path(path).exists() for path in PLUGINS) else "orthanc-dicomweb is not installed"


@contextmanager
def running(folder: Path) -> Iterator[httpx.Client]:
    """An archive on a free port; the client speaks its own REST interface, and has the archive's address."""
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    plugin = next(path for path in PLUGINS if Path(path).exists())
    settings = {
        "Name": "test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [plugin],
        "DicomServerEnabled": False,
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: PASSWORD},
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(["Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", auth=(USER, PASSWORD), trust_env=False) as client:
                _wait(client, process)
                yield client
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        try:
            if client.get("/dicom-web/studies").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise RuntimeError("Orthanc did not start; its log lies beside its settings")


def upload(client: httpx.Client, folder: Path) -> None:
    """Store all files below a folder."""
    for path in sorted(folder.rglob("*.dcm")):
        client.post("/instances", content=path.read_bytes()).raise_for_status()


def datasets(client: httpx.Client, modality: str) -> list[bytes]:
    """Files of all instances of a modality, as the archive has them."""
    found = client.post("/tools/find", json={"Level": "Series", "Query": {"Modality": modality}, "Expand": True}).json()
    return [client.get(f"/instances/{one}/file").content for series in found for one in series["Instances"]]
