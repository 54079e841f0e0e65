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
from sahfl.section import Name, Section, one_of

Part = Literal[
    "encoder",
    "encoder.1",
    "encoder.2",
    "encoder.3",
    "encoder.4",
    "bottleneck",
    "decoder",
    "decoder.4",
    "decoder.3",
    "decoder.2",
    "decoder.1",
    "head",
]
"""A part of the multi-view U-Net, by role and depth; depth 1 is at full resolution."""
Weights = Literal["full", "encoder", "bottleneck", "decoder", "last_layer", "norm_bias"]
"""What standard fine-tuning trains: all weights, a part of the network, or norms and biases."""
WEIGHTS: tuple[Weights, ...] = get_args(Weights)
Stay = Literal["norm", "out", "inner"] | Part
"""What stays at a site: the network's norms, the factors on one side of every adapter, or all that trains in a part."""
LearningRate = Annotated[float, Field(gt=0, le=1)]
Rank = Annotated[int, Field(ge=1, le=512)]
POOLED, POOLED_STEPS = "pooled", "pooled_steps"
"""``trained_at`` of a training on all fine-tuning sites' patients together, which only a simulation has: in as many
steps as all sites take together, or in as many as one site takes."""
POOLS = (POOLED, POOLED_STEPS)
MOST_REPEATS = 100
Repeat = Annotated[int, Field(ge=1, le=MOST_REPEATS)]


def _suffix(trained_at: str | None, left_out: str | None, repeat: int) -> str:
    place = "" if trained_at is None else f"-{trained_at}" if trained_at in POOLS else f"-at-{trained_at}"
    place += f"-without-{left_out}" if left_out else ""
    return place + (f"-repeat{repeat}" if repeat > 1 else "")


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


class Training(Section):
    """The settings that standard fine-tuning and adapters share: where a method is trained, and what stays there."""

    stays: tuple[Stay, ...] = ()
    """What trains but never leaves a site, which trains and evaluates with its own: ``norm`` trains the network's norms
    (FedBN, arXiv 2102.07623), ``out`` and ``inner`` are the factors on one side of every adapter (FedSA, arXiv
    2410.01463, is ``out``), a part names all that the method trains in it. A pooled training keeps nothing back."""
    private_learning_rate: LearningRate | None = None
    """Peak learning rate of what stays; by default ``learning_rate``."""
    local_steps: Annotated[int, Field(ge=0, le=100_000)] = 0
    """Steps of a last phase at each site by itself, after the rounds, in which all that the method trains goes on
    training. Nothing of it leaves."""
    share_private_at_end: bool = False
    """Whether what stays is sent once, in the last round: its mean serves hospitals that have no part of their own. A
    site must allow it (``policy.private_mean``)."""
    trained_at: Name | None = None
    """Where it is trained: at all fine-tuning sites together (federated), if nothing is said; at one site alone, by its
    name, and then nothing leaves that site, which also evaluates it; or ``pooled`` or ``pooled_steps``, all sites'
    patients in one place, which only a simulation can."""
    left_out: Name | None = None
    """The fine-tuning site that takes no part in the training; all others train, and this one alone evaluates. Only a
    simulation has it: the difference from the training at all sites is one site's update."""
    base_of: Name | None = None
    """The pretraining site whose own base it starts from. This site trains it alone, in as many steps as it takes in
    the pretraining of all sites together. By default the base of all. Only a simulation has bases of single sites."""
    rounds: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Rounds of this training, where they are not ``finetune.rounds``."""
    repeat: Repeat = 1
    """Number of this training: from 2 on the same settings with other random numbers (adapter start, sampling)."""
    label: Name | None = None
    """Appended to the method's name, to tell apart two that differ in their numbers only."""

    @property
    def is_alone(self) -> bool:
        """Whether one site trains it by itself; all that it trains then stays at that site."""
        return self.trained_at not in (None, *POOLS)

    @property
    def is_personal(self) -> bool:
        """Whether all sites train it together, and each has a part of its own."""
        return self.trained_at is None and (self.something_stays or self.local_steps > 0)

    @property
    def something_stays(self) -> bool:
        """Whether a part of what trains in the rounds stays at the sites."""
        return bool(self.stays)

    @model_validator(mode="after")
    def _what_stays_fits(self) -> Self:
        if twice := sorted({name for name in self.stays if self.stays.count(name) > 1}):
            raise ValueError(f"stays names twice: {', '.join(twice)}")
        if self.base_of and (self.trained_at or self.left_out or self.something_stays or self.local_steps):
            raise ValueError("base_of is for a training at all sites; take out trained_at, left_out and all that stays")
        if self.left_out and (self.trained_at or self.something_stays or self.local_steps):
            raise ValueError("left_out evaluates what all other sites share; take out trained_at and all that stays")
        if self.local_steps and self.trained_at in POOLS:
            raise ValueError("local_steps is a phase at each site by itself, and a pooled training has no sites")
        if self.share_private_at_end and not self.something_stays:
            raise ValueError("share_private_at_end needs something that stays: name it with stays or private_rank")
        if self.share_private_at_end and self.trained_at:
            raise ValueError(f"share_private_at_end needs all sites, this one is trained at {self.trained_at}")
        return self

    def shared_alone(self) -> Self:
        """The method without all that stays at the sites: it computes what they share."""
        nothing = {"stays": (), "private_rank": 0, "private_learning_rate": None, "local_steps": 0}
        nothing["share_private_at_end"] = False
        return self.model_copy(update={name: value for name, value in nothing.items() if hasattr(self, name)})

    def _ending(self) -> list[str]:
        """The last parts of the method's id but for the place of training and the repeat."""
        parts = ["stays", *self.stays] if self.stays else []
        parts += [f"local{self.local_steps}"] if self.local_steps else []
        parts += [f"rounds{self.rounds}"] if self.rounds else []
        return parts + ([f"from-{self.base_of}"] if self.base_of else [])


class WeightTuning(Training):
    """Standard fine-tuning: some or all of the network's own weights are trained and travel."""

    method: Weights
    """Weights that train: all, a part of the network, the last convolution, or all norms and biases."""
    learning_rate: LearningRate = 5e-4
    """Peak learning rate of AdamW."""
    start: Literal["base", "scratch"] = "base"
    """What the training starts from: the pretrained network, or for ``full`` a network with random weights."""
    aggregation: Annotated[str, one_of(lambda: [n for n, rule in RULES.items() if not rule.needs_layers])] = USUAL
    """How the sites' weights become the next global ones."""

    @property
    def id(self) -> str:
        """Name of the method in folders and results."""
        rule = None if self.aggregation == USUAL else self.aggregation
        start = [] if self.start == "base" else [self.start]
        parts = [self.method, *start, *self._ending(), *filter(None, [rule, self.label])]
        return "-".join(parts).replace(".", "") + _suffix(self.trained_at, self.left_out, self.repeat)

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

    method: Annotated[str, one_of(lambda: ADAPTERS)]
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
    learning_rate: LearningRate = 5e-3
    """Peak learning rate of AdamW."""
    aggregation: Annotated[str, one_of(lambda: RULES)] = USUAL
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
        return name + _suffix(self.trained_at, self.left_out, self.repeat)

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
        factors = [name for name in self.stays if name in ("out", "inner")]
        if len(factors) > 1:
            raise ValueError(
                "stays names out and inner, so that nothing is shared; use trained_at: each in finetune.grid"
            )
        if factors and self.site_ranks:
            raise ValueError(f"site_ranks needs whole terms at the server, but {factors[0]} stays at the sites")
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
