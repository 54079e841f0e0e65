"""The paper that this study follows, compared with the run; its column contains only what its abstract states."""

from __future__ import annotations

from collections.abc import Iterator

from sahfl.report.names import ZERO_SHOT, dice_of, families, family_of, measured, measured_method, method_name
from sahfl.report.summary import compared, n_folds
from sahfl.report.tables import Row, Table, short_verdict, shown_estimate
from sahfl.report.text import DASH, Results, count, number, stratum_name

PAPER = "Minoccheri, Hodgman et al. 2025, arXiv:2508.01772"
UNKNOWN = "not known here"
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
    """The quantities of the paper's tables, its numbers if they are known, and those of this run with verdicts."""
    rows = (*_cohort_rows(results), *_dice_rows(results), *_other_rows(results))
    columns = (
        "Quantity",
        "In words, the paper",
        "The paper's number",
        "This run",
        "Against full fine-tuning, this run",
    )
    return Table(f"The paper ({PAPER}) and this run", columns, rows, n_text=5)


def _cohort_rows(results: Results) -> Iterator[Row]:
    yield Row(("Cohorts",), heading=True)
    for role, title, words, known in (
        ("pretrain", "Patients, pretraining", "traumatic brain injury, several institutions", "124"),
        ("finetune", "Patients, fine-tuning", "aneurysmal SAH, one institution", "30"),
    ):
        sites = [site for site in results["sites"] if site["role"] == role]
        n = sum(site["n_patients"] for site in sites)
        yield Row((title, words, known, f"{n:,} at {count(len(sites), 'site')}" if sites else DASH, DASH))
    yield Row(("Folds", "cross-validation over patients", "3", str(n_folds(results) or DASH), DASH))


def _dice_rows(results: Results) -> Iterator[Row]:
    yield Row(("Mean Dice ± SD",), heading=True)
    zero_shot = measured_method(results, ZERO_SHOT)
    here = DASH if zero_shot is None else _with_sd(dice_of(zero_shot))
    yield Row(("Zero-shot", "no fine-tuning", "0.410 ± 0.26", here, DASH), "zero_shot")
    for family in families():
        if family.key in ABSTRACT:
            methods = [m for m in measured(results) if family_of(m) == family and _is_plain(m)]
            here = "; ".join(f"{_short(m)}: {_with_sd(dice_of(m))}" for m in methods)
            gaps = [(_short(m), compared(results, m["id"], "full")) for m in methods]
            verdicts = "; ".join(f"{name}: {short_verdict(gap['verdict'])}" for name, gap in gaps if gap is not None)
            shown = here or "not in this run", verdicts or DASH
            yield Row((family.name, ABSTRACT[family.key], UNKNOWN, *shown), family.key)


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
    yield Row(("Beyond the mean",), heading=True)
    zero_shot = measured_method(results, ZERO_SHOT)
    parts = [] if zero_shot is None else zero_shot["metrics"]["dice"]["by_volume"]
    here = "; ".join(f"{stratum_name(part['stratum'])}: {shown_estimate(part)}" for part in parts)
    words = "all methods better on larger volumes"
    yield Row(("Dice by volume (zero-shot)", words, UNKNOWN, here or DASH, DASH))
    yield Row(("Predicted against annotated volume", "reported", UNKNOWN, "see Hemorrhage volume", DASH))
    yield Row(("Federation", "none: one place", "none", "see Bytes and Pooled, federated, single-site", DASH))
