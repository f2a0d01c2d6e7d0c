"""The configuration of a training run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastshape.models import VecSetConfig


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the result of a run, besides the shapes.

    Attributes:
        model: the model.
        steps: optimizer steps.
        batch_size: shapes per step; fewer shapes than that are repeated with other points.
        volume_queries: query points per shape and step drawn from `ShapeSamples.volume`.
        near_queries: query points per shape and step drawn from `ShapeSamples.near`.
        balanced: draw half of the volume queries inside and half outside, where a shape has both.
        near_weight: weight of the near queries' loss; the volume's is 1.
        kl_weight: weight of the KL divergence, a mean over tokens and channels.
        sample_posterior: decode a sample of the posterior; False decodes its mode. With very few shapes the
            latents carry little beside noise, and a decoder that only ever saw noise is off at the mode.
        learning_rate: the peak, reached after `warmup_steps` of linear growth, then a cosine down to
            `final_learning_rate` at the last step.
        weight_decay: of AdamW.
        betas: of AdamW.
        gradient_clip: largest norm of the gradient; None does not clip.
        ema_decay: the result is an exponential moving average of the parameters; None: the last parameters.
        augment: scale each axis by U[0.75, 1.25], rescale to max |coordinate| just under 1, and jitter the
            surface points by 0.005 N(0, 1), as the official code does.
        bfloat16: autocast to bfloat16.
        checkpoint_every: steps between checkpoints.
        log_every: steps between lines of `metrics.jsonl`.
        num_threads: CPU threads to train with; None leaves torch's number. A fixed number makes the result
            independent of the machine's cores, and one thread is not slowed down by a busy machine.
        seed: of the parameters and of every draw.
    """

    model: VecSetConfig = field(default_factory=VecSetConfig)
    steps: int = 1000
    batch_size: int = 1
    volume_queries: int = 1024
    near_queries: int = 1024
    balanced: bool = False
    near_weight: float = 0.1
    kl_weight: float = 1e-3
    sample_posterior: bool = True
    learning_rate: float = 1e-4
    final_learning_rate: float = 1e-6
    warmup_steps: int = 0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    gradient_clip: float | None = None
    ema_decay: float | None = None
    augment: bool = False
    bfloat16: bool = False
    checkpoint_every: int = 500
    log_every: int = 10
    num_threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if self.num_threads is not None and self.num_threads < 1:
            raise ValueError(f"`num_threads` must be None or at least 1, got {self.num_threads}")
        for name in ("volume_queries", "near_queries", "warmup_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}")
        if self.volume_queries + self.near_queries == 0:
            raise ValueError("`volume_queries` and `near_queries` must not both be 0")
        if self.model.output != "occupancy":
            raise NotImplementedError(f"training is of occupancy, not of the model's {self.model.output!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return {**dataclasses.asdict(self), "betas": list(self.betas)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The inverse of `to_dict`."""
        known = {entry.name for entry in dataclasses.fields(cls)}
        unknown = sorted(values.keys() - known)
        if unknown:
            raise ValueError(f"TrainConfig has no field {', '.join(unknown)}")
        values = dict(values)
        if "model" in values:
            values["model"] = VecSetConfig.from_dict(values["model"])
        if "betas" in values:
            values["betas"] = tuple(values["betas"])
        return cls(**values)
