"""The sizes of a `VAT`, and the scales of its tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastshape.models.pretrained import ModelConfig
from fastshape.nn.multiscale_quantizer import check_scales

_SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 24, 32)  # of the scales' grids: the appendix, with 16 for its 14
_CHOICES = {
    "compression": ("in_context", "pooling", "qformer"),
    "decoder": ("triplane", "cross"),
    "output": ("soft_occupancy", "occupancy", "tsdf"),
}


def published_scales(num_latents: int) -> tuple[int, ...]:
    """The tokens of each scale for K latents: the published squares below K, and K."""
    return (*(side**2 for side in _SIDES if side**2 < num_latents), num_latents)


@dataclass(frozen=True)
class VATConfig(ModelConfig):
    """Sizes of a `VAT`; the defaults are the published model of 1024 latents.

    Attributes:
        dim: width of the tokens.
        heads: of every attention; they divide `dim`.
        encoder_depth, depth: self-attention layers of encoder and decoder; 12 in the paper's list, 16 by its
            number of parameters.
        num_latents: K; the latent tokens are learned, and their number is fixed.
        latent_dim: d.
        num_inputs: surface points per shape in training; no parameter depends on it.
        point_features: channels beside the position: 3, the normal, or 0.
        qk_norm: LayerNorm of queries and keys.
        plane_size: r, texels along an axis of the planes that the decoder's tokens are.
        channels: of the convolutions behind each doubling of the planes.
        plane_dim: channels of the mipmaps.
        mlp_dim: width of the field's MLP.
        quantize: whether there is a quantizer; False is the first stage.
        num_codes: V.
        scales: tokens of each scale, coarse to fine, the last num_latents; empty: as published.
        resample, num_phis, phi_ratio, commitment, cosine, ema, temperature: of `nn.MultiscaleQuantizer`.
        noise: draw the latents from their Gaussian in training, also of what is quantized (the paper's VVQ).
        scale_dropout: share of the training steps in which only the first scales, a random number of them,
            are decoded.
        compression: how K tokens come of L: "in_context", the paper's; "pooling", means of neighbors without
            latent tokens; "qformer", a cross-attention behind the self-attention.
        decoder: "triplane", or "cross", a cross-attention from each point to the decoder's tokens.
        output: what the logits are learned from: "soft_occupancy", a ramp of width `truncation` on either
            side of the surface, the paper's; sharp "occupancy"; or a "tsdf".
        truncation: distance at which occupancy saturates.
    """

    dim: int = 768
    heads: int = 12
    encoder_depth: int = 12
    depth: int = 12
    num_latents: int = 1024
    latent_dim: int = 16
    num_inputs: int = 80_000
    point_features: int = 3
    qk_norm: bool = False
    plane_size: int = 32
    channels: tuple[int, ...] = (256, 128, 64)
    plane_dim: int = 32
    mlp_dim: int = 256
    quantize: bool = True
    num_codes: int = 16384
    scales: tuple[int, ...] = ()
    resample: str = "grid2d"
    num_phis: int = 4
    phi_ratio: float = 0.5
    commitment: float = 0.25
    cosine: bool = False
    ema: bool = False
    temperature: float = 0.0
    noise: bool = True
    scale_dropout: float = 0.0
    compression: str = "in_context"
    decoder: str = "triplane"
    output: str = "soft_occupancy"
    truncation: float = 1 / 64

    def __post_init__(self) -> None:
        for name in ("channels", "scales"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has lists
        for name in ("dim", "heads", "num_latents", "latent_dim", "num_inputs", "plane_size", "plane_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        for name in ("mlp_dim", "num_codes"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        for name in ("encoder_depth", "depth"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}")
        if self.dim % self.heads:
            raise ValueError(f"`heads` must divide `dim`, got {self.heads} and {self.dim}")
        if self.point_features not in (0, 3):
            raise ValueError(f"`point_features` must be 0 or 3, the normal, got {self.point_features}")
        if not self.channels or min(self.channels) < 1:
            raise ValueError(f"`channels` must be at least 1, of one doubling or more, got {self.channels}")
        if not 0.0 <= self.scale_dropout <= 1.0:
            raise ValueError(f"`scale_dropout` must be in [0, 1], got {self.scale_dropout}")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.compression == "pooling" and self.num_latents > self.num_queries:
            raise ValueError(
                f"`num_latents` must be at most the {self.num_queries} that are pooled, "
                f"got {self.num_latents}"
            )
        if self.truncation <= 0:
            raise ValueError(f"`truncation` must be positive, got {self.truncation}")
        if self.quantize and check_scales(self.all_scales, self.resample)[-1] != self.num_latents:
            raise ValueError(f"`scales` must end with `num_latents`, {self.num_latents}, got {self.scales}")

    @property
    def num_queries(self) -> int:
        """L, the tokens of the three planes."""
        return 3 * self.plane_size**2

    @property
    def all_scales(self) -> tuple[int, ...]:
        """Tokens of each scale."""
        return self.scales or published_scales(self.num_latents)

    @property
    def learned_queries(self) -> bool:
        """Always: the number of tokens is fixed."""
        return True

    @property
    def attention(self) -> dict[str, Any]:
        """The options of every attention block."""
        return {
            "heads": self.heads,
            "head_dim": self.dim // self.heads,
            "gated": False,
            "qk_norm": self.qk_norm,
        }
