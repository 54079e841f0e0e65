"""The adapter folder: what a site, a paper or another program takes away from a run.

adapter_model.safetensors    the tensors; under PEFT's names where the method is PEFT's own
adapter_config.json          what they belong to, under the key ``sahfl``; PEFT's settings beside it where they apply
README.md                    the model card
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError
from torch import nn

from sahfl.adapters import AdapterState, digest, exchanged
from sahfl.adapters.attach import Attached, inspect, restore
from sahfl.adapters.files import load_tensors, save_tensors
from sahfl.adapters.peft import from_peft, is_peft_form, peft_settings, to_peft
from sahfl.atomic import write_atomic
from sahfl.config import AdapterTuning, TrainedMethod
from sahfl.errors import AdapterError
from sahfl.regular_files import LIST_BYTES, check_inside, read_json

TENSORS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "README.md"
TEMPLATE = """\
---
library_name: {library}
tags: [head-ct, hemorrhage-segmentation, federated-learning, low-rank-adapter]
---

# Adapter {method} of study {study}

Segments intracranial hemorrhage on head CT when put on the base network it was trained on. It holds trained
numbers only: no scan, no patient data and none of the frozen weights of the base. For research use; not a
medical device.

| | |
|---|---|
{rows}

## Use

```python
from pathlib import Path
from sahfl.adapters.folder import put_adapter, read_adapter

adapter = read_adapter(Path("this folder"))
put_adapter(net, adapter)  # net: the base network; refused if its digest is another one
```
{peft}
## Limits

Trained and measured on the patients of the sites above, with fold {fold} held out; other scanners, ages and diseases \
may differ. Averaged factors can, in principle,
reveal something of the training data: treat the folder as the study's agreement requires.
"""
PEFT = """
Hugging Face PEFT loads the folder too:

```python
from peft import PeftModel

net = PeftModel.from_pretrained(net, "this folder")
```
"""
METRICS = {"dice": "Dice, all with blood", "n": "patients with blood", "n_no_blood": "patients without blood"}
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class AdapterNote(Attached):
    """What an adapter belongs to."""

    base_sha256: Sha256
    """Digest of the base network."""
    sha256: Sha256
    """Digest of the adapter's tensors."""
    parameters: int
    """Trained numbers."""
    trained_as: str = ""
    """Id of the method in its study; what stays at the sites is not in the adapter, so its own id may be another."""
    study: str = ""
    """Name of the study."""
    fingerprint: str = ""
    """Digest of the study's settings."""
    fold: int = -1
    """Held-out fold."""
    rounds: int = 0
    """Rounds of training."""
    sites: tuple[str, ...] = ()
    """Sites whose replies were used."""
    metrics: dict[str, float | None] = Field(default_factory=dict)
    """What was measured on the held-out fold."""


@dataclass(frozen=True)
class Adapter:
    """An adapter as its folder holds it."""

    note: AdapterNote
    state: AdapterState


def describe(net: nn.Module, method: TrainedMethod, base_sha256: str) -> AdapterNote:
    """The note of a network's adapter, without the fields that only a study can fill."""
    tensors = exchanged.read(net)
    return AdapterNote(
        **vars(inspect(net, method)),
        base_sha256=base_sha256,
        sha256=digest(tensors),
        parameters=sum(value.size for value in tensors.values()),
    )


def save_adapter(folder: Path, net: nn.Module, note: AdapterNote) -> None:
    """Write a network's adapter, each file atomically; the same adapter gives the same bytes."""
    method, tensors, settings = note.method, exchanged.read(net), {}
    if isinstance(method, AdapterTuning) and is_peft_form(net, method):
        tensors = to_peft(net, tensors, decomposed=method.has_magnitudes)
        settings = peft_settings(net, method, base=f"sahfl-base-{note.base_sha256[:12]}")
    save_tensors(folder / TENSORS, tensors)
    config = settings | {"sahfl": note.model_dump(mode="json")}
    write_atomic(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_atomic(folder / CARD, _model_card(note, peft=bool(settings)))


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter folder.

    Raises:
        AdapterError: a file is missing, damaged or a link that leads out of the folder, or the tensors are not those
            that the note names.
    """
    try:
        for name in (CONFIG, TENSORS):
            check_inside(folder / name, folder)
        config = read_json(folder / CONFIG, most=LIST_BYTES)
        note = AdapterNote.model_validate_json(json.dumps(config["sahfl"]))
    except OSError as error:
        raise AdapterError(f"{error.filename}: {error.strerror}") from error
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise AdapterError(f"{folder / CONFIG}: sahfl.{where}: {problem['msg']}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"{folder / CONFIG}: is not the note of a sahfl adapter") from error
    tensors, _ = load_tensors(folder / TENSORS)
    if "peft_type" in config:
        tensors = from_peft(tensors, without_magnitude=frozenset(note.without_magnitude))
    if (found := digest(tensors)) != note.sha256:
        raise AdapterError(f"{folder / TENSORS}: has digest {found[:12]}, the note says {note.sha256[:12]}")
    return Adapter(note, tensors)


def put_adapter(net: nn.Module, adapter: Adapter) -> None:
    """Put an adapter on its base network, in place; ``attach.detach`` takes it off again.

    Raises:
        AdapterError: the network is not the adapter's base, or carries an adapter already. It still computes the
            same, but may be frozen.
    """
    note = adapter.note
    if (found := digest(exchanged.read_all(net))) != note.base_sha256:
        raise AdapterError(
            f"{type(net).__name__}: base digest is {found[:12]}, the adapter belongs to {note.base_sha256[:12]} "
            "(other tensors or another architecture)"
        )
    restore(net, note)
    exchanged.load(net, adapter.state)


def _model_card(note: AdapterNote, *, peft: bool) -> str:
    """Markdown with the front matter that model hubs read; ``peft``: Hugging Face PEFT can load the folder."""
    return TEMPLATE.format(
        library="peft" if peft else "sahfl",
        method=note.method.method,
        study=note.study or "(none)",
        rows="\n".join(_rows(note)),
        peft=PEFT if peft else "",
        fold=note.fold,
    )


def _rows(note: AdapterNote) -> list[str]:
    method = note.method.model_dump()
    settings = {
        "method": method["method"],
        "rank": method.get("rank"),
        "trained at another rank": ", ".join(f"{s} at {r}" for s, r in method.get("site_ranks", {}).items()) or None,
        "alpha": method.get("alpha"),
        "scaling": method.get("scaling"),
        "trained numbers": f"{note.parameters:,}",
        "adapted convolutions": len(note.adapted),
        "with more terms than they need": len(note.over_full_rank),
        "magnitudes left out (a norm cancels them)": len(note.without_magnitude),
        "trained tensors of the network itself": len(note.weights),
        "base network (SHA-256)": f"`{note.base_sha256}`",
        "adapter (SHA-256)": f"`{note.sha256}`",
        "settings of the study (SHA-256)": f"`{note.fingerprint}`" if note.fingerprint else None,
        "held-out fold, counted from 0": note.fold if note.fold >= 0 else None,
        "rounds": note.rounds or None,
        "sites": ", ".join(note.sites) or None,
        **{METRICS.get(name, name): _metric(name, value) for name, value in note.metrics.items()},
    }
    return [f"| {name} | {value} |" for name, value in settings.items() if value is not None]


def _metric(name: str, value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:.0f}" if name.startswith("n") else f"{value:.3f}"
