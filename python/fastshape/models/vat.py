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

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from fastshape.models.vat_config import VATConfig
from fastshape.models.vat_heads import CrossHead, PlaneHead, lattice_places
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

_TABLE_BYTES = 1 << 30


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
        self._checked_count(num_latents)
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
        self._checked_count(latents.shape[1])
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
            places = lattice_places(points, resolution, self.bounds)
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
