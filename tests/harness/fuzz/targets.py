"""The table of what is fuzzed."""

from collections.abc import Callable
from pathlib import Path

from harness.fuzz import of_formats, of_masks, of_messages, of_requests, of_runs, of_scans, of_settings, of_sites
from harness.fuzz.outcome import Reader

TARGETS: dict[str, Callable[[Path], Reader]] = {
    "answers": of_messages.answers,
    "requests": of_messages.requests,
    "parts": of_messages.parts,
    "masks": of_masks.masks,
    "gate": of_requests.gate,
    "settings": of_settings.settings,
    "kit": of_settings.kit,
    "server_kit": of_settings.server_kit,
    "nifti": of_scans.nifti,
    "dicom": of_scans.dicom,
    "lists": of_scans.lists,
    "formats": of_formats.formats,
    "structures": of_formats.structures,
    "packed": of_formats.packed,
    "wishes": of_formats.wishes,
    "notes": of_sites.notes,
    "logs": of_sites.logs,
    "kept": of_sites.kept,
    "run": of_runs.run,
    "results": of_runs.results,
    "adapters": of_runs.adapters,
    "status": of_runs.status,
}
"""What makes the reader of each target, in an empty folder."""
SHARES = dict.fromkeys(TARGETS, 4) | {"settings": 1, "results": 1, "gate": 3, "masks": 3}
SHARES |= dict.fromkeys(("dicom", "structures", "packed"), 2)
"""Parts of all inputs that each target gets: fewer where one takes longer."""
