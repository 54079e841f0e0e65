"""The methods that a study compares: no fine-tuning, standard fine-tuning of the weights, and adapters."""

from __future__ import annotations

import json
from functools import cache
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, TypeAdapter, ValidationInfo, WrapValidator, model_validator
from pydantic_core import SchemaValidator, core_schema

from sahfl.adapters import Scaling
from sahfl.adapters.methods import ADAPTERS, AdapterMethod
from sahfl.aggregation.rules import RULES, USUAL
from sahfl.config.training import LearningRate, Part, Rank, Rates, Training
from sahfl.section import Name, OneOf, Section

Weights = Literal["full", "encoder", "bottleneck", "decoder", "last_layer", "norm_bias"]
"""What standard fine-tuning trains: all weights, a part of the network, or norms and biases."""
WEIGHTS: tuple[Weights, ...] = get_args(Weights)


class ZeroShot(Section):
    """The base network as it is, without any fine-tuning."""

    method: Literal["zero_shot"]
    """Which method this is."""
    base_of: Name | None = None
    """The pretraining site whose own base it is; by default the base of all pretraining sites together."""

    @property
    def id(self) -> str:
        """Name of the method in folders and results."""
        return "zero_shot" + (f"-from-{self.base_of}" if self.base_of else "")


class WeightTuning(Training):
    """Standard fine-tuning: some or all of the network's own weights are trained and travel."""

    method: Weights
    """Weights that train: all, a part of the network, the last convolution, or all norms and biases."""
    learning_rate: LearningRate | Rates = 5e-4
    """Peak learning rate of AdamW, or several to choose from in each fold."""
    start: Literal["base", "scratch"] = "base"
    """What the training starts from: the pretrained network, or for ``full`` a network with random weights."""
    aggregation: Annotated[str, OneOf(lambda: [n for n, rule in RULES.items() if not rule.needs_layers])] = USUAL
    """How the sites' weights become the next global ones."""

    @property
    def id(self) -> str:
        """Name of the method in folders and results."""
        rule = None if self.aggregation == USUAL else self.aggregation
        start = [] if self.start == "base" else [self.start]
        parts = [self.method, *start, *self._ending(), *filter(None, [rule, self.label])]
        return "-".join(parts).replace(".", "") + self._suffix()

    @model_validator(mode="after")
    def _only_a_whole_network_starts_from_scratch(self) -> Self:
        if self.start == "scratch" and self.base_of:
            raise ValueError(f"start: scratch has no base, but base_of names {self.base_of}")
        if self.start == "scratch" and self.method != "full":
            raise ValueError(f"start: scratch needs method: full, {self.method} leaves random weights untrained")
        return self

    @model_validator(mode="after")
    def _stays_names_no_factors(self) -> Self:
        if factors := [name for name in self.stays if name in ("out", "inner")]:
            raise ValueError(f"stays names {factors[0]}, the factors of adapters, which {self.method} does not have")
        return self


class AdapterTuning(Training):
    """Low-rank adapters on the frozen network's convolutions: only their factors are trained and travel.

    LoRA-C (arXiv 2410.16954), convLoRA (LoCon, arXiv 2309.14859), CP-LoRA (arXiv 2508.01772), and each of them with
    DoRA's magnitudes (arXiv 2402.09353).
    """

    method: Annotated[str, OneOf(lambda: ADAPTERS)]
    """How the update of a convolution's kernel is factorised."""
    rank: Rank = 8
    """Number of terms; payload bytes grow linearly with it. More than a layer's full rank is legal."""
    alpha: Annotated[float, Field(gt=0, le=4096)] = 16.0
    """Factor of the update, before its scaling (unitless)."""
    scaling: Scaling = "steps"
    """What alpha is divided by. ``steps``: all methods and ranks begin with steps of one size, alpha times the learning
    rate relative to a kernel. ``rank``: the rank, as in LoRA. ``sqrt_rank``: its square root (rsLoRA, arXiv
    2312.03732), which is the same as ``steps`` for the convLoRA and CP forms."""
    joint_kernel: bool = False
    """CP forms only: one factor for the whole kernel instead of one per axis (CP3)."""
    matrix: Literal["square", "rows"] = "square"
    """LoRA-C and DoRA-C only: the matrix of a kernel that the update factorises, (out * height) x (in * width), as in
    the public code. ``rows`` takes out x (in * height * width), which makes the update that of convLoRA."""
    rank_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Chance that a term is left out of a training step."""
    layers: Annotated[tuple[Literal["all", "unnormed"] | Part, ...], Field(min_length=1)] = ("all",)
    """Parts of the network whose convolutions get an adapter. ``unnormed`` means the convolutions whose scale no norm
    cancels, the only ones in which DoRA's magnitudes have an effect."""
    also_train: tuple[Literal["norm", "bias"] | Part, ...] = ()
    """Weights of the network itself that are trained and travel as well; a part named here gets no adapter."""
    all_magnitudes: bool = False
    """DoRA forms only: also train the magnitudes that a following norm cancels."""
    learning_rate: LearningRate | Rates = 5e-3
    """Peak learning rate of AdamW, or several to choose from in each fold."""
    aggregation: Annotated[str, OneOf(lambda: RULES)] = USUAL
    """How the sites' factors become the next global ones: ``project`` is the exact mean of the updates brought back to
    the rank, ``alternate`` trains one factor per round, so that the plain mean is exact."""
    private_rank: Annotated[int, Field(ge=0, le=512)] = 0
    """Number of private terms: further terms of the same update, which train with the others and never leave a site."""
    site_ranks: dict[Name, Rank] = Field(default_factory=dict)
    """Rank of a site where it differs from ``rank``, for a hospital with little memory or bandwidth, or with much of
    both; needs ``aggregation: project``. The adapters of the run have ``rank``, and every site evaluates those."""

    @property
    def id(self) -> str:
        """Name of the method in folders and results, without ``site_ranks``."""
        parts = [self.method, f"r{self.rank}"]
        parts += [f"private{self.private_rank}"] if self.private_rank else []
        parts += ["joint"] if self.joint_kernel else []
        parts += [self.matrix] if self.matrix != "square" else []
        parts += list(self.layers) if self.layers != ("all",) else []
        parts += ["with", *self.also_train] if self.also_train else []
        parts += self._ending()
        parts += [self.aggregation] if self.aggregation != USUAL else []
        name = "-".join([*parts, *filter(None, [self.label])]).replace(".", "")
        return name + self._suffix()

    @property
    def something_stays(self) -> bool:
        """Whether a part of what trains in the rounds stays at the sites."""
        return bool(self.stays or self.private_rank)

    @property
    def record(self) -> AdapterMethod:
        """The entry in the table of methods with its update: that of its name, unless an option changes the form."""
        named = ADAPTERS[self.method]
        return ADAPTERS[named.by_rows] if self.matrix == "rows" and named.by_rows else named

    @property
    def has_magnitudes(self) -> bool:
        """Whether this is a DoRA form."""
        return ADAPTERS[self.method].has_magnitudes

    def at_rank(self, rank: int) -> AdapterTuning:
        """The method as a site of this rank trains it, without the other sites' ranks."""
        return self.model_copy(update={"rank": rank, "site_ranks": {}})

    @model_validator(mode="after")
    def _options_fit_the_method(self) -> Self:
        if len(self.layers) > 1 and (alone := [name for name in self.layers if name in ("all", "unnormed")]):
            raise ValueError(f"layers names {alone[0]} and more: {', '.join(self.layers)}; {alone[0]} stands alone")
        for option, names in (("layers", self.layers), ("also_train", self.also_train)):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{option} names twice: {', '.join(twice)}")
        if self.joint_kernel and "joint_kernel" not in ADAPTERS[self.method].options:
            having = " and ".join(name for name, method in ADAPTERS.items() if "joint_kernel" in method.options)
            raise ValueError(f"joint_kernel is an option of {having}, not of {self.method}")
        if self.matrix == "rows" and not ADAPTERS[self.method].by_rows:
            having = " and ".join(name for name, method in ADAPTERS.items() if method.by_rows)
            raise ValueError(f"matrix: rows is an option of {having}, not of {self.method}")
        if self.all_magnitudes and not self.has_magnitudes:
            raise ValueError(f"all_magnitudes is an option of the DoRA forms, {self.method} has no magnitudes")
        if self.site_ranks and not RULES[self.aggregation].own_ranks:
            having = " or ".join(name for name, rule in RULES.items() if rule.own_ranks)
            raise ValueError(f"site_ranks needs aggregation: {having}, {self.aggregation} needs one rank at all sites")
        if self.site_ranks and self.trained_at:
            raise ValueError(f"site_ranks is for a training at all sites, this one is trained at {self.trained_at}")
        if self.site_ranks and (self.something_stays or self.local_steps):
            raise ValueError(
                "site_ranks and a part that stays at the sites do not go together: every site evaluates the adapter of "
                "the global rank, which a part of another rank does not fit; take one of them out"
            )
        factors = [name for name in self.stays if name in ("out", "inner")]
        if len(factors) > 1:
            raise ValueError(
                "stays names out and inner, so that nothing is shared; use trained_at: each in finetune.grid"
            )
        return self


TrainedMethod = WeightTuning | AdapterTuning


def _by_name(*more: tuple[str, type[Section]]) -> WrapValidator:
    """Choose the class of a method by its name, from the tables at the time of reading."""

    def read(value: Any, _: Any, info: ValidationInfo) -> Any:
        names = [(name, WeightTuning) for name in WEIGHTS] + [(name, AdapterTuning) for name in ADAPTERS]
        reader = _reader((*more, *names))
        return reader.validate_json(json.dumps(value)) if info.mode == "json" else reader.validate_python(value)

    return WrapValidator(read)


@cache
def _reader(kinds: tuple[tuple[str, type[Section]], ...]) -> SchemaValidator:
    choices = {name: TypeAdapter(kind).core_schema for name, kind in kinds}
    return SchemaValidator(core_schema.tagged_union_schema(choices, discriminator="method"))


Method = Annotated[ZeroShot | WeightTuning | AdapterTuning, _by_name(("zero_shot", ZeroShot))]
"""Any method, as a setting."""
TrainedMethodSetting = Annotated[TrainedMethod, _by_name()]
"""A method that trains, as a setting."""


def method_at_defaults(name: str) -> Method:
    """The method of this name with the default of every other setting; pydantic.ValidationError if it is unknown."""
    method: Method = TypeAdapter(Method).validate_python({"method": name})
    return method
