"""The paper that this study follows, compared with the run; its column contains only what its abstract states."""

from __future__ import annotations

from collections.abc import Iterator

from sahfl.report.compared import compared, n_folds, short_verdict
from sahfl.report.names import ZERO_SHOT, dice_of, families, family_of, measured, measured_method, method_name
from sahfl.report.tables import Row, Table, shown_estimate
from sahfl.report.text import DASH, Results, count, number, stratum_name

PAPER = "Minoccheri, Hodgman et al. 2025, arXiv:2508.01772"
ABSTRACT = {
    "standard": "above zero-shot, below the LoRA family",
    "lora_c": "above standard fine-tuning; higher ranks better",
    "conv_lora": "above standard fine-tuning; higher ranks better",
    "cp_lora": "above standard fine-tuning; comparable with far fewer parameters",
    "dora_c": "above standard fine-tuning; higher ranks better",
    "conv_dora": "above standard fine-tuning; higher ranks better",
    "cp_dora": "above standard fine-tuning; higher ranks better",
}
"""Family -> its result according to the abstract."""


def paper_table(results: Results) -> Table:
    """What the paper's abstract says, with its numbers where it has some, beside this run with verdicts."""
    rows = (*_cohort_rows(results), *_dice_rows(results), *_other_rows(results))
    columns = ("Quantity", "The paper's abstract", "This run", "Against full fine-tuning, this run")
    return Table(f"The paper ({PAPER}) and this run", columns, rows, n_text=4)


def _cohort_rows(results: Results) -> Iterator[Row]:
    yield Row(("Cohorts",), heading=True)
    for role, title, known in (
        ("pretrain", "Patients, pretraining", "124 with traumatic brain injury, several institutions"),
        ("finetune", "Patients, fine-tuning", "30 with aneurysmal SAH, one institution"),
    ):
        sites = [site for site in results["sites"] if site["role"] == role]
        n = sum(site["n_patients"] for site in sites)
        yield Row((title, known, f"{n:,} at {count(len(sites), 'site')}" if sites else DASH, DASH))
    yield Row(("Federation", "none: one place", "see Bytes and Pooled, federated, single-site", DASH))
    yield Row(("Folds", "3, cross-validation over patients", str(n_folds(results) or DASH), DASH))


def _dice_rows(results: Results) -> Iterator[Row]:
    yield Row(("Mean Dice ± SD",), heading=True)
    zero_shot = measured_method(results, ZERO_SHOT)
    here = DASH if zero_shot is None else _with_sd(dice_of(zero_shot))
    yield Row(("Zero-shot", "0.410 ± 0.26", here, DASH), "zero_shot")
    absent = []
    for family in families():
        if family.key in ABSTRACT:
            methods = [m for m in measured(results) if family_of(m) == family and _is_plain(m)]
            here = "; ".join(f"{_short(m)}: {_with_sd(dice_of(m))}" for m in methods)
            gaps = [(_short(m), compared(results, m["id"], "full")) for m in methods]
            verdicts = "; ".join(f"{name}: {short_verdict(gap['verdict'])}" for name, gap in gaps if gap is not None)
            if here:
                yield Row((family.name, ABSTRACT[family.key], here, verdicts or DASH), family.key)
            else:
                absent.append(family.name)
    if absent:
        yield Row(("Not in this run", ", ".join(absent), DASH, DASH))


def _is_plain(method: Results) -> bool:
    """Whether all sites fine-tuned the base of all together, and nothing of the method stays at a site."""
    return method["trained_at"] is None and method["part"] is None and method["start"] == "base"


def _short(method: Results) -> str:
    """What tells a method apart from others of its family: the rank and the other options of its name."""
    details = method_name(method).partition(" (")[2].removesuffix(")")
    if method["rank"] is not None:
        return details
    name = str(method["method"]).replace("_", " ")
    return f"{name} ({details})" if details else name


def _with_sd(overall: Results) -> str:
    sd = "" if overall["sd"] is None else f" ± {number(overall['sd'], 2)}"
    return f"{number(overall['mean'])}{sd}"


def _other_rows(results: Results) -> Iterator[Row]:
    zero_shot = measured_method(results, ZERO_SHOT)
    parts = [] if zero_shot is None else zero_shot["metrics"]["dice"]["by_volume"]
    if here := "; ".join(f"{stratum_name(part['stratum'])}: {shown_estimate(part)}" for part in parts):
        yield Row(("Beyond the mean",), heading=True)
        yield Row(("Dice by volume (zero-shot)", "all methods better on larger volumes", here, DASH))
