"""The content of the server's folder and of a site's kit, by file name."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sahfl.config.consortium import Consortium
from sahfl.config.policy import SitePolicy
from sahfl.masking.graph import LEAST_SITES
from sahfl.section import Section
from sahfl.trust.authority import Authority
from sahfl.trust.certificates import fingerprint, pem
from sahfl.trust.keys import NodeKey, key_pem, new_node_key, node_key_line, node_key_text
from sahfl.trust.records import KitNote

SERVER_EXAMPLE = """\
# The server's file, an example. Start the server with: sahfl-server server.yaml
kit: . # the folder with server.key; relative paths start at this file's folder
folder: state # queue/, runs/ and status.json
host: 0.0.0.0 # address to listen on
port: {port}
"""

SITE_EXAMPLE = """\
# A hospital's own file, an example: its name, its scans, and what it allows. It never leaves the hospital.
#   sahfl check site.yaml      checks the scans
#   sahfl-client site.yaml     connects to the server
name: {site}
folder: work # the site's working folder, beside this file
kit: . # the folder with client.key

data:
  source: folder # recognises what lies at the path: DICOM, nnU-Net, images and masks, a disc, a list or a zip
  path: scans # a folder with one folder per patient, for example; or a file: datalist.json, list.csv, scans.zip

policy: # what studies may ask of this site, and what may leave it; these are the values of a new kit, the closed ones
"""


def server_files(
    authority: Authority, settings: Consortium, signing_key: Ed25519PrivateKey, *, now: datetime
) -> tuple[x509.Certificate, dict[str, bytes | str]]:
    """Make a new certificate of the server and the files of its folder, except its lists of sites."""
    key, days = ec.generate_private_key(ec.SECP256R1()), settings.valid_days.certificates
    hosts = list(dict.fromkeys((settings.server.host, *settings.server.also)))
    certificate = authority.server_certificate(key.public_key(), hosts, now=now, days=days)
    return certificate, {
        "ca.crt": pem(authority.certificate),
        "server.crt": pem(certificate),
        "server.key": key_pem(key),
        "signing.key": key_pem(signing_key),
        "server.yaml": SERVER_EXAMPLE.format(port=settings.server.port),
    }


def site_files(
    authority: Authority, settings: Consortium, site: str, *, signer: str, node_key: NodeKey | None, now: datetime
) -> tuple[x509.Certificate, dict[str, bytes | str], str]:
    """A new certificate of a site, the files of its kit, and the line of its node key; the key is new unless given."""
    key, node_key = ec.generate_private_key(ec.SECP256R1()), node_key or new_node_key()
    certificate = authority.site_certificate(key.public_key(), site, now=now, days=settings.valid_days.certificates)
    note = KitNote(
        consortium=settings.name,
        site=site,
        host=settings.server.host,
        port=settings.server.port,
        signer=signer,
        node_key=node_key_line(node_key),
        ca_sha256=fingerprint(authority.certificate),
        issued=now,
        expires=certificate.not_valid_after_utc,
    )
    files: dict[str, bytes | str] = {
        "ca.crt": pem(authority.certificate),
        "client.crt": pem(certificate),
        "client.key": key_pem(key),
        "node.key": node_key_text(node_key),
        "kit.json": note.text(),
        "kit.sig": authority.sign(note.text().encode()),
        "site.yaml": SITE_EXAMPLE.format(site=site) + _policy_example(kit_policy(settings)),
    }
    return certificate, files, note.node_key


def kit_policy(settings: Consortium) -> SitePolicy:
    """The policy in new kits: the defaults; with three sites or more, of which masks hide each, masks are asked for."""
    return SitePolicy(unmasked=len(settings.sites) < LEAST_SITES)


def _policy_example(policy: SitePolicy) -> str:
    """Every setting of a site's policy with its meaning and value, generated from ``SitePolicy``."""
    return "\n".join(_settings(policy, indent="  ")) + "\n"


def _settings(section: Section, *, indent: str) -> Iterator[str]:
    for name, setting in type(section).model_fields.items():
        meaning = " ".join((setting.description or "").replace("``", "").split())
        yield from textwrap.wrap(meaning, 114, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        value = getattr(section, name)
        if isinstance(value, Section):
            yield f"{indent}{name}:"
            yield from _settings(value, indent=f"{indent}  ")
        else:
            yield f"{indent}{name}: {json.dumps(value)}"


def address_of(settings: Consortium, name: str) -> str:
    """Address of the server, as written in the server's certificate or a site's kit."""
    server = settings.server
    return ", ".join((server.host, *server.also)) if name == "server" else f"{server.host}:{server.port}"
