"""How this program names itself to an archive: a token, or a user with a password, never on the command line."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from sahfl.errors import ConfigError
from sahfl.regular_files import TRUST_BYTES, open_regular

VARIABLE = "SAHFL_PACS_LOGIN"
"""Environment variable with the content of a login file."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Login:
    """A token, or a user with a password; its repr shows neither."""

    token: str | None = field(default=None, repr=False)
    user: str | None = field(default=None, repr=False)
    password: str = field(default="", repr=False)


def read_login(path: Path | None) -> Login | None:
    """The login of a file of one line, ``Bearer TOKEN`` or ``USER:PASSWORD``; without a file that of the environment.

    Raises:
        ConfigError: others may read the file, or it has another form; the message quotes nothing of it.
    """
    if path is None:
        text, where = os.environ.get(VARIABLE, ""), f"environment variable {VARIABLE}"
        if not text:
            return None
    else:
        text, where = _of_owner(path), str(path)
    line = text.strip()
    if "\n" in line or not line.isprintable():
        raise ConfigError(f"{where}: got several lines, expected one: Bearer TOKEN or USER:PASSWORD")
    if found := re.fullmatch(r"Bearer +(\S+)", line):
        return Login(token=found[1])
    user, colon, password = line.partition(":")
    if not colon or not user:
        raise ConfigError(f"{where}: got another form, expected one line: Bearer TOKEN or USER:PASSWORD")
    return Login(user=user, password=password)


def _of_owner(path: Path) -> str:
    try:
        with open_regular(path, most=TRUST_BYTES) as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            if mode & 0o077:
                raise ConfigError(f"{path}: others may read it (mode {mode:04o}); run `chmod 600 {path}`")
            return stream.read().decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is no text in UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


def check_address(url: str, login: Login | None, *, plain: bool) -> str:
    """The address of an archive without a slash at its end.

    Raises:
        ConfigError: it is no address of a web server, has a password in it, or is not protected by TLS. ``plain``
            allows http, but never with a login; a server on this machine needs no TLS.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ConfigError("archive: got no address of a DICOMweb server, expected https://HOST/PATH")
    if "@" in parts.netloc:
        raise ConfigError(f"archive: the address has a login in it; put it into a file of mode 600, or into {VARIABLE}")
    if parts.scheme == "http" and parts.hostname not in LOOPBACK and (login or not plain):
        what = "a login would be readable on the network" if login else "scans would be readable on the network"
        raise ConfigError(f"archive: got http, expected https: {what}; put TLS in front of the archive")
    return url.rstrip("/")
