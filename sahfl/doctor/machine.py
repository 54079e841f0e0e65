"""The machine itself: installed versions, disk, memory, clock, user, GPU."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import socket
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch
from packaging.requirements import Requirement

from sahfl import __version__
from sahfl.doctor.findings import Finding
from sahfl.environment import ignored_variables
from sahfl.errors import ConfigError
from sahfl.federation.site.device import choose_device
from sahfl.regular_files import LIST_BYTES, read_text

OLDEST_PYTHON = (3, 11)
GB = 1e9
LEAST_MEMORY_GB, EASY_MEMORY_GB = 1.0, 4.0
"""Below the first, no scan of 512 x 512 x 300 voxels can be read; below the second, a large network may not fit."""
CLOCK_UNSYNCHRONISED = 5
"""TIME_ERROR of adjtimex(2)."""


def examine_versions(requirements: Sequence[str] | None = None) -> Finding:
    """Check the installed versions against ``requirements``, by default those of the installed sahfl without extras."""
    wanted = metadata.requires("sahfl") or [] if requirements is None else requirements
    odd = [problem for text in wanted if (problem := _problem_of(Requirement(text)))]
    if sys.version_info < OLDEST_PYTHON:
        odd.insert(0, f"Python {platform.python_version()}, expected 3.11 or newer")
    if odd:
        remedy = "install this release again with its constraints.txt (README.md of client/ or server/)"
        return Finding.fail("versions", "; ".join(odd), remedy=remedy)
    installed = f"flwr {metadata.version('flwr')}, torch {torch.__version__}"
    return Finding.ok("versions", f"sahfl {__version__}, Python {platform.python_version()}, {installed}")


def examine_environment() -> Finding:
    """Check that no variable of the environment asks for other authorities, for proxies, or for the session keys."""
    if names := ignored_variables():
        remedy = "take them out of the environment of this service; it connects directly, and trusts its kit alone"
        return Finding.warn("environment", f"sets {', '.join(names)}, which sahfl ignores", remedy=remedy)
    return Finding.ok("environment", "sets no proxy, no other authority and no configuration of OpenSSL")


def _problem_of(wanted: Requirement) -> str | None:
    if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
        return None
    try:
        installed = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return f"{wanted.name} is not installed"
    if wanted.specifier.contains(installed, prereleases=True):
        return None
    return f"{wanted.name} {installed}, expected {wanted.specifier}"


def examine_user() -> Finding:
    """Check that the doctor does not run as root, whose permissions differ from the service's."""
    if os.geteuid() == 0:
        remedy = "run it as the service's user: sudo -u sahfl (or sahfl-server) sahfl doctor FILE"
        return Finding.warn("user", "root may read and write everything, so modes are not tested", remedy=remedy)
    return Finding.ok("user", f"uid {os.geteuid()}")


def examine_folder(folder: Path) -> Finding:
    """Check that the folder, or the one in which it will be made, can be written."""
    at = _nearest(folder)
    if not at.is_dir():
        return Finding.fail("folder", f"{at} is a file", remedy=f"name another folder than {folder}")
    if not os.access(at, os.W_OK | os.X_OK):
        remedy = f"let the service's user write it: chown it, or ReadWritePaths={at} in the unit"
        return Finding.fail("folder", f"{at} cannot be written", remedy=remedy)
    return Finding.ok("folder", f"{folder} can be {'written' if at == folder else 'made'}")


def examine_disk(folder: Path, *, least_bytes: float, easy_bytes: float, what: str, held_bytes: float = 0.0) -> Finding:
    """Check the free space on the disk of a folder, existing or not.

    Less than ``least_bytes`` is a failure, less than ``easy_bytes`` a warning; ``what`` (``a run takes``) needs the
    space, of which it has ``held_bytes`` already.
    """
    at = _nearest(folder)
    free = shutil.disk_usage(at).free
    there = f", {size_text(held_bytes)} of it are there" if held_bytes else ""
    found = f"{free / GB:.1f} GB free at {at}; {what} {least_bytes / GB:.1f} to {easy_bytes / GB:.1f} GB{there}"
    lacking = easy_bytes - held_bytes - free
    remedy = f"make {max(lacking, 0) / GB:.1f} GB of room, or set 'folder' to another disk"
    if free < least_bytes - held_bytes:
        return Finding.fail("disk", found, remedy=remedy)
    if lacking > 0:
        return Finding.warn("disk", found, remedy=remedy)
    return Finding.ok("disk", found)


def size_text(n_bytes: float) -> str:
    """``26 MB`` or ``1.3 GB``."""
    return f"{n_bytes / GB:.1f} GB" if n_bytes >= GB else f"{n_bytes / 1e6:.0f} MB"


def _nearest(folder: Path) -> Path:
    """The folder itself, or the nearest one above that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def examine_memory(meminfo: Path = Path("/proc/meminfo")) -> Finding:
    """Check that a large scan and a network fit into the free memory."""
    free = _available_gb(meminfo)
    if free is None:
        return Finding.warn("memory", f"{meminfo} is unreadable", remedy=f"see that {EASY_MEMORY_GB:.0f} GB are free")
    found = f"{free:.1f} GB free, {EASY_MEMORY_GB:.0f} GB are enough for large scans"
    if free < EASY_MEMORY_GB:
        remedy = "give this machine more memory, or end other programs"
        make = Finding.fail if free < LEAST_MEMORY_GB else Finding.warn
        return make("memory", found, remedy=remedy)
    return Finding.ok("memory", found)


def _available_gb(meminfo: Path) -> float | None:
    try:
        lines = dict(line.split(":", 1) for line in read_text(meminfo, most=LIST_BYTES).splitlines() if ":" in line)
        return int(lines["MemAvailable"].split()[0]) * 1024 / GB
    except (OSError, KeyError, ValueError, IndexError):
        return None


def examine_synchronisation() -> Finding:
    """Check that a time service synchronises the kernel's clock."""
    state = _clock_state()
    remedy = "timedatectl set-ntp true"
    if state is None or state < 0:
        return Finding.warn("ntp", "this system does not report whether its clock is synchronised", remedy=remedy)
    if state == CLOCK_UNSYNCHRONISED:
        return Finding.warn("ntp", "no time service synchronises this clock", remedy=remedy)
    return Finding.ok("ntp", "the kernel's clock is synchronised")


def _clock_state() -> int | None:
    """Return value of adjtimex(2), called without a change; None on systems without it (macOS, Windows)."""
    try:
        adjtimex = ctypes.CDLL(None).adjtimex
    except (AttributeError, OSError, TypeError):
        return None
    return int(adjtimex(ctypes.create_string_buffer(512)))  # struct timex, all zero: modes = 0


def examine_device(device: str) -> Finding:
    """Check that the device in the settings (CPU or GPU) exists and can compute."""
    try:
        chosen = choose_device(device)
    except ConfigError as error:
        build = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
        found = f"{str(error).partition(';')[0]}, and torch {torch.__version__} {build}"
        return Finding.fail("device", found, remedy="set device: cpu, or install the GPU's driver and a torch for it")
    if chosen.type == "cpu":
        return Finding.ok("device", f"{device}: cpu, {len(os.sched_getaffinity(0))} cores")
    free, total = torch.cuda.mem_get_info(chosen)
    name = torch.cuda.get_device_name(chosen)
    return Finding.ok("device", f"{device}: {name}, {free / GB:.1f} of {total / GB:.1f} GB free")


def addresses_of(name: str) -> set[str]:
    """Addresses of a name; none if it is unknown."""
    try:
        return {str(entry[4][0]) for entry in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return set()
