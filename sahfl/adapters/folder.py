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
from sahfl.adapters.card import model_card
from sahfl.adapters.files import load_tensors, save_tensors
from sahfl.adapters.peft import from_peft, is_peft_form, peft_settings, to_peft
from sahfl.atomic import write_atomic
from sahfl.config import AdapterTuning, Section, TrainedMethod
from sahfl.config.methods import TrainedMethodSetting
from sahfl.errors import AdapterError

TENSORS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "README.md"
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class AdapterNote(Section):
    """What an adapter belongs to."""

    method: TrainedMethodSetting
    """The fine-tuning method with all its settings."""
    adapted: tuple[str, ...]
    """Paths of the convolutions with an adapter."""
    over_full_rank: tuple[str, ...]
    """Those with more terms than their kernel needs."""
    without_magnitude: tuple[str, ...]
    """Those whose DoRA magnitude was left out, because the norm that follows would cancel it."""
    weights: tuple[str, ...]
    """The network's own tensors that were trained."""
    base_sha256: Sha256
    """Digest of the base network."""
    sha256: Sha256
    """Digest of the adapter's tensors."""
    parameters: int
    """Trained numbers."""
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
    """An adapter that was read from its folder."""

    note: AdapterNote
    state: AdapterState


def describe(net: nn.Module, method: TrainedMethod, base_sha256: str) -> AdapterNote:
    """The note of the adapter that a network carries, without what only a study knows."""
    tensors = exchanged.read(net)
    return AdapterNote(
        method=method,
        **vars(inspect(net)),
        base_sha256=base_sha256,
        sha256=digest(tensors),
        parameters=sum(value.size for value in tensors.values()),
    )


def save_adapter(folder: Path, net: nn.Module, note: AdapterNote) -> None:
    """Write the adapter that a network carries, file by file atomically; the same adapter gives the same bytes."""
    method, tensors, settings = note.method, exchanged.read(net), {}
    if isinstance(method, AdapterTuning) and is_peft_form(net, method):
        tensors = to_peft(net, tensors, decomposed=method.has_magnitudes)
        settings = peft_settings(net, method, base=f"sahfl-base-{note.base_sha256[:12]}")
    save_tensors(folder / TENSORS, tensors)
    config = settings | {"sahfl": note.model_dump(mode="json")}
    write_atomic(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_atomic(folder / CARD, model_card(note.model_dump(), peft=bool(settings)))


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter folder.

    Raises:
        AdapterError: a file is missing or damaged, or the tensors are not those that the note names.
    """
    try:
        config = json.loads((folder / CONFIG).read_bytes())
        note = AdapterNote.model_validate_json(json.dumps(config["sahfl"]))
    except OSError as error:
        raise AdapterError(f"{folder / CONFIG}: {error.strerror}") from error
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise AdapterError(f"{folder / CONFIG}: sahfl.{where}: {problem['msg']}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
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
        AdapterError: the network is not the adapter's base (other architecture or other weights), or carries an
            adapter already; it computes what it did, but may be frozen.
    """
    note = adapter.note
    if (found := digest(exchanged.read_all(net))) != note.base_sha256:
        raise AdapterError(
            f"{type(net).__name__}: base digest is {found[:12]}, the adapter belongs to {note.base_sha256[:12]} "
            "(other tensors or another architecture)"
        )
    restore(net, note.method, Attached(note.adapted, note.over_full_rank, note.without_magnitude, note.weights))
    exchanged.load(net, adapter.state)
