"""A systemd of its own for a test: PID 1 of new namespaces, with the two units installed as the READMEs say."""

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
SYSTEMD = Path("/usr/lib/systemd")
TOOLS = ("unshare", "nsenter", "mount", "umount", "ip", "systemctl", "journalctl")
USERS = {"sahfl": 901, "sahfl-server": 902}
TARGETS = ("sysinit", "basic", "multi-user", "shutdown", "network-online", "time-sync", "sockets")
JOURNAL = ("systemd-journald.service", "systemd-journald.socket", "systemd-journald-dev-log.socket")
PATHS = {"SYSTEMD_UNIT_PATH": "/etc/systemd/system:/run/units", "SYSTEMD_GENERATOR_PATH": "/run/none"}
BOOT = """
set -e
mount --make-rprivate /
mount -t proc proc /proc
umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p {folder}/opt/python {folder}/opt/packages {folder}/opt/source
mount --bind {base} {folder}/opt/python
mount --bind {packages} {folder}/opt/packages
mount --bind {source} {folder}/opt/source
mount --rbind {folder}/opt /opt
mount --bind {folder}/etc /etc
mount --bind {folder}/lib /var/lib
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system /run/lock
cp -r {folder}/units /run/units
ip link set lo up
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=test {paths} {systemd}/systemd --log-target=null
"""
PROGRAM = """#!/bin/sh
PYTHONPATH=/opt/source:/opt/source/server:/opt/source/client:/opt/packages
LD_LIBRARY_PATH=/opt/python/lib
export PYTHONPATH LD_LIBRARY_PATH
exec /opt/python/bin/python3 -c 'from {module}.main import main; main()' "$@"
"""


def why_not():
    """Why this machine cannot run a second systemd; empty if it can."""
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"needs {', '.join(missing)}"
    if not (SYSTEMD / "systemd").exists() or not all((SYSTEMD / "system" / unit).exists() for unit in JOURNAL):
        return "systemd and its journal are not installed"
    if os.geteuid() != 0 or _cgroup2() is None:
        return "needs root and a cgroup2 file system"
    tried = subprocess.run(["unshare", "--pid", "--fork", "--mount", "--net", "--cgroup", "true"], capture_output=True)
    return "" if tried.returncode == 0 else "this machine does not let namespaces be made"


def _cgroup2():
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return next((Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"), None)


class Systemd:
    """Runs commands where the units run, until it is stopped."""

    def __init__(self, process, pid):
        self._process, self._pid = process, pid

    def run(self, *command, check=True):
        inside = ["nsenter", "--target", str(self._pid), "--all", "env", *(f"{k}={v}" for k, v in PATHS.items())]
        done = subprocess.run([*inside, *map(str, command)], capture_output=True, text=True, timeout=120)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def show(self, unit, name):
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).strip()

    def log(self, unit):
        return self.run("journalctl", "--no-pager", "--output=cat", "--unit", unit)

    def wait_for(self, condition, timeout_s=120, unit="sahfl-client"):
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, self.log(unit)
            time.sleep(0.5)


def install(folder, name, text=None):
    """A unit, and the program that it starts."""
    original = (ROOT / name.split("-")[1] / f"{'-'.join(name.split('-')[:2])}.service").read_text()
    (folder / "etc/systemd/system" / f"{name}.service").write_text(text(original) if text else original)
    program = re.search(r"ExecStart=/opt/sahfl/bin/(\S+)", original)[1]
    path = folder / "opt/sahfl/bin" / program
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(PROGRAM.format(module=program.replace("-", "_")))
    path.chmod(0o755)


def give(path, user):
    """A folder belongs to a user of the units, and to nobody else."""
    for each in [path, *path.rglob("*")]:
        os.chown(each, USERS[user], USERS[user])
        each.chmod(0o700 if each.is_dir() else 0o600)


def lay_out(folder):
    """An /etc with the units' users, an empty /opt and /var/lib, and the few units that systemd itself needs."""
    subprocess.run(["cp", "-a", "/etc", folder / "etc"], check=True)
    shutil.rmtree(folder / "etc/systemd/system")
    for name in ("etc/systemd/system", "opt", "lib", "units"):
        (folder / name).mkdir(parents=True)
        (folder / name).chmod(0o755)
    for name in ("passwd", "group"):
        tail = ":/nonexistent:/usr/sbin/nologin" if name == "passwd" else ""
        with (folder / "etc" / name).open("a") as stream:
            stream.writelines(f"{user}:x:{id_}:{f'{id_}:' if tail else ''}{tail}\n" for user, id_ in USERS.items())
    for target in TARGETS:
        (folder / "units" / f"{target}.target").write_text("[Unit]\nDescription=of a test\nDefaultDependencies=no\n")
    for unit in JOURNAL:
        shutil.copy(SYSTEMD / "system" / unit, folder / "units")
    with (folder / "units" / "sysinit.target").open("a") as stream:
        stream.write(f"Wants={' '.join(JOURNAL)}\n")
    with (folder / "units" / "basic.target").open("a") as stream:
        stream.write("Requires=sysinit.target\nAfter=sysinit.target\n")
    (folder / "units" / "default.target").write_text("[Unit]\nRequires=basic.target\nAfter=basic.target\n")


@contextmanager
def booted(folder):
    """systemd over a folder that was laid out; with the block everything in it ends."""
    group = _cgroup2() / f"sahfl-test-{os.getpid()}"
    group.mkdir()
    paths = {"folder": folder, "base": sys.base_prefix, "packages": sysconfig.get_path("purelib"), "source": ROOT}
    script = BOOT.format(systemd=SYSTEMD, paths=" ".join(f"{k}={v}" for k, v in PATHS.items()), **paths)
    flags = ["--pid", "--fork", "--mount", "--uts", "--ipc", "--net", "--cgroup", "--kill-child"]
    join = f'echo $$ > {group}/cgroup.procs; exec unshare {" ".join(flags)} sh -c "$1"'
    with (folder / "boot.log").open("w") as log:
        process = subprocess.Popen(["sh", "-c", join, "sh", script], stdout=log, stderr=log, start_new_session=True)
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        end = time.monotonic() + 20
        while not (children.exists() and (found := children.read_text().split())) and time.monotonic() < end:
            time.sleep(0.05)
        machine = Systemd(process, int(found[0]))
        while "running" not in (state := machine.run("systemctl", "is-system-running", check=False)):
            assert time.monotonic() < end, f"{state}: {(folder / 'boot.log').read_text()}"
            time.sleep(0.2)
        yield machine
    finally:
        with suppress(ProcessLookupError, NameError):
            os.kill(int(found[0]), signal.SIGKILL)
        process.wait(30)
        time.sleep(0.5)
        for each in sorted(group.rglob("*"), reverse=True):
            if each.is_dir():
                each.rmdir()
        group.rmdir()
