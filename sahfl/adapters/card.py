"""The model card of an adapter folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

METRICS = {"dice": "Dice, all with blood", "n": "patients with blood", "n_no_blood": "patients without blood"}


def model_card(note: Mapping[str, Any], *, peft: bool) -> str:
    """Markdown with the front matter that model hubs read.

    Args:
        note: ``folder.AdapterNote`` as a mapping.
        peft: Hugging Face PEFT can load the folder.
    """
    method = note["method"]
    lines = [
        "---",
        "library_name: sahfl" if not peft else "library_name: peft",
        "tags: [head-ct, hemorrhage-segmentation, federated-learning, low-rank-adapter]",
        "---",
        "",
        f"# Adapter {method['method']} of study {note['study'] or '(none)'}",
        "",
        "Segments intracranial hemorrhage on head CT when put on the base network it was trained on. It holds trained",
        "numbers only: no scan, no patient data and none of the frozen weights of the base. For research use; not a",
        "medical device.",
        "",
        "| | |",
        "|---|---|",
        *_rows(note),
        "",
        "## Use",
        "",
        "```python",
        "from pathlib import Path",
        "from sahfl.adapters.folder import put_adapter, read_adapter",
        "",
        'adapter = read_adapter(Path("this folder"))',
        "put_adapter(net, adapter)  # net: the base network; refused if its digest is another one",
        "```",
    ]
    if peft:
        lines += ["", "Hugging Face PEFT loads the folder too:", "", "```python", "from peft import PeftModel", ""]
        lines += ['net = PeftModel.from_pretrained(net, "this folder")', "```"]
    lines += [
        "",
        "## Limits",
        "",
        "Trained and measured on the patients of the sites above, with fold "
        f"{note['fold']} held out; other scanners, ages and diseases may differ. Averaged factors can, in principle,",
        "reveal something of the training data: treat the folder as the study's agreement says.",
    ]
    return "\n".join(lines) + "\n"


def _rows(note: Mapping[str, Any]) -> list[str]:
    method = note["method"]
    settings = {
        "method": method["method"],
        "rank": method.get("rank"),
        "trained at another rank": ", ".join(f"{s} at {r}" for s, r in method.get("site_ranks", {}).items()) or None,
        "alpha": method.get("alpha"),
        "scaling": method.get("scaling"),
        "trained numbers": f"{note['parameters']:,}",
        "adapted convolutions": len(note["adapted"]),
        "with more terms than they need": len(note["over_full_rank"]),
        "magnitudes left out (a norm cancels them)": len(note["without_magnitude"]),
        "trained tensors of the network itself": len(note["weights"]),
        "base network (SHA-256)": f"`{note['base_sha256']}`",
        "adapter (SHA-256)": f"`{note['sha256']}`",
        "settings of the study (SHA-256)": f"`{note['fingerprint']}`" if note["fingerprint"] else None,
        "held-out fold, counted from 0": note["fold"] if note["fold"] >= 0 else None,
        "rounds": note["rounds"] or None,
        "sites": ", ".join(note["sites"]) or None,
        **{METRICS.get(name, name): _metric(name, value) for name, value in note["metrics"].items()},
    }
    return [f"| {name} | {value} |" for name, value in settings.items() if value is not None]


def _metric(name: str, value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:.0f}" if name.startswith("n") else f"{value:.3f}"
