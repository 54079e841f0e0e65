"""The study file."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from sahfl.bases import PHANTOM, PHANTOM_SHA256
from sahfl.config.evaluation import EvaluationConfig
from sahfl.config.grid import EACH, NO_SITES
from sahfl.config.masking import check_masked
from sahfl.config.methods import Method, TrainedMethod, WeightTuning, ZeroShot
from sahfl.config.network import ModelConfig
from sahfl.config.stages import (
    SCRATCH_RATE,
    FinetuneConfig,
    LoadedBase,
    LocalTraining,
    PretrainConfig,
    RoundsConfig,
)
from sahfl.config.training import ONLY_IN_A_SIMULATION, POOLED, POOLS
from sahfl.data.sources.table import AnyStudyScans
from sahfl.data.view_settings import ViewsConfig
from sahfl.problems import PlacedProblems
from sahfl.section import Name, Section

HostileAct = Literal["nan", "times_1000", "sign_flip", "random", "label_flip", "free_rider", "noisy_free_rider"]
"""What a hostile site of a simulation does; ``simulation.hostile`` defines each."""


class Study(Section):
    """A whole study: data, network, pretraining, fine-tuning in folds, evaluation."""

    name: Name
    """Name of the study in its folder and report."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Every random number of the study derives from it."""
    data: AnyStudyScans
    """Where each site's scans come from."""
    views: ViewsConfig = ViewsConfig()
    """From volume to slices."""
    model: ModelConfig = ModelConfig()
    """The network."""
    pretrain: PretrainConfig | None = None
    """Stage 1, or ``base`` in its place."""
    base: LoadedBase | Literal["phantom", "none"] | None = None
    """In the place of ``pretrain``: ``phantom`` is a small network that comes with sahfl, trained on simulated patients
    alone; ``none`` trains from scratch, so that ``full`` is the only method; a file is the base of an earlier run."""
    finetune: FinetuneConfig
    """Stages 2 and 3."""
    rounds: RoundsConfig = RoundsConfig()
    """Quorum, deadline, attempts."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Threshold, strata, intervals."""
    compare_sites: bool = False
    """Compare a salted key of each scan over all sites, and refuse the study if two sites hold the same scan."""
    common_random_numbers: bool | None = None
    """Whether all methods train on the same batches: a site's batches then depend on fold, round and repeat, not on the
    method, so that two rows differ by their settings and not by luck. True by default in a simulation. Not possible
    with hospitals, because several methods on one batch show the server several views of this batch."""
    require_gain: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Least gain in Dice of every site over training alone: a simulation ends with exit code 3 if the 95 % interval of
    a site's gain lies below it; 0 fails on a clear loss. null: no gain is required."""
    hostile: dict[Name, HostileAct] = Field(default_factory=dict)
    """Hostile acts by site, for trying defences in a simulation; never with hospitals."""

    @field_validator("hostile")
    @classmethod
    def _hostile_sites_are_known(cls, hostile: dict[str, HostileAct], info: ValidationInfo) -> dict[str, HostileAct]:
        stages = [info.data[stage] for stage in ("pretrain", "finetune") if stage in info.data]
        known = sorted(site for stage in stages if stage for site in stage.sites)
        if len(stages) == 2 and (unknown := sorted(set(hostile) - set(known))):
            raise ValueError(f"unknown site(s) {', '.join(unknown)}; the study's are {', '.join(known)}")
        return hostile

    @property
    def sites(self) -> tuple[str, ...]:
        """All sites: those of pretraining, then those of fine-tuning."""
        return (*(self.pretrain.sites if self.pretrain else ()), *self.finetune.sites)

    @model_validator(mode="after")
    def _base_comes_from_one_place(self) -> Self:
        if (self.pretrain is None) == (self.base is None):
            found = "neither" if self.base is None else "both"
            raise ValueError(f"expected either pretrain (stage 1) or base (phantom, none or a file), got {found}")
        return self

    @field_validator("base")
    @classmethod
    def _base_that_comes_with_sahfl(cls, base: LoadedBase | str | None) -> LoadedBase | str | None:
        return LoadedBase(path=PHANTOM, content_sha256=PHANTOM_SHA256) if base == "phantom" else base

    @model_validator(mode="after")
    def _without_a_base_whole_networks_start_from_scratch(self) -> Self:
        if self.base != "none":
            return self
        whole = [
            method for method in self.finetune.methods if isinstance(method, WeightTuning) and method.method == "full"
        ]
        if others := [method.id for method in self.finetune.methods if method not in whole]:
            need = "without a trained network to start from; take base: phantom, a file or pretrain"
            raise ValueError(f"base: none trains from scratch with method: full; got {', '.join(others)} {need}")
        methods = tuple(_from_scratch(method) for method in whole)
        return self.model_copy(update={"finetune": self.finetune.model_copy(update={"methods": methods})})

    @model_validator(mode="after")
    def _sites_are_known_and_have_one_role(self) -> Self:
        wanted = self.sites
        if twice := sorted({site for site in wanted if wanted.count(site) > 1}):
            raise ValueError(f"a site has one role, got twice: {', '.join(twice)}")
        if reserved := sorted(NO_SITES & set(wanted)):
            raise ValueError(f"no site can have the name {', '.join(reserved)}, which means something else in results")
        named = self.data.site_names()
        stages = {"pretrain": self.pretrain.sites if self.pretrain else (), "finetune": self.finetune.sites}
        placed = [((stage, "sites", i), site) for stage, sites in stages.items() for i, site in enumerate(sites)]
        if named is not None and (unknown := [(place, site) for place, site in placed if site not in named]):
            known = ", ".join(sorted(named))
            raise PlacedProblems([(place, f"unknown site {site}; data.sites has {known}") for place, site in unknown])
        return self

    @model_validator(mode="after")
    def _batches_of_hospitals_are_not_shared(self) -> Self:
        if self.common_random_numbers and self.data.source == "sites":
            found = "common_random_numbers: true with data.source: sites"
            raise ValueError(f"{found}; methods share batches in a simulation only, take the setting out")
        return self

    @model_validator(mode="after")
    def _each_base_is_of_a_pretraining_site(self) -> Self:
        """Put the pretraining sites in the place of ``each`` in ``base_of``, which came from the grid."""
        sites = self.pretrain.sites if self.pretrain else (EACH,)
        methods = [
            method.model_copy(update={"base_of": site})
            for method in self.finetune.methods
            for site in (sites if method.base_of == EACH else (method.base_of,))
        ]
        distinct = tuple({method.id: method for method in methods}.values())
        return self.model_copy(update={"finetune": self.finetune.model_copy(update={"methods": distinct})})

    @model_validator(mode="after")
    def _bases_are_of_pretraining_sites(self) -> Self:
        known = self.pretrain.sites if self.pretrain else ()
        for method in self.finetune.methods:
            if method.base_of is not None and (method.base_of not in known or len(known) < 2):
                expected = f"one of several pretrain.sites, got {', '.join(known) or 'no pretraining'}"
                raise ValueError(f"{method.id}: base_of names {method.base_of}, expected {expected}")
        return self

    @model_validator(mode="after")
    def _hospitals_do_nothing_that_shows_one_site_s_training(self) -> Self:
        for method in self.finetune.methods if self.data.source == "sites" else ():
            for name in (name for name in ONLY_IN_A_SIMULATION if getattr(method, name, None)):
                found = f"{'several values in learning_rate' if name == 'trials' else name} with data.source: sites"
                raise ValueError(f"{method.id}: {found}; {ONLY_IN_A_SIMULATION[name]}; only a simulation has it")
        return self

    @model_validator(mode="after")
    def _masks_hide_every_site(self) -> Self:
        check_masked(self)
        return self

    @property
    def own_bases(self) -> tuple[str, ...]:
        """Pretraining sites whose own base a method starts from."""
        wanted = {method.base_of for method in self.finetune.methods}
        return tuple(site for site in (self.pretrain.sites if self.pretrain else ()) if site in wanted)

    @property
    def shares_batches(self) -> bool:
        """Whether all methods train on the same batches."""
        return self._usually_shares_batches if self.common_random_numbers is None else self.common_random_numbers

    @property
    def _usually_shares_batches(self) -> bool:
        return self.data.source != "sites" and self.rounds.masking is None

    @model_validator(mode="after")
    def _a_required_gain_can_be_measured(self) -> Self:
        if self.require_gain is None:
            return self
        if self.data.source == "sites":
            raise ValueError(
                "require_gain is for simulations; a hospital sets policy.require_gain in its own site file"
            )
        trained = [method for method in self.finetune.methods if not isinstance(method, ZeroShot)]
        ids = {method.id for method in trained}

        def twice(method: TrainedMethod, place: str | None) -> bool:
            copies = [method.model_copy(update={"trained_at": place, "repeat": repeat}) for repeat in (1, 2)]
            return ids.issuperset(copy.id for copy in copies)

        for method in trained:
            alone = [any(twice(arm, site) for arm in (method, method.shared_alone())) for site in self.finetune.sites]
            if twice(method, None) and all(alone):
                return self
        raise ValueError(
            "require_gain needs a method that is trained at all sites and at each alone, each at least twice"
        )

    @property
    def pools(self) -> bool:
        """Whether a method is trained on all sites' patients in one place."""
        return any(self.training_sites(method) == (POOLED,) for method in self.finetune.methods)

    def training_sites(self, method: Method) -> tuple[str, ...]:
        """Who trains a method: all fine-tuning sites, one of them, or ``pooled``; nobody for ``zero_shot``."""
        if isinstance(method, ZeroShot):
            return ()
        if method.trained_at in POOLS:
            return (POOLED,)
        if method.trained_at is not None:
            return (method.trained_at,)
        return tuple(site for site in self.finetune.sites if site != method.left_out)

    def evaluating_sites(self, method: Method) -> tuple[str, ...]:
        """Who evaluates a method: all fine-tuning sites, or the one at which it was trained alone or was left out."""
        if isinstance(method, ZeroShot):
            return self.finetune.sites
        if method.left_out is not None and not method.inner:
            return (method.left_out,)
        if method.left_out is not None:
            return self.training_sites(method)
        return self.training_sites(method) if method.is_alone else self.finetune.sites

    @property
    def trainings(self) -> tuple[Method, ...]:
        """All that is trained in each fold: the methods, each after the trials that choose its learning rate."""
        methods = self.finetune.methods
        trials = [() if isinstance(method, ZeroShot) else method.trials for method in methods]
        return tuple(one for method, before in zip(methods, trials, strict=True) for one in (*before, method))

    def rounds_of(self, method: Method) -> int:
        """Rounds of a method's training; 0 for ``zero_shot``."""
        return 0 if isinstance(method, ZeroShot) else method.rounds or self.finetune.rounds

    def evaluated_rounds(self, method: Method) -> tuple[int, ...]:
        """Rounds of a method's training after which it is evaluated, beside the last; none of a trial of a rate."""
        if not isinstance(method, ZeroShot) and method.inner:
            return ()
        return tuple(round_ for round_ in self.finetune.evaluated_rounds if round_ < self.rounds_of(method))

    def local_training(self, method: TrainedMethod) -> LocalTraining:
        """The local training of a method; one that is ``pooled`` takes as many steps as all sites together."""
        local = self.finetune.local
        if method.trained_at != POOLED:
            return local
        return local.model_copy(update={"steps": local.steps * len(self.finetune.sites)})

    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that determines the result, so not of the place of the data."""
        settings = self.model_dump(mode="json")
        settings["data"] = self.data.identity()
        if self.base is None:
            del settings["base"]
        else:
            del settings["pretrain"]
        if isinstance(self.base, LoadedBase):
            del settings["base"]["path"]
        del settings["require_gain"]  # it judges a result and changes none
        if self.rounds.masking is None:
            del settings["rounds"]["masking"]
        del settings["rounds"]["unmasked"]
        if not self.hostile:  # keeps the fingerprint of before this setting existed, as below
            del settings["hostile"]
        if self.shares_batches == self._usually_shares_batches:
            del settings["common_random_numbers"]
        for method in settings["finetune"]["methods"]:
            for name, usual in (("trained_at", None), ("repeat", 1), ("inner", False)):
                if name in method and method[name] == usual:
                    del method[name]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _from_scratch(method: WeightTuning) -> WeightTuning:
    """A method on random weights, with the learning rate of pretraining unless the file gives another."""
    rate = {} if "learning_rate" in method.model_fields_set else {"learning_rate": SCRATCH_RATE}
    return method.model_copy(update={"start": "scratch", **rate})
