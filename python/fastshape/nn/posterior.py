"""Distributions over latents that an encoder returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_LOGVAR_RANGE = (-30.0, 20.0)

Generators = torch.Generator | Sequence[torch.Generator]


def _standard_normal(like: Tensor, generator: Generators | None) -> Tensor:
    """Standard normal numbers of the shape, dtype and device of `like` (B, M, C)."""
    if generator is None:
        return torch.randn_like(like)
    if not isinstance(generator, torch.Generator):
        if len(generator) != len(like):
            raise ValueError(f"`generator` must be one, or one for each of {len(like)}, got {len(generator)}")
        return torch.cat([_standard_normal(like[i : i + 1], one) for i, one in enumerate(generator)])
    noise = torch.randn(like.shape, generator=generator, device=generator.device, dtype=like.dtype)
    return noise.to(like.device)


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over latents (B, M, C), or a point mass where `logvar` is None.

    Attributes:
        mean: (B, M, C).
        logvar: log variance (B, M, C), clamped to [-30, 20] by `gaussian`; None for a plain autoencoder.
    """

    mean: Tensor
    logvar: Tensor | None = None

    @classmethod
    def gaussian(cls, mean: Tensor, logvar: Tensor) -> Posterior:
        """The Gaussian with the log variance clamped to [-30, 20], as every paper of the family does."""
        return cls(mean, logvar.clamp(*_LOGVAR_RANGE))

    def mode(self) -> Tensor:
        """The most probable latents: the mean, (B, M, C)."""
        return self.mean

    def sample(self, generator: Generators | None = None, *, noise: Tensor | None = None) -> Tensor:
        """mean + exp(logvar / 2) * noise; of a point mass, the mean.

        Args:
            generator: draws the noise on its own device, so that one CPU generator gives the same
                latents on every device; or a generator for each of the B items, so that an item's noise
                does not depend on its batch. None uses torch's global generator of the mean's device.
            noise: (B, M, C) standard normal, used instead of drawing.

        Returns:
            (B, M, C).
        """
        if self.logvar is None:
            return self.mean
        if noise is None:
            noise = _standard_normal(self.mean, generator)
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def kl(self) -> Tensor:
        """KL divergence from the standard normal, a MEAN over tokens and channels per shape: (B,).

        0.5 * mean(mean^2 + var - 1 - logvar). Zero for a point mass, so that one loss serves both.
        """
        if self.logvar is None:
            return self.mean.new_zeros(self.mean.shape[0])
        terms = self.mean.square() + self.logvar.exp() - 1.0 - self.logvar
        return 0.5 * terms.flatten(1).mean(1)


@dataclass(frozen=True)
class LevelPosterior:
    """The posteriors of a hierarchy of latents, the finest level first. Its verbs are those of `Posterior`.

    Attributes:
        levels: one posterior per level.
    """

    levels: tuple[Posterior, ...]

    @property
    def mean(self) -> tuple[Tensor, ...]:
        """The means of the levels, (B, M_l, C_l) each."""
        return tuple(level.mean for level in self.levels)

    def mode(self) -> tuple[Tensor, ...]:
        """The most probable latents, (B, M_l, C_l) each."""
        return tuple(level.mode() for level in self.levels)

    def sample(
        self, generator: Generators | None = None, *, noise: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, ...]:
        """A draw of every level, the finest first, (B, M_l, C_l) each; arguments as of `Posterior.sample`."""
        given = [None] * len(self.levels) if noise is None else noise
        return tuple(level.sample(generator, noise=n) for level, n in zip(self.levels, given, strict=True))

    def kl(self) -> Tensor:
        """The sum over the levels of `Posterior.kl`: (B,)."""
        return torch.stack([level.kl() for level in self.levels]).sum(0)
