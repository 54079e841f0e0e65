"""A study small enough to run a whole federation in seconds."""

from __future__ import annotations

from typing import Any

import yaml

TINY: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "data": {
        "source": "phantom",
        "shape": [48, 56, 10],
        "spacing_mm": [4.0, 4.0, 12.0],
        "sites": {
            "tbi_a": {"kind": "tbi", "n_cases": 2},
            "tbi_b": {"kind": "tbi", "n_cases": 2, "profile": "sharp"},
            "sah_a": {"kind": "sah", "n_cases": 3},
            "sah_b": {"kind": "sah", "n_cases": 2, "profile": "noisy"},
            "sah_c": {"kind": "sah", "n_cases": 2, "profile": "offset"},
        },
    },
    "views": {"spacing_mm": 4.0, "size": [48, 64, 48], "weights": {"axial": 1.0}},
    "pretrain": {"sites": ["tbi_a", "tbi_b"], "rounds": 2, "local": {"steps": 2, "batch_size": 2}},
    "finetune": {
        "sites": ["sah_a", "sah_b", "sah_c"],
        "folds": 2,
        "rounds": 2,
        "local": {"steps": 2, "batch_size": 2},
        "methods": [{"method": "zero_shot"}, {"method": "cp_lora", "rank": 2}],
    },
    "evaluation": {"replicates": 100},
    "rounds": {"quorum": 0.6, "deadline_s": 120.0, "attempts": 2, "pause_s": 0.0},
}


def changed(settings: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A copy of settings with values replaced by dotted key, dots written as double underscores."""
    copy = yaml.safe_load(yaml.safe_dump(settings))
    for path, value in changes.items():
        *parents, last = path.split("__")
        section = copy
        for parent in parents:
            section = section[parent]
        section[last] = value
    return copy
