"""Distributions over latents that an encoder returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_LOGVAR_RANGE = (-30.0, 20.0)


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

    def sample(self, generator: torch.Generator | None = None, *, noise: Tensor | None = None) -> Tensor:
        """mean + exp(logvar / 2) * noise; of a point mass, the mean.

        Args:
            generator: draws the noise on its own device, so that one CPU generator gives the same
                latents on every device. None uses torch's global generator of the mean's device.
            noise: (B, M, C) standard normal, used instead of drawing.

        Returns:
            (B, M, C).
        """
        if self.logvar is None:
            return self.mean
        if noise is None:
            device = self.mean.device if generator is None else generator.device
            noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
            noise = noise.to(self.mean.device)
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
        self, generator: torch.Generator | None = None, *, noise: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, ...]:
        """A draw of every level, the finest first, (B, M_l, C_l) each; arguments as of `Posterior.sample`."""
        given = [None] * len(self.levels) if noise is None else noise
        return tuple(level.sample(generator, noise=n) for level, n in zip(self.levels, given, strict=True))

    def kl(self) -> Tensor:
        """The sum over the levels of `Posterior.kl`: (B,)."""
        return torch.stack([level.kl() for level in self.levels]).sum(0)
