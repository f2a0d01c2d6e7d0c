"""VAT: a shape as tokens of scales, coarse to fine, which a next-scale model can say one after the other.

Zhang et al.: "3D representation in 512-Byte: Variational tokenizer is the key for autoregressive 3D
generation" (VAT), arXiv 2412.02202, section 3.2, algorithm 1 and the appendix.

    points and normals (B, N, 6)   x = Linear([fourier(p), normal])                 (B, N, dim)
    encoder   q += cross(q, x); q += feed_forward(q)           L = 3 r^2 learned queries, (B, L, dim)
              [q, t] through self-attention                    K learned latent tokens, only they go on
    Gaussian  z ~ N(to_mean(norm(t)), exp(to_logvar(norm(t))))                      (B, K, d)
    VVQ       z^ = z + stop(quantize(z) - z)                   `nn.MultiscaleQuantizer`
    decoder   m += cross(m, from_latent(z^)); ...; self-attention                   (B, L, dim)
              three planes of r^2, convolved up to 2r, 4r, 8r: the mipmaps
    field     logit(p) = MLP(bilinear samples of all planes and mipmaps at p)       positive inside

What the paper leaves open and is ours: the sizes of the Fourier features, convolutions and MLP; that the
latents are told their places where the decoder reads them (attention alone does not see the order that the
quantizer gives them); that the learned mask token, "spatially replicated", has a learned place for each
texel. Its occupancy is clip(1/2 - sdf / 2s, 0, 1), with s = 1/128 in the unit cube: `truncation` is 1/64 in
[-1, 1]^3.

`quantize=False` is the first stage of its training, whose latents are not quantized. Tables 3 to 5 of the
paper are `noise`, `scale_dropout` and `temperature`; `decoder`; `compression`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastshape.models.field import (
    Context,
    FieldAutoencoder,
    FieldOutput,
    require_cloud,
    require_points,
    require_tokens,
)
from fastshape.models.pretrained import ModelConfig
from fastshape.nn import (
    CrossAttentionBlock,
    FourierEmbed,
    Generators,
    KLBottleneck,
    MultiscaleQuantizer,
    Posterior,
    Quantized,
    SelfAttentionBlock,
)
from fastshape.nn.multiscale_quantizer import check_scales

_AXES = ((0, 1), (1, 2), (0, 2))  # of the planes XY, YZ, XZ
_SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 24, 32)  # of the scales' grids: the appendix, with 16 for its 14
_TABLE_BYTES = 1 << 30


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


_CHOICES = {
    "compression": ("in_context", "pooling", "qformer"),
    "decoder": ("triplane", "cross"),
    "output": ("soft_occupancy", "occupancy", "tsdf"),
}


@dataclass(frozen=True)
class CodedPosterior(Posterior):
    """The posterior of a training pass, and what became of its draw.

    Attributes:
        coded: tokens, losses and counts; None where the latents were not quantized.
    """

    coded: Quantized | None = None


class CodedBatch(NamedTuple):
    """What a training pass quantized, for the care of the codebook."""

    latents: Tensor  # (B, K, d)
    tokens: Tensor  # (B, T)
    counts: Tensor  # (S, V)


class Encoder(nn.Module):
    """Surface points to K tokens."""

    def __init__(self, config: VATConfig) -> None:
        super().__init__()
        self.compression, self.num_latents = config.compression, config.num_latents
        self.fourier = FourierEmbed(8, include_pi=True)
        self.proj = nn.Linear(self.fourier.dim + config.point_features, config.dim)
        self.queries = nn.Parameter(0.02 * torch.randn(config.num_queries, config.dim))
        self.gather = CrossAttentionBlock(config.dim, **config.attention)
        if config.compression != "pooling":
            self.latents = nn.Parameter(0.02 * torch.randn(config.num_latents, config.dim))
        self.layers = nn.ModuleList(
            SelfAttentionBlock(config.dim, **config.attention) for _ in range(config.encoder_depth)
        )
        if config.compression == "qformer":
            self.compress = CrossAttentionBlock(config.dim, **config.attention)

    def embed(self, points: Tensor) -> Tensor:
        """points (B, N, 3 or 6) -> (B, N, dim)."""
        features = torch.cat([self.fourier(points[..., :3]), points[..., 3:]], dim=-1)
        return self.proj(features.to(self.proj.weight.dtype))

    def forward(self, points: Tensor) -> Tensor:
        """points (B, N, 3 or 6) -> (B, K, dim)."""
        batch = points.shape[0]
        x = self.gather(self.queries.expand(batch, -1, -1), self.embed(points))  # (B, L, dim)
        if self.compression == "in_context":
            x = torch.cat([x, self.latents.expand(batch, -1, -1)], dim=1)  # (B, L + K, dim)
        for layer in self.layers:
            x = layer(x)
        if self.compression == "in_context":
            return x[:, -self.num_latents :]
        if self.compression == "qformer":
            return self.compress(self.latents.expand(batch, -1, -1), x)
        return F.adaptive_avg_pool1d(x.transpose(1, 2), self.num_latents).transpose(1, 2)


class Decoder(nn.Module):
    """K tokens to the L of three planes."""

    def __init__(self, config: VATConfig) -> None:
        super().__init__()
        self.places = nn.Parameter(0.02 * torch.randn(config.num_latents, config.dim))
        self.queries = nn.Parameter(0.02 * torch.randn(config.num_queries, config.dim))
        self.gather = CrossAttentionBlock(config.dim, **config.attention)
        self.layers = nn.ModuleList(
            SelfAttentionBlock(config.dim, **config.attention) for _ in range(config.depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (B, K, dim) -> (B, L, dim)."""
        x = self.gather(self.queries.expand(x.shape[0], -1, -1), x + self.places)
        for layer in self.layers:
            x = layer(x)
        return x


class PlaneStage(nn.Module):
    """Planes of twice the size, and their mipmap."""

    def __init__(self, channels: int, out_channels: int, plane_dim: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm = nn.GroupNorm(math.gcd(32, out_channels), out_channels)
        self.conv_out = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.to_plane = nn.Conv2d(out_channels, plane_dim, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, r, r) -> (B, C', 2r, 2r) and (B, plane_dim, 2r, 2r)."""
        x = self.conv_in(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        x = self.conv_out(F.silu(self.norm(x)))
        return x, self.to_plane(x)


class PlaneHead(nn.Module):
    """The field of three planes with mipmaps.

    The MLP's first layer is linear in what is sampled, and sampling is linear in the planes: on a lattice of
    n points an axis they become tables (3, n, n, mlp_dim) of its outputs, made once, of which a point adds
    three rows. Equal up to rounding.
    """

    def __init__(self, config: VATConfig) -> None:
        super().__init__()
        widths = (config.dim, *config.channels)
        self.size, self.plane_dim = config.plane_size, config.plane_dim
        self.stages = nn.ModuleList(
            PlaneStage(before, after, config.plane_dim) for before, after in pairwise(widths)
        )
        self.first = nn.Linear(3 * len(config.channels) * config.plane_dim, config.mlp_dim)
        self.second = nn.Linear(config.mlp_dim, config.mlp_dim)
        self.to_logits = nn.Linear(config.mlp_dim, 1)

    def planes(self, x: Tensor) -> tuple[Tensor, ...]:
        """x (B, 3 r^2, dim), plane by plane and row by row -> each mipmap, coarsest first, (B, 3, C, n, n).

        A row runs along a plane's first axis.
        """
        batch = x.shape[0]
        x = x.reshape(3 * batch, self.size, self.size, -1).permute(0, 3, 1, 2)
        mipmaps = []
        for stage in self.stages:
            x, mipmap = stage(x)
            mipmaps.append(mipmap.unflatten(0, (batch, 3)))
        return tuple(mipmaps)

    def sample(self, mipmaps: Sequence[Tensor], points: Tensor) -> Tensor:
        """mipmaps (B, 3, C, n, n), points (B, Q, 3) -> (B, Q, 3 * C * mipmaps)."""
        batch, count = points.shape[:2]
        places = torch.stack([points[..., axes] for axes in _AXES], 1).flatten(0, 1)[:, :, None]
        found = [_bilinear(mipmap.flatten(0, 1), places) for mipmap in mipmaps]
        # (B * 3, C, Q, 1) each -> (B, Q, 3 * C), a plane after the other
        rows = [f.view(batch, -1, count).transpose(1, 2) for f in found]
        return torch.cat(rows, dim=-1)

    def tables(self, mipmaps: Sequence[Tensor], resolution: int, bounds: float) -> Tensor:
        """The first layer's output of each plane at the lattice's places: (3, n, n, mlp_dim), of one shape.

        The first index is along a plane's first axis.
        """
        like = mipmaps[0]
        line = torch.linspace(-bounds, bounds, resolution, dtype=like.dtype, device=like.device)
        places = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).expand(3, -1, -1, -1)
        weight = self.first.weight.unflatten(1, (len(mipmaps), 3, self.plane_dim))
        table = like.new_zeros(3, resolution, resolution, len(weight))
        for mipmap, part in zip(mipmaps, weight.unbind(1), strict=True):  # part (mlp_dim, 3, C)
            table += torch.einsum("pcij,hpc->pijh", _bilinear(mipmap[0], places), part)
        table[0] += self.first.bias
        return table

    def lookup(self, tables: Tensor, points: Tensor, bounds: float) -> Tensor:
        """What the first layer gives at points of the lattice, (1, Q, 3) -> (1, Q, mlp_dim)."""
        index = _places(points, tables.shape[1], bounds).round().long()
        return sum(tables[p][index[..., a], index[..., b]] for p, (a, b) in enumerate(_AXES))  # type: ignore[return-value]

    def finish(self, hidden: Tensor) -> Tensor:
        """The MLP behind its first layer: (B, Q, mlp_dim) -> (B, Q)."""
        return self.to_logits(F.silu(self.second(F.silu(hidden)))).squeeze(-1)


class CrossHead(nn.Module):
    """The field as a cross-attention from points to tokens: table 4 of the paper."""

    def __init__(self, config: VATConfig) -> None:
        super().__init__()
        self.fourier = FourierEmbed(8, include_pi=True)
        self.proj = nn.Linear(self.fourier.dim, config.dim)
        self.block = CrossAttentionBlock(config.dim, **config.attention)
        self.norm = nn.LayerNorm(config.dim)
        self.to_logits = nn.Linear(config.dim, 1)

    def forward(self, points: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """points (B, Q, 3), keys and values of the decoder's tokens -> (B, Q)."""
        x = self.proj(self.fourier(points).to(self.proj.weight.dtype))
        return self.to_logits(self.norm(self.block.attend(x, keys, values))).squeeze(-1)


class VAT(FieldAutoencoder):
    """The VAT tokenizer.

    `encode` and `decode` take latents, as every model's; `decode` quantizes them first, unless the
    configuration, or `quantizing`, says otherwise. `tokenize` and `decode_tokens` are the way through tokens,
    of which the first scales are a coarser shape. `query` returns LOGITS of occupancy: positive inside, the
    surface at 0 (the opposite sign of an sdf).

    Example:
        >>> model = VAT(VAT.configs["k1024_v16384"]).eval()
        >>> tokens = model.tokenize(points)  # points and normals (B, N, 6) in [-1, 1] -> (B, 2280) int64
        >>> coarse = model.decode_tokens(tokens, scales=5)
        >>> logits = model.query(queries, model.decode_tokens(tokens))  # queries (B, Q, 3) -> (B, Q)
    """

    Config = VATConfig
    configs: ClassVar[Mapping[str, VATConfig]] = MappingProxyType(
        {
            f"k{latents}_v{codes}{suffix}": VATConfig(
                num_latents=latents, num_codes=codes, encoder_depth=depth, depth=depth
            )
            for suffix, depth in (("", 12), ("_d16", 16))
            for latents in (64, 256, 576, 1024)
            for codes in ((256, 2048, 16384) if depth == 12 else (16384,))
        }
    )

    config: VATConfig
    quantizing: bool
    """Whether `decode` and `forward` quantize; the training's first stage does not."""

    def __init__(self, config: VATConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.norm = nn.LayerNorm(config.dim)
        self.bottleneck = KLBottleneck(config.dim, config.latent_dim)
        self.quantizer = (
            MultiscaleQuantizer(
                config.num_codes,
                config.latent_dim,
                config.all_scales,
                resample=config.resample,
                num_phis=config.num_phis,
                phi_ratio=config.phi_ratio,
                commitment=config.commitment,
                cosine=config.cosine,
                ema=config.ema,
                temperature=config.temperature,
            )
            if config.quantize
            else None
        )
        self.decoder = Decoder(config)
        self.head: PlaneHead | CrossHead = (
            PlaneHead(config) if config.decoder == "triplane" else CrossHead(config)
        )
        self.quantizing = config.quantize
        # Of the training passes since the codebook was last cared for; see `train.codebook`.
        self.coded: deque[CodedBatch] = deque(maxlen=64)

    @property
    def input_channels(self) -> int:
        """Channels of each input point."""
        return 3 + self.config.point_features

    def encode(
        self,
        points: Tensor,
        *,
        num_latents: int | None = None,
        start: int | Tensor | str = 0,
        generator: torch.Generator | None = None,
    ) -> Posterior:
        """Encodes surface points; their order plays no part, up to rounding.

        Args:
            points: (B, N, 6) float32, positions in [-1, 1] and unit normals, any N >= 1; (B, N, 3) where
                `point_features` is 0.
            num_latents: None, or K.
            start, generator: of other models' sampling; unused.

        Returns:
            Posterior over latents (B, K, d).

        Raises:
            ValueError: the shape of `points`, an empty cloud, or another number of tokens.
        """
        require_cloud(points, "points", self.input_channels)
        if num_latents not in (None, self.config.num_latents):
            raise ValueError(
                f"learned tokens fix the number of latents at {self.config.num_latents}, got {num_latents}"
            )
        return self.bottleneck(self.norm(self.encoder(points)))

    def tokenize(self, points: Tensor) -> Tensor:
        """points (B, N, 6) as of `encode` -> tokens (B, T) int64 of all scales, coarse to fine."""
        with torch.no_grad():
            return self._quantizer().quantize(self.encode(points).mode()).tokens

    def decode_tokens(self, tokens: Tensor, scales: int | None = None) -> tuple[Tensor, ...]:
        """The features of tokens.

        Args:
            tokens: (B, T) int64, of all scales or of the first of them.
            scales: decode the first of them alone: a coarser shape.

        Returns:
            Features, as of `decode`.
        """
        return self._features(self._quantizer().decode(tokens, scales))

    def decode(self, latents: Tensor, *, quantize: bool | None = None) -> tuple[Tensor, ...]:
        """The decoder, once per shape.

        Args:
            latents: (B, K, d), of `encode`.
            quantize: bring them to their codes first; None: if the model is a quantized one.

        Returns:
            Of each mipmap, the coarsest first, the planes XY, YZ, XZ (B, 3, plane_dim, n, n); with the
            cross-attention decoder a tensor of tokens (B, L, dim).
        """
        require_tokens(latents, "latents", self.config.latent_dim)
        if latents.shape[1] != self.config.num_latents:
            raise ValueError(f"`latents` must have {self.config.num_latents} rows, got {latents.shape[1]}")
        if self.quantizing if quantize is None else quantize:
            latents = self._quantizer().quantize(latents).quantized
        return self._features(latents)

    def forward(
        self,
        points: Tensor,
        queries: Tensor,
        *,
        sample: bool | None = None,
        num_latents: int | None = None,
        generator: Generators | None = None,
    ) -> FieldOutput:
        """One training pass: encode, sample the posterior, quantize, decode, query in one unpadded piece.

        Args:
            points: (B, N, 6), as of `encode`.
            queries: (B, Q, 3).
            sample: draw the latents from the posterior (True) or take its mode (False); None: draw in
                training only. Without `noise` always the mode.
            num_latents: as of `encode`.
            generator: draws the posterior's noise: one, or one for each of the B shapes.

        Returns:
            Logits (B, Q), positive inside, and a `CodedPosterior`.
        """
        require_points(queries, "queries")
        posterior = self.encode(points, num_latents=num_latents)
        sampled = (self.training if sample is None else sample) and self.config.noise
        latents = posterior.sample(generator) if sampled else posterior.mode()
        coded = None
        if self.quantizing:
            coded = self._quantizer().quantize(latents, num_scales=self._scales_of_step())
            if self.training and torch.is_grad_enabled():
                self.coded.append(CodedBatch(latents.detach(), coded.tokens, coded.counts))
            latents = coded.quantized
        values = self._field(queries, self._prepare(self._features(latents)))
        return FieldOutput(values, CodedPosterior(posterior.mean, posterior.logvar, coded))

    # ---- The field -----------------------------------------------------------------------------------------

    def _quantizer(self) -> MultiscaleQuantizer:
        if self.quantizer is None:
            raise ValueError("the model has no quantizer: its configuration has `quantize` = false")
        return self.quantizer

    def _scales_of_step(self) -> int | None:
        """How many scales a training pass takes: all, or with `scale_dropout` a random number."""
        if not (self.training and self.config.scale_dropout):
            return None
        count = len(self.config.all_scales)
        if float(torch.rand(())) >= self.config.scale_dropout:
            return None
        return int(torch.randint(1, count + 1, ()))

    def _features(self, latents: Tensor) -> tuple[Tensor, ...]:
        x = self.decoder(self.bottleneck.from_latent(latents.to(self.norm.weight.dtype)))
        return self.head.planes(x) if isinstance(self.head, PlaneHead) else (x,)

    def _levels(self, features: Any) -> tuple[Tensor, ...]:
        wanted = len(self.config.channels) if isinstance(self.head, PlaneHead) else 1
        if isinstance(features, Tensor) or not isinstance(features, Sequence) or len(features) != wanted:
            raise TypeError(
                f"`features` must be the {wanted} tensors of `decode`, got {type(features).__name__}"
            )
        if not isinstance(self.head, PlaneHead):
            require_tokens(features[0], "features", self.config.dim)
            return tuple(features)
        for planes in features:
            if planes.dim() != 5 or planes.shape[1:3] != (3, self.config.plane_dim):
                raise ValueError(
                    f"`features` must have shapes (B, 3, {self.config.plane_dim}, n, n), "
                    f"got {tuple(planes.shape)}"
                )
        return tuple(features)

    def _prepare(self, levels: Sequence[Tensor]) -> Context:
        if isinstance(self.head, CrossHead):
            return (self.head.block.keys_values(levels[0]),)
        return (tuple(levels),)  # type: ignore[return-value]

    def _field(self, points: Tensor, context: Context) -> Tensor:
        if isinstance(self.head, CrossHead):
            return self.head(points, *context[0])
        if len(context) == 2:
            return self.head.finish(self.head.lookup(context[1][0], points, self.bounds))
        samples = self.head.sample(context[0], points)
        return self.head.finish(self.head.first(samples))

    def _lattice_field(
        self, levels: Sequence[Tensor], resolution: int, chunk_size: int
    ) -> Callable[[Tensor], Tensor]:
        plain = super()._lattice_field(levels, resolution, chunk_size)
        size = 3 * resolution**2 * self.config.mlp_dim * levels[0].element_size()
        if not isinstance(self.head, PlaneHead) or size > _TABLE_BYTES:
            return plain
        tables = self.head.tables(levels, resolution, self.bounds)
        context: Any = (*self._prepare(levels), (tables,))

        def field(points: Tensor) -> Tensor:
            places = _places(points, resolution, self.bounds)
            on = ((places - places.round()).abs() < 1e-3).all(1)
            if bool(on.all()):
                return self._in_chunks(points[None], context, chunk_size)[0]
            values = plain(points)
            values[on] = self._in_chunks(points[on][None], context, chunk_size)[0]
            return values

        return field

    def query_bytes(self, num_latents: int | Sequence[int], *, chunk_size: int = 4096) -> int:
        """An upper bound of the working memory of `query` without gradients; see `FieldAutoencoder`."""
        config = self.config
        if config.decoder == "cross":
            return super().query_bytes(config.num_queries, chunk_size=chunk_size)
        samples = 3 * len(config.channels) * config.plane_dim
        per_point = 32 + 2 * samples + 4 * config.mlp_dim
        return next(self.parameters()).element_size() * chunk_size * per_point

    def _query_width(self) -> tuple[int, int]:
        return self.config.dim, self.config.heads


def _bilinear(planes: Tensor, places: Tensor) -> Tensor:
    """planes (P, C, n, n) at places (P, H, W, 2) -> (P, C, H, W); beyond the border its last value."""
    wide = torch.promote_types(
        planes.dtype, torch.float32
    )  # the half ones would round places to whole texels
    found = F.grid_sample(planes.to(wide), places.to(wide), padding_mode="border", align_corners=False)
    return found.to(planes.dtype)


def _places(points: Tensor, resolution: int, bounds: float) -> Tensor:
    """Points in steps of the lattice, from 0 to resolution - 1."""
    return (points + bounds) * ((resolution - 1) / (2.0 * bounds))
