"""The CLAIM checklist, filled in from the results; items that the results do not answer are left to the authors.

Source: Mongan, Moy & Kahn 2020, Radiol. Artif. Intell. 2:e200029; numbering of the 2024 update, Tejani et al. 2024,
Radiol. Artif. Intell. 6:e240300. Items are shortened here; the papers contain the full text.
"""

from __future__ import annotations

from sahfl.config.network import NETWORKS
from sahfl.report.compared import n_folds
from sahfl.report.names import left_out, measured
from sahfl.report.tables import METRICS, Row, Table
from sahfl.report.text import DASH, Results, count, whole

AUTHORS = "to be filled in by the authors"
ITEMS: dict[str, tuple[str, ...]] = {
    "Title and abstract": ("Names the study as one of AI, with the category of technology", "Structured summary"),
    "Introduction": ("Background and intended use", "Aims, objectives, hypotheses"),
    "Study design": ("Prospective or retrospective", "Study goal"),
    "Data": (
        *("Data sources", "Inclusion and exclusion criteria", "Data preprocessing", "Selection of data subsets"),
        *("De-identification", "Missing data", "Image acquisition protocol"),
    ),
    "Reference standard": (
        *("Definition of the reference standard", "Rationale for choosing it", "Source of the annotations"),
        *("Annotation of the test set", "Variability between and within annotators"),
    ),
    "Data partitions": ("How data were assigned to partitions", "Level at which partitions are disjoint"),
    "Testing data": ("Intended sample size",),
    "Model": ("Description of the model", "Software and packages", "Initialisation of parameters"),
    "Training": ("Training approach", "Selection of the final model", "Ensembling"),
    "Evaluation": (
        *("Metrics of performance", "Measures of significance and uncertainty", "Robustness or sensitivity analysis"),
        *("Explainability", "Evaluation on internal data", "Testing on external data", "Trial registration"),
    ),
    "Results: data": ("Patients included and excluded", "Demographic and clinical characteristics by partition"),
    "Results: model": ("Performance with uncertainty", "Diagnostic performance, precision", "Failure analysis"),
    "Discussion": ("Limitations", "Implications for practice"),
    "Other": ("Full protocol or technical details", "Availability of software, model, data", "Funding"),
}
"""Section -> its items, which are numbered across sections."""


def claim_table(results: Results) -> Table:
    """Make the table of all CLAIM items, each with this run's answer or a note for the authors."""
    rows, item, answers = [], 0, _answers(results)
    for section, titles in ITEMS.items():
        rows.append(Row((section,), heading=True))
        for title in titles:
            item += 1
            rows.append(Row((str(item), title, answers.get(item, AUTHORS))))
    columns = ("Item", "Requirement", "This study")
    return Table("CLAIM checklist, numbered as in the 2024 update", columns, tuple(rows), n_text=3)


def n_filled(table: Table) -> int:
    """Number of items that the results filled in."""
    return sum(not row.heading and AUTHORS not in row.cells[2] for row in table.rows)


def _sources(results: Results) -> str:
    by_role = {"pretrain": "pretraining", "finetune": "fine-tuning"}
    parts = [
        f"{site['site']} ({by_role.get(site['role'], site['role'])}, {site['source'] or DASH})"
        for site in results["sites"]
    ]
    return "; ".join(parts) + ". Time and place of acquisition: " + AUTHORS + "."


def _settings(results: Results, *path: str) -> object:
    found: object = results["study"]
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _preprocessing(results: Results) -> str:
    spacing, size = _settings(results, "views", "spacing_mm"), _settings(results, "views", "size")
    known = f" Pixels of {spacing} mm, fields of {size}." if spacing is not None else ""
    return f"Hounsfield units in three windows, 2-D slices in up to three planes.{known} All settings: see Settings."


def _missing(results: Results) -> str:
    lost = sum(len(method["not_evaluated"]) for method in results["methods"])
    out = [site["site"] for site in results["sites"] if site["out"]]
    away = f"sites out: {', '.join(out)}" if out else "no site was out"
    return f"{count(lost, 'fold')} of a method and site not evaluated; {away}; differences need both methods."


def _model(results: Results) -> str:
    size = _settings(results, "model", "size")
    kind = NETWORKS[size].description if isinstance(size, str) and size in NETWORKS else "2-D network"
    return (
        f"{kind} on several planes, {whole(results['base']['parameters'])} parameters; methods of fine-tuning with "
        "their trainable parameters: see the table of methods."
    )


def _initialisation(results: Results) -> str:
    base, methods = results["base"], results["methods"]
    parts = [f"Base network: {base['mode']}, SHA-256 {base['sha256'][:12]}"]
    if any((method["trained_at"] or "").startswith("from-") for method in methods):
        parts.append("some methods start from single trauma centres' own bases")
    if any(method["start"] == "scratch" for method in methods):
        parts.append("some from random weights")
    return "; ".join([*parts, *["adapters start at 0"] * any(method["rank"] is not None for method in methods)]) + "."


def _included(results: Results) -> str:
    parts = [
        f"{site['site']}: {count(site['n_patients'], 'patient')}, {count(site['n_refused'], 'scan')} refused"
        + (f", out ({site['out']})" if site["out"] else "")
        for site in results["sites"]
    ]
    return "; ".join(parts) + "."


def _answers(results: Results) -> dict[int, str]:
    """Number of an item -> its answer from the results."""
    folds, evaluation = n_folds(results), results["evaluation"]
    partitions = f"{folds}-fold cross-validation at each site, by seed {_settings(results, 'seed')}."
    packages = ", ".join(f"{name} {version}" for name, version in results["environment"].items())
    rounds = count(sum(entry["committed"] for entry in results["rounds"]), "committed round")
    metrics = ", ".join(name for name, _ in METRICS.values())
    tolerance = evaluation.get("tolerance_mm")
    metrics += "" if tolerance is None else f" (tolerance {tolerance} mm)"
    shown = ", ".join(overlay["case"] for overlay in results.get("overlays", []))
    pictures = "Only weights, sums, counts and pictures of single cases" if shown else "Only weights, sums and counts"
    return {
        1: "Deep learning: federated low-rank fine-tuning of a segmentation network.",
        7: _sources(results),
        9: _preprocessing(results),
        11: f"{pictures} left the hospitals; of DICOM headers the patient id is read, hashed.",
        12: _missing(results),
        19: partitions if folds else AUTHORS,
        20: "Patient: all scans of a patient are in one fold of one site.",
        22: _model(results),
        23: f"sahfl {results['sahfl']}; {packages}.",
        24: _initialisation(results),
        25: f"Federated, {rounds}; rounds, steps, optimiser: see Settings.",
        26: "The network after the last round; none was chosen by its test result.",
        27: "The probabilities of the views are averaged; folds are not combined.",
        28: f"{metrics}; Pearson, ICC and Bland-Altman of volume. A missed hemorrhage has Dice 0 and no HD95.",
        29: f"95 % intervals from {evaluation['replicates']} bootstrap replicates over patients and from repeated "
        f"trainings; paired differences, Holm's correction over {results['correction']['n']['dice']} of Dice.",
        30: f"{count(len(measured(results)), 'method')}, paired where both have a patient; by volume, extent, site and "
        "fold.",
        32: "Every patient at most once by each training, with a network that was not fine-tuned on that patient.",
        33: "Each hospital by networks that were trained without it; otherwise cross-validation within the hospitals."
        if left_out(results)
        else "Not done: cross-validation within the participating hospitals.",
        35: _included(results),
        37: "See Segmentation accuracy.",
        39: f"{f'Overlays of the {shown} case; ' if shown else ''}Dice by volume and extent.",
        40: f"See Limits; clinical limitations: {AUTHORS}.",
        42: f"Study fingerprint {results['fingerprint'][:12]}; every setting under Settings.",
    }
