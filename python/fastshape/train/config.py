"""The configuration of a training run: what all have, and what is of fields, of structures and of tokens."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

from fastshape.losses.volumes import STRUCTURE_LOSSES
from fastshape.models import (
    MODELS,
    FieldAutoencoder,
    NextScaleConfig,
    NextScaleTransformer,
    PretrainedModel,
    SparseStructureConfig,
    SparseStructureVAE,
    VecSetConfig,
    VecSetVAE,
)
from fastshape.models.pretrained import ModelConfig

QUERY_KINDS = ("volume", "near", "sharp_near")
OPTIMIZERS = ("adamw", "muon")
AUGMENTATIONS = ("none", "axes", "vecset", "lagem", "dora")

ConfigT = TypeVar("ConfigT", bound="RunConfig")


@dataclass(frozen=True)
class RunConfig:
    """What every training run has, whatever it trains.

    Attributes:
        model: the model, by its configuration.
        steps: optimizer steps.
        batch_size: shapes per step, of all processes together; fewer shapes than that are repeated with other
            points.
        micro_batch_size: shapes of one forward and backward pass of a process, whose gradients are summed;
            None takes the process's whole share. Smaller ones need less memory and give the same gradient.
        learning_rate: the peak, reached after `warmup_steps` of linear growth, then a cosine down to
            `final_learning_rate` at the last step.
        optimizer: "adamw", or "muon": Muon (Jordan et al. 2024) for the matrices of attention and
            feed-forward layers, AdamW for all else. `vat-tiny` learns as much in a third of the steps.
            Muon multiplies in bfloat16: several processes agree with one less closely than by AdamW.
        weight_decay: of both.
        betas, adam_eps: of AdamW.
        gradient_clip: largest norm of the gradient; None does not clip.
        ema_decay: the result is an exponential moving average of the parameters; None: the last parameters.
        augment: how the training shapes are moved.
        bfloat16: autocast to bfloat16.
        compile: torch.compile the model; a minute or two at the start.
        checkpoint_every: steps between checkpoints.
        validate_every: steps between validations, where there are validation shapes; 0: at the end only.
        log_every: steps between lines of `metrics.jsonl`.
        num_threads: CPU threads to train with; None leaves torch's number. A fixed number makes the result
            independent of the machine's cores, and one thread is not slowed down by a busy machine.
        seed: of the parameters and of every draw.
    """

    model: ModelConfig
    steps: int = 1000
    batch_size: int = 1
    micro_batch_size: int | None = None
    learning_rate: float = 1e-4
    final_learning_rate: float = 1e-6
    warmup_steps: int = 0
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    adam_eps: float = 1e-8
    gradient_clip: float | None = None
    ema_decay: float | None = None
    augment: str = "none"
    bfloat16: bool = False
    compile: bool = False
    checkpoint_every: int = 500
    validate_every: int = 0
    log_every: int = 10
    num_threads: int | None = None
    seed: int = 0

    models: ClassVar[Mapping[str, type[PretrainedModel]]]
    """The classes that it trains, by name."""

    augmentations: ClassVar[tuple[str, ...]]
    """What `augment` may be."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        for name in ("num_threads", "micro_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be None or at least 1, got {value}")
        for name in ("warmup_steps", "validate_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"`optimizer` must be one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}")
        if self.augment not in self.augmentations:
            raise ValueError(
                f"`augment` must be one of {', '.join(self.augmentations)}, got {self.augment!r}"
            )
        object.__setattr__(self, "betas", tuple(self.betas))  # JSON has lists
        self.model_class  # noqa: B018  # raises for a configuration of something else

    @property
    def model_class(self) -> type[PretrainedModel]:
        """The class that `model` configures."""
        for candidate in self.models.values():
            if type(self.model) is candidate.Config:
                return candidate
        expected = ", ".join(f"{name}.Config" for name in self.models)
        raise TypeError(f"`model` must be one of {expected}, got {type(self.model).__name__}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them; the model's have its class's name among them."""
        values = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in ((entry.name, getattr(self, entry.name)) for entry in dataclasses.fields(self))
        }
        values["model"] = {"class": self.model_class.__name__, **self.model.to_dict()}
        return values

    @classmethod
    def from_dict(cls: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
        """The inverse of `to_dict`; `config_from_dict` finds the class too.

        Raises:
            ValueError: an unknown field or class, or a bad value.
        """
        known = {entry.name for entry in dataclasses.fields(cls)}
        unknown = sorted(values.keys() - known)
        if unknown:
            raise ValueError(f"{cls.__name__} has no field {', '.join(unknown)}")
        values = dict(values)
        if "model" in values:
            model = dict(values["model"])
            name = model.pop("class", next(iter(cls.models)))
            if name not in cls.models:
                raise ValueError(f"there is no model {name!r}; there are {', '.join(cls.models)}")
            values["model"] = cls.models[name].Config.from_dict(model)
        return cls(**values)

    def override(self: ConfigT, settings: Sequence[str]) -> ConfigT:
        """A copy with fields set by text: "steps=500", "model.dim=64", "token_counts=64,128", "augment=none".

        Raises:
            ValueError: no such field, or text that is not of its type; names the field.
        """
        changes: dict[str, Any] = {}
        model_changes: dict[str, Any] = {}
        for setting in settings:
            name, equals, text = (part.strip() for part in setting.partition("="))
            if not equals:
                raise ValueError(f"expected NAME=VALUE, got {setting!r}")
            inner = name.removeprefix("model.")
            if inner != name:
                model_changes[inner] = _parse(self.model, name, inner, text)
            else:
                changes[name] = _parse(self, name, name, text)
        if model_changes:
            changes["model"] = dataclasses.replace(self.model, **model_changes)
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class AutoencoderTrainConfig(RunConfig):
    """What the training of every autoencoder has.

    Attributes:
        kl_weight: weight of the KL divergence, a mean over tokens and channels.
        sample_posterior: decode a sample of the posterior; False decodes its mode. With very few shapes the
            latents carry little beside noise, and a decoder that only ever saw noise is off at the mode.
    """

    kl_weight: float = 1e-3
    sample_posterior: bool = True


@dataclass(frozen=True)
class TrainConfig(AutoencoderTrainConfig):
    """Everything that decides the result of training a field, besides the shapes.

    Attributes:
        volume_queries, near_queries, sharp_near_queries: query points per shape and step of each kind of
            `ShapeSamples`.
        balanced: draw half of the volume queries inside and half outside, by `geometry.draw_balanced`.
        volume_weight, near_weight, sharp_near_weight: weights of the kinds' mean losses.
        token_counts: numbers of tokens, ascending, one of which is drawn for each step (of a hierarchy: of
            its finest level); empty: always the model's own number.
        token_probabilities: of `token_counts`; empty: all alike.
        token_warmup: share of the steps over which the table opens: at first only the smallest number can be
            drawn, at the end of it all of them.
        initialization: how the parameters begin: "default", the model's own way, or "kernel", by
            `fastshape.train.initialize`, from which small models learn several times faster.
        augment: how the training shapes are moved: "none", "axes", or a paper's way, "vecset", "lagem" or
            "dora"; see `fastshape.train.augment`.
        vq_weight: weight of a quantizer's loss, of codebook and commitment.
        continuous_share: share of the steps, the first ones, in which a model with a quantizer is trained
            without it; then the codebook begins with the k-means of what the encoder has learned.
        revive_every: steps between replacements of the codes that nothing takes.
        data_on_device: keep all shapes on the training device and draw batches there: what a small model on a
            GPU needs in order not to wait. The shapes must have as many points each.
    """

    model: ModelConfig = field(default_factory=VecSetConfig)
    volume_queries: int = 1024
    near_queries: int = 1024
    sharp_near_queries: int = 0
    balanced: bool = False
    volume_weight: float = 1.0
    near_weight: float = 0.1
    sharp_near_weight: float = 1.0
    token_counts: tuple[int, ...] = ()
    token_probabilities: tuple[float, ...] = ()
    token_warmup: float = 0.0
    initialization: str = "default"
    vq_weight: float = 0.2
    continuous_share: float = 0.0
    revive_every: int = 500
    data_on_device: bool = False

    models = MODELS
    augmentations = AUGMENTATIONS

    def __post_init__(self) -> None:
        super().__post_init__()
        for kind, count in self.queries.items():
            if count < 0:
                raise ValueError(f"`{kind}_queries` must not be negative, got {count}")
        if not any(self.queries.values()):
            raise ValueError("`volume_queries`, `near_queries` and `sharp_near_queries` must not all be 0")
        if not 0.0 <= self.continuous_share < 1.0:
            raise ValueError(f"`continuous_share` must be in [0, 1), got {self.continuous_share}")
        if self.revive_every < 1:
            raise ValueError(f"`revive_every` must be at least 1, got {self.revive_every}")
        if self.initialization not in ("default", "kernel"):
            raise ValueError(f"`initialization` must be 'default' or 'kernel', got {self.initialization!r}")
        if self.augment in ("vecset", "lagem") and self.output != "occupancy":
            raise ValueError(
                f"`augment` = {self.augment!r} scales the axes unevenly, which leaves no distances: "
                f"the model's output must be 'occupancy', got {self.output!r}"
            )
        self._check_tokens()

    def _check_tokens(self) -> None:
        for name in ("token_counts", "token_probabilities"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has lists
        counts, probabilities = self.token_counts, self.token_probabilities
        if any(count < 1 for count in counts) or list(counts) != sorted(set(counts)):
            raise ValueError(f"`token_counts` must be at least 1 and ascending, got {counts}")
        if probabilities and len(probabilities) != len(counts):
            raise ValueError(
                f"`token_probabilities` must have an entry for each of `token_counts`, "
                f"got {len(probabilities)} and {len(counts)}"
            )
        if probabilities and (min(probabilities) < 0 or probabilities[0] == 0):
            raise ValueError(
                f"`token_probabilities` must not be negative, the first positive, got {probabilities}"
            )
        if not 0.0 <= self.token_warmup <= 1.0:
            raise ValueError(f"`token_warmup` must be in [0, 1], got {self.token_warmup}")

    @property
    def model_class(self) -> type[FieldAutoencoder]:
        """The class that `model` configures."""
        return super().model_class  # type: ignore[return-value]

    @property
    def queries(self) -> dict[str, int]:
        """Query points per shape of each kind, in the order of a batch."""
        return {kind: getattr(self, f"{kind}_queries") for kind in QUERY_KINDS}

    @property
    def quantize_from(self) -> int:
        """The first step that quantizes, counted from 0."""
        return int(self.continuous_share * self.steps)

    @property
    def output(self) -> str:
        """What the model's field is: "occupancy", "soft_occupancy", "tsdf" or "sdf"."""
        return getattr(self.model, "output", "occupancy")


@dataclass(frozen=True)
class StructureTrainConfig(AutoencoderTrainConfig):
    """Everything that decides the result of training a structure autoencoder, besides the shapes.

    Attributes:
        loss: of the occupancy logits: "dice", "bce" or "l1"; see `losses.structure_loss`.
        crop: train on a random cube of that many voxels along an axis, which holds part of the shape; None
            takes the whole grid. The model is of convolutions: what it learns on crops holds for the whole,
            at an eighth of the work for half of the side.
        augment: how the training shapes are moved: "none", or "axes", the 48 symmetries of the cube.
    """

    model: ModelConfig = field(default_factory=SparseStructureConfig)
    loss: str = "dice"
    crop: int | None = None

    models = MappingProxyType({SparseStructureVAE.__name__: SparseStructureVAE})
    augmentations = ("none", "axes")

    def __post_init__(self) -> None:
        super().__post_init__()
        assert isinstance(self.model, SparseStructureConfig)
        if self.loss not in STRUCTURE_LOSSES:
            raise ValueError(f"`loss` must be one of {', '.join(STRUCTURE_LOSSES)}, got {self.loss!r}")
        if self.crop is not None and not (
            0 < self.crop <= self.model.resolution and self.crop % self.model.factor == 0
        ):
            raise ValueError(
                f"`crop` must be None or a multiple of {self.model.factor} up to {self.model.resolution}, "
                f"got {self.crop}"
            )

    @property
    def size(self) -> int:
        """Voxels along an axis of what the model sees."""
        assert isinstance(self.model, SparseStructureConfig)
        return self.model.resolution if self.crop is None else self.crop


@dataclass(frozen=True)
class TokenTrainConfig(RunConfig):
    """Everything that decides the result of training a next-scale transformer, besides shapes and tokenizer.

    Attributes:
        variants: encodings of each shape that are made before the training, each of other points of its
            surface; every step takes a random one.
        augment: how those after the first are moved: "none", "axes", or "dora"; see
            `fastshape.train.augment`.
        scale_counts: numbers of first scales, ascending, one of which is drawn for each step; empty: always
            all. The last scales have most of the tokens, and a coarse one learns from a step without them as
            much.
        scale_probabilities: of `scale_counts`; empty: all alike.
    """

    model: ModelConfig = field(default_factory=NextScaleConfig)
    variants: int = 1
    scale_counts: tuple[int, ...] = ()
    scale_probabilities: tuple[float, ...] = ()

    models = MappingProxyType({NextScaleTransformer.__name__: NextScaleTransformer})
    augmentations = ("none", "axes", "dora")

    def __post_init__(self) -> None:
        super().__post_init__()
        assert isinstance(self.model, NextScaleConfig)
        for name in ("scale_counts", "scale_probabilities"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has lists
        if self.variants < 1:
            raise ValueError(f"`variants` must be at least 1, got {self.variants}")
        counts, probabilities = self.scale_counts, self.scale_probabilities
        if any(not 1 <= count <= len(self.model.scales) for count in counts) or list(counts) != sorted(
            set(counts)
        ):
            raise ValueError(
                f"`scale_counts` must be in [1, {len(self.model.scales)}] and ascending, got {counts}"
            )
        if probabilities and (len(probabilities) != len(counts) or min(probabilities) <= 0):
            raise ValueError(
                f"`scale_probabilities` must be positive, one for each of {len(counts)}, got {probabilities}"
            )


def config_from_dict(values: Mapping[str, Any]) -> RunConfig:
    """The inverse of any configuration's `to_dict`; the model's class says of which.

    Raises:
        ValueError: an unknown field or class, or a bad value.
    """
    name = dict(values.get("model", {})).get("class", VecSetVAE.__name__)
    kinds: tuple[type[RunConfig], ...] = (TrainConfig, StructureTrainConfig, TokenTrainConfig)
    for kind in kinds:
        if name in kind.models:
            return kind.from_dict(values)
    there = ", ".join(model for kind in kinds for model in kind.models)
    raise ValueError(f"there is no model {name!r}; there are {there}")


def _parse(owner: Any, name: str, inner: str, text: str) -> Any:
    """The value of `text` for the field `inner` of `owner`; `name` is what the user wrote."""
    types = {key: hint for key, hint in typing.get_type_hints(type(owner)).items() if key != "model"}
    types = {entry.name: types[entry.name] for entry in dataclasses.fields(owner) if entry.name in types}
    if inner not in types:
        prefix = name.removesuffix(inner)
        raise ValueError(f"there is no field `{name}`; there are {', '.join(prefix + key for key in types)}")
    expected = types[inner]
    try:
        return _value(text, expected)
    except (ValueError, KeyError):
        raise ValueError(f"`{name}` must be {_describe(expected)}, got {text!r}") from None


def _value(text: str, expected: Any) -> Any:
    arguments = typing.get_args(expected)
    if typing.get_origin(expected) is tuple:
        return tuple(_value(part.strip(), arguments[0]) for part in text.split(",") if part.strip())
    if arguments:  # an optional value
        return None if text.lower() in ("none", "null") else _value(text, arguments[0])
    if expected is bool:
        return {"true": True, "false": False}[text.lower()]
    return expected(text)


def _describe(expected: Any) -> str:
    arguments = typing.get_args(expected)
    if typing.get_origin(expected) is tuple:
        return f"{_describe(arguments[0])}, or several with commas between"
    if arguments:
        return f"{_describe(arguments[0])}, or none"
    return {int: "an integer", float: "a number", bool: "true or false", str: "a word"}[expected]
