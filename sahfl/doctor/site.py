"""Checks of a site, from its kit to its data."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime

from sahfl.config import SiteConfig, SiteFile, ViewsConfig
from sahfl.data.cache import CACHE, KEPT_SETTINGS, SliceCache
from sahfl.data.survey import mean_slices
from sahfl.data.view_settings import pixels_of_scan
from sahfl.doctor import machine
from sahfl.doctor.connection import STEPS, examine_connection
from sahfl.doctor.findings import Finding, skip_all
from sahfl.errors import NotConnected, RosterNotAccepted, SahflError, StorageError, TrustError
from sahfl.federation.flower.probe import ask_admission
from sahfl.federation.site.audit import AuditLog, verify
from sahfl.federation.site.folder_check import check_folder
from sahfl.federation.site.known_roster import GET, accepted_roster, waiting_roster
from sahfl.last_errors import checked_errors, errors_text, read_status
from sahfl.process import now
from sahfl.trust.certificates import key_hash, load_certificate
from sahfl.trust.kit import SiteKit

AXIAL_SLICES = 40
"""Slices of a usual head CT, at 3 to 5 mm, where no scan can be looked at yet."""
FINEST_MM = 1.0
"""Studies with finer slices need more space than the doctor estimates."""
KEPT_BYTES = 1e9
"""Disk use of a site's base networks, logs and results."""


def examine_site(config: SiteFile, *, clock: Callable[[], datetime] = now) -> list[Finding]:
    """Run all checks of a site, in the order in which it would fail."""
    found = [
        machine.examine_user(),
        machine.examine_versions(),
        machine.examine_environment(),
        *_examine_trust(config, clock),
    ]
    data, n_cases, n_slices = examine_data(config)
    room = _examine_room(config, n_cases, n_slices)
    found += [examine_policy(config), machine.examine_folder(config.folder), room]
    found += [
        machine.examine_memory(),
        machine.examine_device(config.device),
        data,
        examine_audit(config),
        examine_state(config),
        examine_roster(config),
        examine_answers(config),
    ]
    return found


def _examine_trust(config: SiteConfig, clock: Callable[[], datetime]) -> list[Finding]:
    kit, found = examine_kit(config, clock())
    if kit is None:
        skipped = skip_all(["certificates", *STEPS, "admission"], needs="kit")
        return [*found, *skipped, machine.examine_synchronisation()]
    steps = examine_connection(kit.host, kit.port, kit.tls(), clock=clock)
    reached = next(step for step in steps if step.check == "health").verdict == "ok"
    admission = [examine_admission(kit)] if reached else skip_all(["admission"], needs="health")
    return [*found, examine_certificates(kit, clock()), *steps, *admission, machine.examine_synchronisation()]


def examine_kit(config: SiteConfig, now: datetime) -> tuple[SiteKit | None, list[Finding]]:
    """Check files, modes, signature and certificates of the kit, and that it belongs to this site."""
    if config.kit is None:
        remedy = "unpack the kit of the coordinating centre and name its folder under 'kit' in the site file"
        return None, [Finding.fail("kit", "the site file names none", remedy=remedy)]
    try:
        kit = SiteKit.load(config.kit, now=now)
    except SahflError as error:
        return None, [Finding.of_error("kit", error, remedy="unpack the kit of the coordinating centre again")]
    if kit.site != config.name:
        remedy = f"set name: {kit.site} in the site file, or unpack the kit of {config.name}"
        return None, [Finding.fail("kit", f"is the kit of {kit.site}, this site is {config.name}", remedy=remedy)]
    return kit, [Finding.ok("kit", f"{kit.site} of {kit.consortium}, server {kit.host} port {kit.port}")]


def examine_certificates(kit: SiteKit, now: datetime) -> Finding:
    """Check when the certificates expire."""
    if soon := kit.warnings(now):
        return Finding.of_warning("certificates", soon[0])
    return Finding.ok("certificates", f"the site's is valid until {kit.certificate_expires:%Y-%m-%d}")


def examine_admission(kit: SiteKit) -> Finding:
    """Check that the server would accept this site's key, clock and versions."""
    try:
        ask_admission(kit)
    except NotConnected as error:
        remedy = "have the centre copy its newest server/sites.json and server/revoked.crl to the server"
        return Finding.of_error("admission", error, remedy=remedy)
    return Finding.ok("admission", "the server accepts this site's key and has the same versions")


def examine_roster(config: SiteConfig) -> Finding:
    """Check that the newest roster is in force, and that it has this site with the key of its kit."""
    if config.kit is None:
        return skip_all(["roster"], needs="kit")[0]
    try:
        waits, known = waiting_roster(config), accepted_roster(config.folder)
        own = key_hash(load_certificate(config.kit / "client.crt"))
    except RosterNotAccepted as error:  # needed for masked sums alone
        return Finding.of_warning("roster", str(error))
    except (TrustError, StorageError) as error:
        return Finding.of_error("roster", error, remedy="unpack the kit of the coordinating centre again")
    roster = waits if known is None else known
    if waits.note.sites.get(config.name) != own:
        remedy = f"{GET}, and put both files into the kit's folder"
        return Finding.fail("roster", "the kit's roster does not have this site with the kit's key", remedy=remedy)
    if roster.sha256 != waits.sha256:
        refused = (
            "" if roster.note.sites.get(config.name) == own else "; without this site's new key all masks are refused"
        )
        remedy = f"compare the hash with the centre's, then sahfl-client accept-roster SITE_FILE {waits.sha256}"
        return Finding.warn("roster", f"the kit's roster waits for a person{refused}", remedy=remedy)
    return Finding.ok("roster", f"{len(roster.note.sites)} sites, {roster.sha256}")


def examine_policy(config: SiteConfig) -> Finding:
    """Summarise what the site allows, in one line."""
    policy = config.policy
    allowed = f"{', '.join(policy.stages) or 'no training'}; {', '.join(policy.methods) or 'no methods'}"
    found = f"{allowed}; groups of {policy.smallest_group} patients or more"
    if not policy.require_signature:
        remedy = "set policy.require_signature: true"
        return Finding.warn("policy", f"unsigned requests are accepted; {found}", remedy=remedy)
    return Finding.ok("policy", f"signed requests only; {found}")


def examine_data(config: SiteFile) -> tuple[Finding, int, float]:
    """Check quickly that all files of the scans exist and may be read; the cases, and their mean number of slices."""
    usual = float(AXIAL_SLICES)
    if n_cases := config.data.n_made:
        return Finding.ok("data", f"{n_cases} simulated patients, made when they are needed"), n_cases, usual
    try:
        cases = config.data.glance(config.name, config.folder)
    except (SahflError, OSError) as error:
        remedy = "set data.path in the site file, or correct what it names"
        return Finding.of_error("data", error, remedy=remedy), 0, usual
    absent = [case for case in cases if not all(os.access(path, os.R_OK) for path in (case.image, case.label))]
    if absent:
        found = f"{len(absent)} of {len(cases)} cases cannot be read, the first is {absent[0].id}"
        remedy = "let the service's user read them: sahfl check names each"
        return Finding.fail("data", found, remedy=remedy), len(cases), usual
    found = f"{len(cases)} cases, all files are there; sahfl check reads and checks them"
    return Finding.ok("data", found), len(cases), mean_slices(cases) or usual


def _examine_room(config: SiteConfig, n_cases: int, n_slices: float) -> Finding:
    """Check the room for slices of scans, which the cache keeps for several settings, and for all else of a site."""
    usual, finest = (KEPT_SETTINGS * n_cases * case_bytes(n_slices, mm) for mm in (None, FINEST_MM))
    texts = machine.size_text(usual), machine.size_text(finest)
    slices = f"a cache of {n_cases} cases ({texts[0]} to {texts[1]} for the views of {KEPT_SETTINGS} studies) and "
    return machine.examine_disk(
        config.folder,
        least_bytes=KEPT_BYTES + usual,
        easy_bytes=KEPT_BYTES + finest,
        what=f"{slices if n_cases else ''}a site's networks, logs and results take",
        held_bytes=min(usual, SliceCache(config.folder / CACHE).n_bytes()),
    )


def case_bytes(n_slices: float, spacing_mm: float | None = None) -> float:
    """Bytes of one preprocessed case with this number of axial slices: two per voxel for HU, one for the annotation.

    ``spacing_mm`` is the size of a pixel, by default a study's default.
    """
    usual = ViewsConfig()
    finer = 1.0 if spacing_mm is None else usual.spacing_mm / spacing_mm
    return 3 * pixels_of_scan(usual.weights, [extent * finer for extent in usual.size], n_slices)


def examine_answers(config: SiteConfig) -> Finding:
    """Check which kinds of requests the service last answered with an error."""
    errors = checked_errors(read_status(config.folder / "status.json").get("errors"))
    if not errors:
        return Finding.ok("answers", "no last answer to a kind of request was an error")
    remedy = f"read {config.folder}/logs/{config.name}.log, and the table of errors in the runbook"
    return Finding.warn("answers", f"the last answer was an error: {errors_text(errors)}", remedy=remedy)


def examine_audit(config: SiteConfig) -> Finding:
    """Check that the log of requests and answers is intact."""
    path = AuditLog(config.folder).path
    if not path.exists():
        return Finding.ok("audit", "no request was received yet")
    try:
        verdict = verify(path)
    except SahflError as error:
        return Finding.of_error("audit", error, remedy="keep the file as it is, and find out who changed it")
    return Finding.ok("audit", f"{verdict.n} lines, the chain is whole, its head is {verdict.head[:16]}...")


def examine_state(config: SiteConfig) -> Finding:
    """Check that no file of the site's folder was lost or put back to an earlier state."""
    try:
        n_answers = check_folder(config)
    except SahflError as error:
        return Finding.of_error("state", error, remedy="restore the whole folder from its newest backup")
    return Finding.ok("state", f"secret, ledger and lists have all that {n_answers} answers need")
