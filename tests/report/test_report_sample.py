"""Results as a run writes them, in every outcome; the other tests of the report import them."""

import json

import pytest

BASE_BYTES = 3_249_380
DIED = "worker process died (signal 9)"
STRATA = {"< 10 mL": 7, "10 to 30 mL": 11, ">= 30 mL": 12}


def estimate(stratum, n, dice):
    return {"stratum": stratum, "n": n, "dice": dice, "sd": 0.171, "low": dice - 0.062, "high": dice + 0.057}


def method(name, kind, dice, *, rank=None, trainable=0, sent=0):
    shifts = zip(STRATA.items(), (-0.17, 0.01, 0.09), strict=True)
    return {
        "id": name,
        "method": kind,
        "rank": rank,
        "trainable": trainable,
        "bytes_up_per_round": sent,
        "strata": [estimate(stratum, n, dice + shift) for (stratum, n), shift in shifts],
        "overall": estimate("all with blood", 30, dice),
        "no_blood": {"n": 4, "n_false_positive": 1},
        "volume": {"n": 30, "pearson_r": 0.813, "bias_ml": -3.14, "loa_low_ml": -20.2, "loa_high_ml": 13.9},
        "by_site": [{"site": site, "n": 10, "dice": dice + d} for site, d in (("sah_a", 0.01), ("sah_b", -0.01))],
        "failed": None,
        "not_evaluated": [],
    }


def comparison(name, gap, half=0.041, reference="zero_shot"):
    around = {"difference": gap, "low": gap - half, "high": gap + half}
    strata = [{"stratum": s, "n": n, "difference": gap + d, "low": gap + d - 0.07, "high": gap + d + 0.08}
              for (s, n), d in zip(STRATA.items(), (0.03, 0.0, -0.01), strict=True)]  # fmt: skip
    return {"method": name, "reference": reference, "n": 30, **around, "strata": strata}


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
        "schema": 1, "sahfl": "0.1.0", "name": "demo", "fingerprint": "c0ffee" * 10 + "1234",
        "study": {"name": "demo", "seed": 0, "data": {"source": "phantom", "sites": {"tbi_a": {"n_cases": 8}}},
                  "finetune": {"methods": [{"method": "zero_shot"}, {"method": "cp_lora", "rank": 8}], "path": None}},
        "environment": {"python": "3.11.7", "torch": "2.13.0", "flwr": "1.41.0", "platform": "Linux-6.1-x86_64"},
        "started": "2026-11-22T14:00:00+00:00", "finished": "2026-11-22T14:05:01+00:00", "seconds": 301.2,
        "sites": [site("tbi_a", "pretrain", 8), site("tbi_b", "pretrain", 12),
                  site("sah_a", "finetune", 15), site("sah_b", "finetune", 15)],
        "base": {"sha256": "de" * 32, "parameters": 812_345, "bytes": BASE_BYTES, "mode": "federated"},
        "evaluation": {"volume_edges_ml": [10.0, 30.0], "replicates": 1000, "threshold": 0.5},
        "methods": [method("zero_shot", "zero_shot", 0.412), adapter, full],
        "comparisons": [comparison("cp_lora-r8", 0.091), comparison("full", 0.115)],
        "rounds": rounds(adapter, full),
        "interruptions": 0,
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


def failed():
    results = sample()
    results["methods"][1] |= {"failed": "fold 2, round 3: 1 of 2 sites replied, quorum is 2", "strata": [],
                              "overall": None, "volume": None, "no_blood": None, "by_site": []}  # fmt: skip
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
    for m in results["methods"]:
        m["overall"] |= {"n": 4, "low": None, "high": None}
        m["strata"][0] |= {"n": 0, "dice": None, "sd": None, "low": None, "high": None}
        m["strata"][1] |= {"n": 1, "sd": None, "low": None, "high": None}
        m["volume"] |= {"pearson_r": None}
    for c in results["comparisons"]:
        c |= {"n": 4, "low": None, "high": None}
        c["strata"][0] |= {"n": 0, "difference": None, "low": None, "high": None}
    results["rounds"][0]["used"][0]["loss"] = None
    return results


VARIANTS = {f.__name__: f for f in (gain, loss, unclear, failed, refusals, nothing_tuned, few_patients)}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_sample_is_plain_json_of_schema_1(variant):
    results = variant()
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert results["schema"] == 1
