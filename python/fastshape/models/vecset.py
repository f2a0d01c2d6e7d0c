"""3DShape2VecSet: a shape as a set of latent vectors.

Zhang, Tang, Niessner, Wonka: "3DShape2VecSet: A 3D Shape Representation for Neural Fields and Generative
Diffusion Models", SIGGRAPH 2023, sections 5.1 (encoder), 5.2 (KL bottleneck) and 5.3 (decoder).

    points (B, N, 3)  --FPS-->  samples (B, M, 3)
    x = embed(samples); x += cross(x, embed(points)); x += feed_forward(x)      encoder, (B, M, dim)
    z ~ N(to_mean(x), exp(to_logvar(x)))                                       bottleneck, (B, M, latent_dim)
    x = from_latent(z); depth times: x += attention(x); x += feed_forward(x)    decoder, (B, M, dim)
    logit(q) = to_logits(cross(embed(q), x))                                   per query point, no residual

The official code repeats the decoder's self-attention for every chunk of queries; `decode` runs it once per
shape. It also starts farthest point sampling at a random point, in evaluation too; here the start is point 0
unless asked otherwise, so that encoding is deterministic.

Switches of the successors, all off by default: `qk_norm` (VecSetX, Hunyuan3D-2), `learned_queries` instead of
sampled points, added again behind the bottleneck (VecSetX), and an `output` of distances.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fastshape.models.field import (
    Context,
    FieldAutoencoder,
    FieldOutput,
    require_cloud,
    require_points,
    require_tokens,
    sample_rows,
)
from fastshape.models.pretrained import ModelConfig
from fastshape.nn import (
    CrossAttention,
    CrossAttentionBlock,
    FeedForward,
    Generators,
    KLBottleneck,
    PointEmbed,
    Posterior,
    SelfAttentionBlock,
)


@dataclass(frozen=True)
class VecSetConfig(ModelConfig):
    """Sizes of a `VecSetVAE`.

    Attributes:
        dim: width of the tokens.
        depth: self-attention layers of the decoder (the encoder has none).
        heads: heads of the self-attention; the two cross-attentions have `cross_heads`.
        head_dim: channels per self-attention head; heads * head_dim need not equal dim.
        cross_heads: heads of the cross-attentions, dim / cross_heads channels each; the paper's code has 1.
        num_latents: tokens per shape in training and the default of `encode`; no parameter depends on it.
        num_inputs: surface points per shape in training; no parameter depends on it.
        latent_dim: channels of the KL bottleneck; None is the plain autoencoder, whose latents have `dim`.
        decoder_feed_forward: a feed-forward layer after the query cross-attention.
        drop_path: probability of dropping a sample's residual branch in the decoder, in training.
        qk_norm: LayerNorm of each head's queries and keys, in every attention.
        learned_queries: the encoder's queries are `num_latents` learned vectors and not embedded samples of
            the points; they are added again behind the bottleneck.
        output: what `query` returns: "occupancy" logits or a "tsdf" (the signed distance divided by
            `truncation`, learned within -1 and 1), both positive inside, or an "sdf", negative inside.
        truncation: the distance at which the field saturates; used with "tsdf".
    """

    dim: int = 512
    depth: int = 24
    heads: int = 8
    head_dim: int = 64
    cross_heads: int = 1
    num_latents: int = 512
    num_inputs: int = 2048
    latent_dim: int | None = 64
    decoder_feed_forward: bool = False
    drop_path: float = 0.1
    qk_norm: bool = False
    learned_queries: bool = False
    output: str = "occupancy"
    truncation: float = 0.05

    def __post_init__(self) -> None:
        for name in ("dim", "heads", "head_dim", "cross_heads", "num_latents", "num_inputs"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if self.depth < 0:
            raise ValueError(f"`depth` must not be negative, got {self.depth}")
        if self.latent_dim is not None and self.latent_dim < 1:
            raise ValueError(f"`latent_dim` must be None or at least 1, got {self.latent_dim}")
        if self.dim % self.cross_heads:
            raise ValueError(f"`cross_heads` must divide `dim`, got {self.cross_heads} and {self.dim}")
        if not 0.0 <= self.drop_path < 1.0:
            raise ValueError(f"`drop_path` must be in [0, 1), got {self.drop_path}")
        if self.output not in ("occupancy", "tsdf", "sdf"):
            raise ValueError(f"`output` must be 'occupancy', 'tsdf' or 'sdf', got {self.output!r}")
        if self.truncation <= 0:
            raise ValueError(f"`truncation` must be positive, got {self.truncation}")

    @property
    def cross_attention(self) -> dict[str, Any]:
        """The options of the two cross-attentions."""
        return {
            "heads": self.cross_heads,
            "head_dim": self.dim // self.cross_heads,
            "qk_norm": self.qk_norm,
        }


class Head(nn.Module):
    """The field: section 5.3. The query's embedding only asks; it is not added to the answer."""

    def __init__(self, config: VecSetConfig) -> None:
        super().__init__()
        self.cross_attention = CrossAttention(config.dim, config.dim, **config.cross_attention)
        self.feed_forward = FeedForward(config.dim) if config.decoder_feed_forward else None
        self.to_logits = nn.Linear(config.dim, 1)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """queries (B, Q, dim), keys and values of the decoded tokens -> values (B, Q)."""
        y = self.cross_attention.attend(queries, keys, values)
        if self.feed_forward is not None:
            y = y + self.feed_forward(y)
        return self.to_logits(y).squeeze(-1)


class VecSetVAE(FieldAutoencoder):
    """The 3DShape2VecSet autoencoder, plain (`latent_dim=None`) or with the KL bottleneck.

    `query` returns occupancy LOGITS: positive inside, the surface at 0 (the opposite sign of an sdf). Other
    values of `output` make it distances: see the configuration.

    Example:
        >>> model = VecSetVAE(VecSetVAE.configs["kl_d512_m512_l8"]).eval()
        >>> latents = model.encode(points).mode()           # points (B, N, 3) in [-1, 1] -> (B, 512, 8)
        >>> logits = model.query(queries, model.decode(latents))  # queries (B, Q, 3) -> (B, Q)
    """

    Config = VecSetConfig
    configs: ClassVar[Mapping[str, VecSetConfig]] = MappingProxyType(
        {
            **{
                f"kl_d512_m512_l{size}": VecSetConfig(latent_dim=size)
                for size in (512, 64, 32, 16, 8, 4, 2, 1)
            },
            **{
                f"ae_d512_m{count}": VecSetConfig(latent_dim=None, num_latents=count)
                for count in (512, 256, 128, 64)
            },
            **{f"ae_d{dim}_m512": VecSetConfig(latent_dim=None, dim=dim) for dim in (256, 128, 64)},
        }
    )

    config: VecSetConfig

    def __init__(self, config: VecSetConfig) -> None:
        super().__init__()
        self.config = config
        self.point_embed = PointEmbed(config.dim)
        self.encoder = CrossAttentionBlock(config.dim, **config.cross_attention)  # section 5.1
        self.bottleneck = None if config.latent_dim is None else KLBottleneck(config.dim, config.latent_dim)
        self.layers = nn.ModuleList(
            SelfAttentionBlock(
                config.dim,
                heads=config.heads,
                head_dim=config.head_dim,
                drop_path=config.drop_path,
                qk_norm=config.qk_norm,
            )
            for _ in range(config.depth)
        )
        self.head = Head(config)
        self.queries = (
            nn.Parameter(torch.randn(config.num_latents, config.dim)) if config.learned_queries else None
        )

    @property
    def inside(self) -> Literal["positive", "negative"]:
        """The sign of the field inside the solid."""
        return "negative" if self.config.output == "sdf" else "positive"

    def encode(
        self,
        points: Tensor,
        *,
        num_latents: int | None = None,
        start: int | Tensor | str = 0,
        generator: torch.Generator | None = None,
    ) -> Posterior:
        """Encodes surface points.

        Args:
            points: (B, N, 3) float32 in [-1, 1], any N >= 1.
            num_latents: tokens M; None is the configuration's. Any number works, whatever the training used.
            start: the first point of farthest point sampling: an index, (B,) indices, or "random".
            generator: used by start="random".

        Returns:
            Posterior over latents (B, M, latent_dim), or (B, M, dim) for the plain autoencoder.

        Raises:
            ValueError: the shape of `points`, or an empty cloud.
        """
        require_cloud(points, "points", self.input_channels)
        count = self._checked_count(num_latents)
        embedded = self.point_embed(points)  # (B, N, dim)
        if self.queries is not None:
            samples = self.queries.expand(points.shape[0], -1, -1)
        else:
            samples = sample_rows(embedded, points, count, start, generator)
        x = self.encoder(samples, embedded)  # (B, M, dim)
        return Posterior(x) if self.bottleneck is None else self.bottleneck(x)

    def decode(self, latents: Tensor) -> Tensor:
        """latents (B, M, latent_dim) -> features (B, M, dim): all of the self-attention, once per shape."""
        width = self.config.dim if self.config.latent_dim is None else self.config.latent_dim
        require_tokens(latents, "latents", width)
        x = latents if self.bottleneck is None else self.bottleneck.from_latent(latents)
        if self.queries is not None:
            self._checked_count(latents.shape[1])
            x = x + self.queries
        for layer in self.layers:
            x = layer(x)
        return x

    def forward(
        self,
        points: Tensor,
        queries: Tensor,
        *,
        sample: bool | None = None,
        num_latents: int | None = None,
        generator: Generators | None = None,
        start: int | Tensor | str = 0,
    ) -> FieldOutput:
        """One training pass: encode, sample the posterior, decode, query in one unpadded piece.

        Args:
            points: (B, N, 3) surface points.
            queries: (B, Q, 3).
            sample: draw the latents from the posterior (True) or take its mode (False); None: draw in
                training only.
            generator: draws the posterior's noise: one, or one for each of the B shapes.
            num_latents, start: as in `encode`.

        Returns:
            Values (B, Q), as `query` gives them, and the posterior.
        """
        require_points(queries, "queries")
        one = generator if isinstance(generator, torch.Generator) else None
        posterior = self.encode(points, num_latents=num_latents, start=start, generator=one)
        return self._pass(posterior, queries, sample, generator)

    def _prepare(self, levels: Sequence[Tensor]) -> Context:
        return (self.head.cross_attention.keys_values(levels[0]),)

    def _field(self, points: Tensor, context: Context) -> Tensor:
        return self.head(self.point_embed(points), *context[0])

    def _query_width(self) -> tuple[int, int]:
        return self.config.dim, self.config.cross_heads

    @classmethod
    def from_official(
        cls, source: str | os.PathLike[str] | Mapping[str, Tensor], config: VecSetConfig | None = None
    ) -> VecSetVAE:
        """Loads a checkpoint of the official repository: see `fastshape.checkpoints.vecset.load`."""
        from fastshape.checkpoints import vecset

        return vecset.load(source, config)
