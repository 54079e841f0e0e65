"""Every YAML file that sahfl reads, as typed values.

A study file is read once, checked as a whole and then frozen: code receives ``Study``, never a dict. All problems of a
file are reported together (``ConfigError``), each with its key, the value found and what was expected.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from sahfl.errors import ConfigError

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]
"""Lower-case letters, digits, ``-`` and ``_``; names become folder names, so nothing else is allowed."""
View = Literal["axial", "coronal", "sagittal"]


class Section(BaseModel):
    """A part of a YAML file: typed, frozen, and strict about unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


SectionT = TypeVar("SectionT", bound=Section)


# ---------------------------------------------------------------------------------------------------- data


class PhantomSite(Section):
    """One simulated hospital of the phantom cohort."""

    kind: Literal["tbi", "sah", "normal"]
    """Traumatic hemorrhage, aneurysmal SAH, or heads without blood."""
    n_cases: Annotated[int, Field(ge=1, le=10_000)]
    """Patients, one scan each."""
    profile: Literal["standard", "sharp", "smooth", "noisy", "low_dose", "tilted", "offset"] = "standard"
    """Scanner profile: what makes this site's images different from the others'."""


Matrix = Annotated[int, Field(ge=32, le=512)]
Spacing = Annotated[float, Field(gt=0.2, le=12)]


class PhantomData(Section):
    """Simulated head CT, written by each site as NIfTI before the first round."""

    source: Literal["phantom"]
    """Which kind of data section this is."""
    shape: tuple[Matrix, Matrix, Annotated[int, Field(ge=8, le=512)]]
    """Voxels along x (left-right), y (front-back) and z (foot-head)."""
    spacing_mm: tuple[Spacing, Spacing, Spacing]
    """Voxel size in mm along x, y, z."""
    sites: Annotated[dict[Name, PhantomSite], Field(min_length=1)]
    """The simulated hospitals by name."""


class DatalistData(Section):
    """NIfTI scans on disk, named by a datalist."""

    source: Literal["datalist"]
    """Which kind of data section this is."""
    path: Path
    """JSON file ``{"sites": {name: [{"image": ..., "label": ..., "patient": ...}]}}``; files relative to its folder."""


# ---------------------------------------------------------------------------------------------------- network


def _multiple_of_16(size: int) -> int:
    if size % 16:
        raise ValueError("must be a multiple of 16 (four halvings in the U-Net)")
    return size


Extent = Annotated[int, Field(ge=32, le=512), AfterValidator(_multiple_of_16)]


class ViewsConfig(Section):
    """How a CT volume becomes the 2-D slices that the network sees."""

    weights: Annotated[dict[View, Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)] = {
        "axial": 1.0,
        "coronal": 0.5,
        "sagittal": 0.5,
    }
    """Views in use, and the weight of each in training batches and in the fused prediction."""
    spacing_mm: Annotated[float, Field(ge=0.3, le=4)] = 2.0
    """In-plane pixel size of every view; axial slices keep the scan's own slice positions."""
    size: tuple[Extent, Extent, Extent] = (96, 112, 80)
    """Pixels along x, y and z around the head's centre."""
    neighbours: Annotated[int, Field(ge=0, le=3)] = 1
    """Slices on each side of the one to segment that are given to the network as context."""
    windows_hu: tuple[tuple[float, float], ...] = ((0.0, 80.0), (-20.0, 180.0), (-800.0, 2000.0))
    """Brain, subdural and bone window (low, high) in HU; each is one channel per slice, scaled to 0..1."""

    @model_validator(mode="after")
    def _windows_have_width(self) -> Self:
        if not self.windows_hu or any(low >= high for low, high in self.windows_hu):
            raise ValueError("windows_hu must be pairs (low, high) with low < high")
        return self


class ModelConfig(Section):
    """The multi-view U-Net: one 2-D network shared by all views."""

    size: Literal["tiny", "base", "large"] = "tiny"
    """Width of the network: about 0.5, 6.9 and 27.5 million parameters."""


# ---------------------------------------------------------------------------------------------------- training


class LocalTraining(Section):
    """What a site does in one round."""

    steps: Annotated[int, Field(ge=1, le=100_000)]
    """Optimiser steps per round; the same at every site."""
    batch_size: Annotated[int, Field(ge=1, le=256)] = 8
    """Slices per step."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 1e-4
    """Decoupled weight decay of AdamW."""
    foreground_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the slices of a batch that are drawn among those with blood."""


class PretrainConfig(Section):
    """Stage 1: federated training of the whole network at the traumatic-hemorrhage sites."""

    sites: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Sites that train the base network."""
    rounds: Annotated[int, Field(ge=1, le=10_000)]
    """Rounds of training and averaging."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-3
    """Peak learning rate of AdamW; each round's steps follow a cosine over all rounds."""
    local: LocalTraining
    """What each site does in a round."""


class ZeroShot(Section):
    """The base network as it is, without any fine-tuning."""

    method: Literal["zero_shot"]
    """Which method this is."""

    @property
    def id(self) -> str:
        """Name of the method in folders and results."""
        return "zero_shot"


class FullFineTuning(Section):
    """Every weight of the network is trained and travels: the comparison that adapters have to beat."""

    method: Literal["full"]
    """Which method this is."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 5e-4
    """Peak learning rate of AdamW."""

    @property
    def id(self) -> str:
        """Name of the method in folders and results."""
        return "full"


class CpLora(Section):
    """CP-LoRA: the update of each convolution is a sum of ``rank`` outer products (arXiv 2508.01772)."""

    method: Literal["cp_lora"]
    """Which method this is."""
    rank: Annotated[int, Field(ge=1, le=512)] = 8
    """Number of rank-one terms; payload bytes grow linearly with it."""
    alpha: Annotated[float, Field(gt=0, le=4096)] = 16.0
    """The update is multiplied by alpha / rank (unitless)."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 5e-3
    """Peak learning rate of AdamW."""

    @property
    def id(self) -> str:
        """Name of the method in folders and results."""
        return f"cp_lora-r{self.rank}"


Method = Annotated[ZeroShot | FullFineTuning | CpLora, Field(discriminator="method")]
TrainedMethod = FullFineTuning | CpLora


class FinetuneConfig(Section):
    """Stage 2 and 3: fine-tuning at the SAH sites, fold by fold, and evaluation on each fold's held-out patients."""

    sites: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Sites that fine-tune and evaluate."""
    folds: Annotated[int, Field(ge=2, le=20)] = 3
    """Number of cross-validation folds; each patient is held out exactly once."""
    rounds: Annotated[int, Field(ge=1, le=10_000)]
    """Rounds per fold and method."""
    methods: Annotated[tuple[Method, ...], Field(min_length=1)]
    """What is compared."""
    local: LocalTraining
    """What each site does in a round."""

    @model_validator(mode="after")
    def _methods_are_distinct(self) -> Self:
        ids = [method.id for method in self.methods]
        if twice := sorted({name for name in ids if ids.count(name) > 1}):
            raise ValueError(f"methods must be distinct, got twice: {', '.join(twice)}")
        return self


class RoundsConfig(Section):
    """When a round counts."""

    quorum: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Share of a stage's sites whose usable replies commit a round (rounded up)."""
    deadline_s: Annotated[float, Field(gt=0)] = 3600.0
    """Seconds until a site that has not replied is left out of the round."""
    attempts: Annotated[int, Field(ge=1, le=10)] = 2
    """How often a round below the quorum is tried before the run ends with exit code 3."""


class EvaluationConfig(Section):
    """How the held-out patients are scored."""

    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Fused probability above which a voxel is called blood."""
    volume_edges_ml: tuple[Annotated[float, Field(gt=0)], ...] = (10.0, 30.0)
    """Edges in mL between the strata of annotated hemorrhage volume."""
    replicates: Annotated[int, Field(ge=100, le=100_000)] = 1000
    """Poisson-bootstrap replicates behind every interval."""

    @model_validator(mode="after")
    def _edges_increase(self) -> Self:
        if any(low >= high for low, high in zip(self.volume_edges_ml, self.volume_edges_ml[1:], strict=False)):
            raise ValueError("volume_edges_ml must increase")
        return self


class Study(Section):
    """A whole study: data, network, pretraining, fine-tuning in folds, evaluation."""

    name: Name
    """Names the run's folder and report."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Every random number of the study derives from it."""
    data: Annotated[PhantomData | DatalistData, Field(discriminator="source")]
    """Where each site's scans come from."""
    views: ViewsConfig = ViewsConfig()
    """From volume to slices."""
    model: ModelConfig = ModelConfig()
    """The network."""
    pretrain: PretrainConfig
    """Stage 1."""
    finetune: FinetuneConfig
    """Stages 2 and 3."""
    rounds: RoundsConfig = RoundsConfig()
    """Quorum, deadline, attempts."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Threshold, strata, intervals."""

    @model_validator(mode="after")
    def _sites_are_known_and_have_one_role(self) -> Self:
        wanted = [*self.pretrain.sites, *self.finetune.sites]
        if twice := sorted({site for site in wanted if wanted.count(site) > 1}):
            raise ValueError(f"a site has one role, got twice: {', '.join(twice)}")
        if isinstance(self.data, PhantomData) and (unknown := sorted(set(wanted) - set(self.data.sites))):
            known = ", ".join(sorted(self.data.sites))
            raise ValueError(f"unknown site(s) {', '.join(unknown)}; data.sites has {known}")
        return self

    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that determines the result; where the data lie does not."""
        settings = self.model_dump(mode="json")
        settings["data"].pop("path", None)
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------------- a site


class PhantomCohort(Section):
    """The phantom patients of one simulated site; they are a function of these values alone."""

    source: Literal["phantom"] = "phantom"
    """Which kind of data section this is."""
    seed: int
    """Seed of the cohort."""
    shape: tuple[int, int, int]
    """Voxels along x, y, z."""
    spacing_mm: tuple[float, float, float]
    """Voxel size in mm along x, y, z."""
    patients: PhantomSite
    """Kind and number of patients, scanner profile."""


class SiteConfig(Section):
    """One hospital: its name, its scans, and the folder that it works in."""

    name: Name
    """The site's name in the study."""
    folder: Path
    """The site's own folder (scans of a phantom cohort, manifest, base network, results per case); never leaves."""
    data: Annotated[PhantomCohort | DatalistData, Field(discriminator="source")]
    """Where the scans come from."""


# ---------------------------------------------------------------------------------------------------- reading


def load_study(path: Path, *, datalist: Path | None = None) -> Study:
    """Read a study file.

    Args:
        path: YAML file.
        datalist: takes the place of ``data.path``, so that a study file need not know where the scans lie.

    Raises:
        ConfigError: the file cannot be read, or has problems: every unknown key and bad value, in one message.
    """
    settings = _read_mapping(path)
    data = settings.get("data")
    if datalist is not None:
        if not isinstance(data, dict) or data.get("source") != "datalist":
            raise ConfigError(f"{path}: --datalist needs a study whose data.source is 'datalist'")
        data["path"] = str(datalist.resolve())
    elif isinstance(data, dict) and isinstance(data.get("path"), str):
        data["path"] = str((path.parent / data["path"]).resolve())
    return parse(Study, settings, where=str(path))


def parse(model: type[SectionT], settings: Any, *, where: str) -> SectionT:
    """Check settings against a section.

    Raises:
        ConfigError: every problem in one message, each with its key, the value found and what was expected.
    """
    try:
        # Through JSON, because strict mode then still takes a YAML list for a tuple and a string for a path.
        text = json.dumps(settings, default=str)
    except (TypeError, ValueError, RecursionError) as error:  # a date as a key, an anchor that contains itself
        raise ConfigError(f"{where}: holds what a settings file cannot: {error}") from error
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_describe(error)}") from error


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise ConfigError(f"{path}: cannot be read ({reason})") from error
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{place}: is not YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: got {type(settings).__name__}, expected a mapping of settings")
    return settings


def _describe(error: ValidationError) -> str:
    problems = [
        f"  {'.'.join(map(str, problem['loc'])) or 'study'}: {problem['msg']}{_found(problem)}"
        for problem in error.errors(include_url=False)
    ]
    return f"{len(problems)} problem(s)\n" + "\n".join(problems)


def _found(problem: Any) -> str:
    if problem["type"] == "missing" or isinstance(problem["input"], (dict, list)):
        return ""
    return f", got {problem['input']!r}"
