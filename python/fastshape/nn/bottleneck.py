"""Bottlenecks: an encoder's tokens to a distribution over latents, and latents to a decoder's tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastshape.nn.posterior import Posterior


class KLBottleneck(nn.Module):
    """A diagonal Gaussian per token, held near the standard normal by `Posterior.kl`.

    Reference: 3DShape2VecSet (Zhang et al., SIGGRAPH 2023), section 5.2; Dora-VAE's is the same.
    """

    def __init__(self, dim: int, latent_dim: int) -> None:
        super().__init__()
        self.to_mean = nn.Linear(dim, latent_dim)
        self.to_logvar = nn.Linear(dim, latent_dim)
        self.from_latent = nn.Linear(latent_dim, dim)

    def forward(self, x: Tensor) -> Posterior:
        """x (B, M, dim) -> posterior over (B, M, latent_dim)."""
        return Posterior.gaussian(self.to_mean(x), self.to_logvar(x))


class NormalizedBottleneck(nn.Module):
    """Latents of mean 0 and (biased) variance 1 over the channels of each token: no loss, no noise.

    They lie on a sphere of radius sqrt(latent_dim); with one channel they are always 0.

    Reference: LaGeM (Zhang and Wonka, ICLR 2025), equations 6 and 7 and table 2 (NBAE).
    """

    def __init__(self, dim: int, latent_dim: int) -> None:
        super().__init__()
        self.to_latent = nn.Linear(dim, latent_dim)
        self.gamma = nn.Parameter(torch.ones(latent_dim))
        self.beta = nn.Parameter(torch.zeros(latent_dim))
        self.project = nn.Linear(latent_dim, dim)

    def forward(self, x: Tensor) -> Posterior:
        """x (B, M, dim) -> a point mass at (B, M, latent_dim)."""
        return Posterior(self.standardize(self.to_latent(x)))

    @staticmethod
    def standardize(latents: Tensor) -> Tensor:
        """Mean 0 and variance 1 over the last dimension: (..., latent_dim) -> (..., latent_dim)."""
        return F.layer_norm(latents, latents.shape[-1:], eps=1e-6)

    def from_latent(self, latents: Tensor) -> Tensor:
        """latents (B, M, latent_dim) -> (B, M, dim)."""
        return self.project(latents * self.gamma + self.beta)
