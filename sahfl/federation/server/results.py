"""From a finished run's files to ``results.json``, the one source of every figure and table."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import version
from typing import Any

from sahfl import __version__
from sahfl.adapters import AdapterState, digest
from sahfl.adapters.folder import CONFIG
from sahfl.config import AdapterTuning, Method, Study, ZeroShot
from sahfl.federation.protocol import SiteDescription
from sahfl.federation.server.method_results import Sums, by_fold, compare, correct, measured, read_sums
from sahfl.federation.server.run_folder import Record, RunFolder
from sahfl.federation.server.support import fold_support, support_notes

SCHEMA = 2


def collect(
    folder: RunFolder, study: Study, sites: Mapping[str, SiteDescription], base: AdapterState
) -> dict[str, Any]:
    """Everything that the report shows, as plain JSON values."""
    journal = folder.journal()
    sums = {method.id: read_sums(folder, study, method) for method in study.finetune.methods}
    started, finished = (_last(journal, event) for event in ("started", "finished"))
    rounds = _rounds(journal)
    return {
        "schema": SCHEMA,
        "sahfl": __version__,
        "name": study.name,
        "fingerprint": study.fingerprint(),
        "study": study.model_dump(mode="json"),
        "environment": _environment(),
        "started": started,
        "finished": finished,
        "seconds": _seconds(journal),
        "hostile": study.hostile,
        "sites": [_site(name, study, sites, journal) for name in study.sites],
        "base": {
            "sha256": digest(base),
            "parameters": sum(value.size for value in base.values()),
            "bytes": sum(value.nbytes for value in base.values()),
            "mode": "federated" if study.pretrain else "loaded",
        },
        "support": {"folds": fold_support(study, sites), "notes": support_notes(study, sites)},
        "evaluation": study.evaluation.model_dump(mode="json"),
        "methods": [_method(folder, study, method, sums[method.id], rounds) for method in study.finetune.methods],
        "comparisons": _comparisons(study, sums),
        "rounds": rounds,
        "interruptions": sum(line["event"] == "resumed" for line in journal),
        "unreadable_journal_lines": folder.unreadable_lines(),
    }


def _method(folder: RunFolder, study: Study, method: Method, sums: Sums, rounds: list[Record]) -> dict[str, Any]:
    sent = [site["bytes_up"] for line in rounds if line["method"] == method.id for site in line["used"]]
    found = measured(study, sums)
    return {
        "id": method.id,
        "method": method.method,
        "rank": method.rank if isinstance(method, AdapterTuning) else None,
        "aggregation": None if isinstance(method, ZeroShot) else method.aggregation,
        "trained_at": None if isinstance(method, ZeroShot) else method.trained_at,
        "trainable": 0 if isinstance(method, ZeroShot) else _trainable(folder, method),
        "bytes_up_per_round": max(sent, default=0),
        "repeats": [{"repeat": 1, "dice": found["metrics"]["dice"]["overall"]["mean"]}],
        "sd_repeats": None,
        **found,
        "not_evaluated": _not_evaluated(folder, study, method),
    }


def _trainable(folder: RunFolder, method: Method) -> int:
    return int((folder.read_json(f"adapters/{method.id}/fold-0/{CONFIG}") or {})["sahfl"]["parameters"])


def _not_evaluated(folder: RunFolder, study: Study, method: Method) -> list[dict[str, Any]]:
    return [
        {"fold": fold, "site": site, "reason": reason}
        for fold in range(study.finetune.folds)
        for site, reason in (
            (folder.read_json(f"evaluation/{method.id}/fold-{fold}.json") or {}).get("missing", {})
        ).items()
    ]


def fold_metrics(folder: RunFolder, study: Study, method: Method, fold: int) -> dict[str, float | None]:
    """What was measured on the held-out patients of one fold."""
    found = by_fold(fold, read_sums(folder, study, method), study)
    return {name: found[name] for name in ("dice", "n", "n_no_blood")}


def _comparisons(study: Study, sums: Mapping[str, Sums]) -> list[dict[str, Any]]:
    """Every trained method against zero-shot, every adapter against full fine-tuning, CP-LoRA against convLoRA."""
    trained = [method for method in study.finetune.methods if not isinstance(method, ZeroShot)]
    pairs = [(method.id, "zero_shot") for method in trained]
    pairs += [(method.id, "full") for method in trained if isinstance(method, AdapterTuning)]
    # Rank and other settings stand in the name, so the rest of it is the same for the method to compare with.
    pairs += [(m.id, "conv_lora" + m.id.removeprefix("cp_lora")) for m in trained if m.method == "cp_lora"]
    found = [
        {"method": method, "reference": reference, **compare(study, sums[method], sums[reference])}
        for method, reference in pairs
        if reference in sums
    ]
    correct(found)
    return found


def _site(name: str, study: Study, sites: Mapping[str, SiteDescription], journal: list[Record]) -> dict[str, Any]:
    role = "finetune" if name in study.finetune.sites else "pretrain"
    if name not in sites:
        reasons = [line["reason"] for line in journal if line["event"] == "site_out" and line["site"] == name]
        nothing = {"source": "", "n_volumes": 0, "n_patients": 0, "n_positive": 0, "volume_ml": 0.0, "fold_sizes": []}
        out = reasons[-1] if reasons else "absent"
        return {"site": name, "role": role, "out": out, "n_refused": 0, "findings": {}} | nothing
    described = sites[name].model_dump(mode="json")
    if role == "pretrain":
        described["fold_sizes"] = []
    return described | {"role": role, "out": None}


def _rounds(journal: list[Record]) -> list[Record]:
    """Rounds in order; a round that was committed again after a damaged checkpoint counts once, as it last was."""
    committed = {}
    failed = []
    for line in journal:
        if line["event"] != "round":
            continue
        if line["committed"]:
            committed[line["stage"], line["method"], line["fold"], line["round"]] = line
        else:
            failed.append(line)
    return [*failed, *committed.values()]


def _last(journal: list[Record], event: str) -> str | None:
    times = [line["at"] for line in journal if line["event"] == event]
    return times[-1] if times else None


def _seconds(journal: list[Record]) -> float:
    """Time at work: from each start to the last sign of life before the next, so that pauses do not count."""
    total, began, last = 0.0, None, None
    for line in journal:
        at = datetime.fromisoformat(line["at"]) if "at" in line else None
        if line["event"] in ("started", "resumed"):
            if began and last:
                total += (last - began).total_seconds()
            began = at
        last = at or last
    return round(total + (last - began).total_seconds(), 1) if began and last else 0.0


def _environment() -> dict[str, str]:
    packages = ("torch", "flwr", "monai", "numpy")
    return {"python": platform.python_version(), "platform": platform.platform(), **{p: version(p) for p in packages}}
