"""Made-up results of a whole grid: families, ranks, rules, pooled, each, repeats, a failure, withheld groups."""

import math
import random

from test_report_sample import comparison, failed, finding, method, rounds, sample, site

PER_RANK = {"lora_c": 55_281, "conv_lora": 31_969, "cp_lora": 6_959}
SITES = ("sah_a", "sah_b", "sah_c")
FULL = 6_495_868


def grid_methods():
    """About thirty methods; Dice grows with rank, a little less pooled, much less alone."""
    chance = random.Random(7)
    found = [method("zero_shot", "zero_shot", 0.412), method("full", "full", 0.521, trainable=FULL, sent=4 * FULL)]
    for kind, share in (
        ("encoder", 0.62),
        ("decoder", 0.3),
        ("bottleneck", 0.2),
        ("last_layer", 1e-5),
        ("norm_bias", 1e-3),
    ):
        dice = 0.46 + 0.05 * share
        found.append(method(kind, kind, dice, trainable=int(FULL * share), sent=4 * int(FULL * share)))
    for family, base in PER_RANK.items():
        for prefix, kind, more in (("", family, 0), ("dora", family.replace("lora", "dora"), 3426)):
            for rank in (1, 8, 64) if not prefix else (8,):
                dice = 0.47 + 0.012 * math.log2(rank) + chance.uniform(-0.01, 0.01)
                n = base * rank + more
                row = method(f"{kind}-r{rank}", kind, dice, rank=rank, trainable=n, sent=2 * n)
                found.append(row | {"magnitudes": {"layers": 23, "trained": 5} if prefix else None})
    n = PER_RANK["cp_lora"]
    for rank in (1, 8, 64):
        name, dice = f"cp_lora-r{rank}-project", 0.475 + 0.011 * math.log2(rank)
        found.append(
            method(name, "cp_lora", dice, rank=rank, trainable=n * rank, sent=2 * n * rank, aggregation="project")
        )
    alone = dict(rank=8, trainable=8 * n, sent=16 * n)
    found.append(method("cp_lora-r8-pooled", "cp_lora", 0.515, **alone, at="pooled"))
    found.append(method("cp_lora-r8-pooled_steps", "cp_lora", 0.507, **alone, at="pooled_steps"))
    found.append(method("cp_lora-r8-each", "cp_lora", 0.447, **alone, at="each"))
    found += [
        at_one_site(method(f"cp_lora-r8-at-{s}", "cp_lora", 0.43 + 0.01 * i, **alone, at=s))
        for i, s in enumerate(SITES)
    ]
    found.append(method("full-pooled", "full", 0.53, trainable=FULL, sent=4 * FULL, at="pooled"))
    return found


def at_one_site(row):
    """The row of a training at one site alone, which is over this site's patients only."""
    for part in row["metrics"].values():
        part["overall"]["n"] = 10
    row["by_site"] = [{"site": row["trained_at"], "n": 10, "dice": row["metrics"]["dice"]["overall"]["mean"]}]
    return row


def grid():
    """Results of the grid: one method failed, one has repeats, a site withholds a split, another is out."""
    results = sample() | {"name": "grid", "methods": grid_methods()}
    by_id = {m["id"]: m for m in results["methods"]}
    by_id["dora_c-r8"] |= {
        key: failed()["methods"][1][key] for key in ("failed", "metrics", "volume", "no_blood", "by_site")
    }
    repeated = by_id["cp_lora-r8"]
    repeated["repeats"] = [{"repeat": i + 1, "dice": d} for i, d in enumerate((0.49, 0.51, 0.505))]
    repeated["sd_repeats"] = 0.0104
    for m in (by_id["conv_lora-r64"], by_id["cp_lora-r64"]):
        m["withheld"] = [
            {"site": "sah_c", "n_folds": 3, "strata": 2, "blood": 0, "no_blood": 1, "replicates": 0, "misses": 2}
        ]
        for part in m["metrics"].values():
            part["by_volume"][0] |= {
                "mean": None,
                "sd": None,
                "median": None,
                "low": None,
                "high": None,
                "n": None,
                "withheld": True,
            }
            part["by_extent"][2] |= {"withheld": True}
    by_id["norm_bias"]["not_evaluated"] = [{"fold": 2, "site": "sah_b", "reason": "no reply within 300 s"}]
    working = [m for m in results["methods"] if m["failed"] is None and m["id"] != "zero_shot"]
    dice = {m["id"]: m["metrics"]["dice"]["overall"]["mean"] for m in working} | {"zero_shot": 0.412}
    pairs = [(m["id"], "zero_shot") for m in working]
    pairs += [(m["id"], "full") for m in working if m["rank"] is not None and m["trained_at"] is None]
    pairs += [("cp_lora-r8", f"cp_lora-r8-{place}") for place in ("pooled", "pooled_steps", "each")]
    pairs += [("full", "full-pooled")]
    pairs += [(f"cp_lora-r{r}", f"conv_lora-r{r}") for r in (1, 8, 64)]
    results["comparisons"] = [comparison(a, dice[a] - dice[b], reference=b, before=dice[b]) for a, b in pairs]
    for compared in results["comparisons"]:
        if "-at-" in compared["method"]:
            for part in compared["metrics"].values():
                part["overall"]["n"] = 10
    results["rounds"] = rounds(*[m for m in working if m["trained_at"] != "each"])
    results["sites"].append(site("sah_c", "finetune", 9) | {"volume_ml": None})
    results["sites"].append(
        site("tbi_c", "pretrain", 0)
        | {"source": "", "volume_ml": 0.0, "out": "error at the site: DataRefused", "findings": {}}
    )
    results["cells"] = {"total": 87, "reused": 12}
    results["findings"] = findings()
    results["gains"] = [site_gain(name, value) for name, value in (("sah_a", 0.04), ("sah_b", 0.0), ("sah_c", -0.04))]
    results["overlays"] = [
        {
            **{"case": case, "method": "cp_lora-r8", "site": "sah_a", "fold": 0, "png": f"overlays/{case}.png"},
            **{"dice": dice, "volume_ml": ml, "predicted_ml": ml - 3.0},
        }
        for case, dice, ml in (("best", 0.83, 41.2), ("median", 0.52, 18.4), ("worst", 0.04, 3.3))
    ]
    return results


def site_gain(name, value):
    pair = {"site": name, "method": "cp_lora-r8", "reference": f"cp_lora-r8-at-{name}"}
    numbers = {"difference": value, "low": value - 0.02, "high": value + 0.02, "n": 13, "trainings": 2, "p": 0.5}
    verdict = "better" if value > 0.02 else "worse" if value < -0.02 else "undecided"
    return pair | numbers | {"dice": 0.45 + value, "dice_alone": 0.45, "verdict": verdict}


def findings():
    third = "CP-LoRA is not worse than convLoRA, with a third of its parameters or less."
    ranks = [f"cp_lora-r{rank} against cp_lora-r1" for rank in (8, 64)]
    rows = (
        ("fine_tuning", "Fine-tuning is better than zero-shot.", "better", "CP-LoRA (rank 8) against zero-shot", 0.094),
        ("adapters", "The LoRA family is better than full fine-tuning.", "undecided", "CP-LoRA against full", -0.015),
        ("volume", "Dice is better for the largest hemorrhages.", "better", "largest against smallest stratum", 0.26),
        ("cp_lora", third, "worse", "cp_lora-r8 against conv_lora-r8, rank >= 8", -0.034),
        ("ranks", "Higher ranks are better than the lowest.", "better", "CP-LoRA, rank 64 against rank 1", 0.07),
        ("pooled", "Federated is not worse than pooled.", "not tested", "No pooled network was trained", None),
    )
    return [
        finding(
            *(id_, claim, verdict, f"{text}{_said(gap)}.", gap),
            wanted="not worse" if "not worse" in claim else "better",
            paper=None if id_ == "pooled" else "something else",
            names=ranks if id_ == "ranks" else () if gap is None else [text],
        )
        for id_, claim, verdict, text, gap in rows
    ]


def _said(gap):
    """As ``findings`` of a real run says it."""
    return "" if gap is None else f": {gap:+.3f} (95 % interval {gap - 0.03:+.3f} to {gap + 0.03:+.3f}), n = 39"
