"""One scan at two sites: it could be trained on at one and tested at the other."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

from sahfl.errors import DataShared
from sahfl.federation.server.run_folder import RunFolder


def refuse_shared_scans(keys: Mapping[str, frozenset[str]], folder: RunFolder) -> None:
    """Compare the sites' scan keys, and write what they share to the journal.

    Raises:
        DataShared: two sites hold the same scan.
    """
    shared = [(a, b, sorted(keys[a] & keys[b])) for a, b in combinations(keys, 2) if keys[a] & keys[b]]
    for a, b, common in shared:
        folder.note({"event": "shared_scans", "sites": [a, b], "keys": common})
    if shared:
        named = "; ".join(f"{a} and {b}: {len(common)}, for example key {common[0]}" for a, b, common in shared)
        raise DataShared(f"the same scan lies at two sites ({named}); see scan_keys.json in each site's folder")
