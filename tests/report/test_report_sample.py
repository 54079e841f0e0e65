"""Results as a run writes them, in every outcome; the other tests of the report import them."""

import json

import pytest

BASE_BYTES = 3_249_380
DIED = "worker process died (signal 9)"
STRATA = {"< 10 mL": 7, "10 to 30 mL": 11, ">= 30 mL": 12}
EXTENTS = {"one cistern": 9, "several cisterns": 13, "diffuse": 8}
ALL = "all with blood"
EDGES_ML = [0.0, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]
SCALES = {"dice": 1.0, "surface_dice": 1.1, "hd95_mm": 40.0, "volume_error_ml": 15.0, "lesion_f1": 0.9, "missed": 0.3}
"""Metric -> its value where Dice is 1 (or 0, where less is better)."""
LESS_IS_BETTER = {"hd95_mm", "volume_error_ml", "missed"}


def estimate(stratum, n, value, spread=0.06):
    around = {"low": value - 0.062 * spread / 0.06, "high": value + 0.057 * spread / 0.06}
    sd = 0.171 * spread / 0.06
    return {
        "stratum": stratum,
        "n": n,
        "mean": value,
        "sd": sd,
        "median": value + 0.012,
        **around,
        "trainings": 3,
        "withheld": False,
    }


def metric(name, dice):
    def value(shift):
        share = 1 - dice - shift if name in LESS_IS_BETTER else dice + shift
        return SCALES[name] * share

    spread = 0.06 * max(SCALES[name], 1.0)
    shifts = (-0.17, 0.01, 0.09)
    parts = {
        key: [estimate(s, n, value(d), spread) for (s, n), d in zip(strata.items(), shifts, strict=True)]
        for key, strata in (("by_volume", STRATA), ("by_extent", EXTENTS))
    }
    return {"overall": estimate(ALL, 30, value(0.0), spread), **parts}


def histogram(dice):
    """Thirty cases, the more of them on the diagonal the higher the Dice."""
    counts = [[0] * (len(EDGES_ML) - 1) for _ in EDGES_ML[1:]]
    for case in range(30):
        annotated = (1, 2, 3, 3, 4, 4)[case % 6]
        missed = case / 30 > dice
        counts[annotated][max(annotated - 1 - case % 2, 0) if missed else annotated] += 1
    return {"edges_ml": EDGES_ML, "counts": counts}


def method(name, kind, dice, *, rank=None, trainable=0, sent=0, aggregation=None, at=None):
    return {
        "id": name,
        "method": kind,
        "rank": rank,
        "aggregation": aggregation or (None if rank is None else "mean"),
        "start": None if kind == "zero_shot" else "scratch" if "-scratch" in name else "base",
        "rounds": None,
        "trained_at": at,
        "part": None,
        "plain": None,
        "trainable": trainable,
        "magnitudes": None,
        "learning_rates": [],
        "bytes_up_per_round": sent,
        "failed": None,
        "repeats": [{"repeat": 1, "dice": dice}],
        "sd_repeats": None,
        "metrics": {name: metric(name, dice) for name in SCALES},
        "no_blood": {"n": 4, "n_false_positive": 1},
        "volume": {
            "n": 30,
            **{"pearson_r": 0.813, "icc": 0.791, "bias_ml": -3.14, "loa_low_ml": -20.2, "loa_high_ml": 13.9},
            "histogram": histogram(dice),
        },
        "by_fold": [{"fold": k, "n": 10, "dice": dice + d, "n_no_blood": 1} for k, d in enumerate((0.02, 0.0, -0.02))],
        "by_site": [{"site": site, "n": 15, "dice": dice + d} for site, d in (("sah_a", 0.01), ("sah_b", -0.01))],
        "withheld": [],
        "not_evaluated": [],
    }


def gap_of(stratum, n, gap, half, p_holm=None):
    p = 0.5 if abs(gap) < half else 0.0004
    return {
        "stratum": stratum,
        "n": n,
        "difference": gap,
        "low": gap - half,
        "high": gap + half,
        "p": p,
        "p_holm": p_holm,
        "trainings": 3,
    }


def comparison(name, gap, half=0.041, reference="zero_shot", before=0.412):
    found = {}
    for key, scale in SCALES.items():
        signed = -gap if key in LESS_IS_BETTER else gap
        parts = {
            part: [
                gap_of(s, n, scale * (signed + d), scale * half * 1.8)
                for (s, n), d in zip(strata.items(), (0.03, 0.0, -0.01), strict=True)
            ]
            for part, strata in (("by_volume", STRATA), ("by_extent", EXTENTS))
        }
        found[key] = {"overall": gap_of(ALL, 30, scale * signed, scale * half, 0.0016), **parts}
    verdict = "undecided" if abs(gap) < half else "better" if gap > 0 else "worse"
    about = {"method": name, "reference": reference, "verdict": verdict, "dice": [before + gap, before], "differs": []}
    return about | {"p_margin_holm": 0.01, "metrics": found}


def finding(id_, claim, verdict, text, gap=None, *, wanted="better", paper=None, names=()):
    """A finding as a run writes it, with the same difference in each of its comparisons."""
    ends = {"low": None, "high": None} if gap is None else {"low": gap - 0.03, "high": gap + 0.03}
    numbers = {"difference": gap, **ends, "n": None if gap is None else 39}
    pairs = [{"name": name, "verdict": verdict, **numbers, "trainings": 3, "p_holm": 0.002} for name in names]
    supported = {"better": True, "worse": False, "not worse": True if wanted == "not worse" else None}.get(verdict)
    about = {"id": id_, "claim": claim, "wanted": wanted, "paper": paper, "verdict": verdict, "supported": supported}
    return about | {"text": text, "pairs": pairs} | numbers


def site(name, role, n):
    tuned = role == "finetune"
    return {
        "site": name, "role": role, "source": "phantom (sharp)", "n_volumes": n, "n_patients": n, "n_positive": n,
        "volume_ml": 21.05 * n, "fold_sizes": [n // 3] * 3 if tuned else [], "n_refused": 0,
        "findings": {"thick slices": 2} if tuned else {},
        "out": None,
    }  # fmt: skip


def training_round(stage, number, *, method=None, fold=None, sent=BASE_BYTES):
    sites = ("tbi_a", "tbi_b") if stage == "pretrain" else ("sah_a", "sah_b")
    loss = (1.1 if stage == "pretrain" else 0.5 if method == "full" else 0.6) * 0.8**number + 0.02 * (fold or 0)
    used = [
        {
            "site": s,
            "n_volumes": 8 + 4 * i,
            "loss": loss + 0.05 * i,
            "bytes_up": sent,
            "bytes_down": sent,
            "seconds": 9.9,
        }
        for i, s in enumerate(sites)
    ]
    return {
        "stage": stage, "method": method, "fold": fold, "round": number, "attempt": 1, "committed": True,
        "seconds": 10.2, "used": used, "refused": [], "missing": [], "sha256": "ab" * 32,
    }  # fmt: skip


def rounds(*tuned):
    found = [training_round("pretrain", number) for number in range(1, 7)]
    for m in tuned:
        found += [
            training_round("finetune", number, method=m["id"], fold=fold, sent=m["bytes_up_per_round"])
            for fold in range(3)
            for number in range(1, 6)
        ]
    return found


def sample():
    adapter = method("cp_lora-r8", "cp_lora", 0.503, rank=8, trainable=101_234, sent=405_612)
    full = method("full", "full", 0.527, trainable=812_345, sent=BASE_BYTES)
    return {
        "schema": 3, "sahfl": "0.1.0", "name": "demo", "fingerprint": "c0ffee" * 10 + "1234",
        "study": {"name": "demo", "seed": 0, "data": {"source": "phantom", "sites": {"tbi_a": {"n_cases": 8}}},
                  "finetune": {"methods": [{"method": "zero_shot"}, {"method": "cp_lora", "rank": 8}], "path": None}},
        "environment": {"python": "3.11.7", "torch": "2.13.0", "flwr": "1.42.0", "platform": "Linux-6.1-x86_64"},
        "started": "2026-11-22T14:00:00+00:00", "finished": "2026-11-22T14:05:01+00:00", "seconds": 301.2,
        "sites": [site("tbi_a", "pretrain", 8), site("tbi_b", "pretrain", 12),
                  site("sah_a", "finetune", 15), site("sah_b", "finetune", 15)],
        "base": {"sha256": "de" * 32, "parameters": 812_345, "bytes": BASE_BYTES, "mode": "federated"},
        "evaluation": {"volume_edges_ml": [10.0, 30.0], "replicates": 1000, "threshold": 0.5},
        "methods": [method("zero_shot", "zero_shot", 0.412), adapter, full],
        "comparisons": [comparison("cp_lora-r8", 0.091), comparison("full", 0.115)],
        "rounds": rounds(adapter, full),
        "interruptions": 0, "hostile": {}, "cells": {"total": 9, "reused": 0}, "overlays": [],
        "findings": [
            finding("fine_tuning", "Fine-tuning is better than zero-shot.", "better",
                    "CP-LoRA (rank 8) against zero-shot: +0.091.", 0.091, names=["cp_lora-r8 against zero_shot"]),
            finding("ranks", "Higher ranks are better.", "not tested", "One rank alone was trained."),
        ],
        "gains": [],
        "correction": {"method": "Holm 1979", "n": {name: 2 for name in SCALES}, "level": 0.05, "margin": 0.02},
    }  # fmt: skip


def gain():
    return sample()


def loss():
    results = sample()
    results["methods"][1] = method("cp_lora-r8", "cp_lora", 0.352, rank=8, trainable=101_234, sent=405_612)
    results["comparisons"][0] = comparison("cp_lora-r8", -0.06)
    return results


def unclear():
    results = sample()
    results["methods"][1] = method("cp_lora-r8", "cp_lora", 0.431, rank=8, trainable=101_234, sent=405_612)
    results["comparisons"][0] = comparison("cp_lora-r8", 0.019)
    results["comparisons"].append(comparison("cp_lora-r8", -0.102, reference="full"))
    return results


def once():
    """Every method was trained once."""
    results = sample()
    parts = [*results["methods"][1:], *results["comparisons"]]
    for part in (found for each in parts for metric in each["metrics"].values() for found in flat(metric)):
        part["trainings"] = 1
        if "p" in part:
            part |= {"p": None, "p_holm": None}
    for comparison in results["comparisons"]:
        comparison |= {"verdict": "one training: no verdict", "p_margin_holm": None}
    results["findings"][0] |= {"verdict": "one training: no verdict", "supported": None}
    return results


def flat(metric):
    return [metric["overall"], *metric["by_volume"], *metric["by_extent"]]


def failed():
    results = sample()
    lost = {"metrics": None, "volume": None, "no_blood": None, "by_site": [], "by_fold": [], "repeats": []}
    results["methods"][1] |= {"failed": "fold 2, round 3: 1 of 2 sites replied, quorum is 2", **lost}
    del results["comparisons"][0]
    return results


def refusals():
    results = sample()
    first, second = results["rounds"][6:8]
    first["used"].pop()
    first["refused"] = [{"site": "sah_b", "reason": "contains NaN or inf"}]
    second |= {"committed": False, "sha256": None, "used": [],
               "missing": [{"site": s, "reason": DIED} for s in ("sah_a", "sah_b")]}  # fmt: skip
    results["rounds"].insert(8, second | {"attempt": 2, "committed": True, "missing": [], "used": first["used"]})
    results["interruptions"] = 2
    results["sites"][2] |= {"n_refused": 1, "source": "datalist"}
    return results


def nothing_tuned():
    results = sample()
    results |= {"methods": results["methods"][:1], "comparisons": [], "rounds": rounds()}
    return results


def few_patients():
    """Four patients in all: no interval anywhere, and one stratum without any case."""
    results = sample()
    unknown = {"low": None, "high": None}
    nothing = {"n": 0, "mean": None, "sd": None, "median": None, **unknown}
    for m in results["methods"]:
        for part in m["metrics"].values():
            part["overall"] |= {"n": 4, **unknown}
            part["by_volume"][0] |= nothing
            part["by_volume"][1] |= {"n": 1, "sd": None, **unknown}
            part["by_extent"][0] |= nothing | {"n": None, "withheld": True}
        m["volume"] |= {"pearson_r": None, "icc": None, "histogram": None}
    for c in results["comparisons"]:
        for part in c["metrics"].values():
            part["overall"] |= {"n": 4, "p": None, "p_holm": None, **unknown}
            c["verdict"] = "undecided"
            part["by_volume"][0] |= {"n": 0, "difference": None, "p": None, **unknown}
    results["rounds"][0]["used"][0]["loss"] = None
    return results


VARIANTS = {f.__name__: f for f in (gain, loss, unclear, once, failed, refusals, nothing_tuned, few_patients)}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_sample_is_plain_json_of_schema_3(variant):
    results = variant()
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert results["schema"] == 3
