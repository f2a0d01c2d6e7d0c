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
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from fastshape.models.pretrained import ModelConfig, PretrainedModel
from fastshape.nn import CrossAttention, DropPath, FeedForward, PointEmbed, Posterior, SelfAttention
from fastshape.ops import farthest_point_sampling

if TYPE_CHECKING:
    from fastshape.geometry import Mesh


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


class VecSetOutput(NamedTuple):
    """What `VecSetVAE.forward` returns: logits (B, Q), positive inside, and the posterior."""

    logits: Tensor
    posterior: Posterior


class Encoder(nn.Module):
    """Tokens (B, M, dim) from embedded samples and embedded points: section 5.1, one cross-attention."""

    def __init__(self, config: VecSetConfig) -> None:
        super().__init__()
        head_dim = config.dim // config.cross_heads
        self.cross_attention = CrossAttention(
            config.dim, config.dim, heads=config.cross_heads, head_dim=head_dim
        )
        self.feed_forward = FeedForward(config.dim)

    def forward(self, samples: Tensor, points: Tensor) -> Tensor:
        """samples (B, M, dim), points (B, N, dim) -> (B, M, dim)."""
        x = samples + self.cross_attention(samples, points)
        return x + self.feed_forward(x)


class Bottleneck(nn.Module):
    """The KL bottleneck: section 5.2."""

    def __init__(self, dim: int, latent_dim: int) -> None:
        super().__init__()
        self.to_mean = nn.Linear(dim, latent_dim)
        self.to_logvar = nn.Linear(dim, latent_dim)
        self.from_latent = nn.Linear(latent_dim, dim)

    def forward(self, x: Tensor) -> Posterior:
        """x (B, M, dim) -> posterior over (B, M, latent_dim)."""
        return Posterior.gaussian(self.to_mean(x), self.to_logvar(x))


class DecoderLayer(nn.Module):
    """x += attention(x); x += feed_forward(x)."""

    def __init__(self, config: VecSetConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config.dim, heads=config.heads, head_dim=config.head_dim)
        self.feed_forward = FeedForward(config.dim)
        self.drop_path = DropPath(config.drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, M, dim) -> (B, M, dim)."""
        x = x + self.drop_path(self.attention(x))
        return x + self.drop_path(self.feed_forward(x))


class Head(nn.Module):
    """The field: section 5.3. The query's embedding only asks; it is not added to the answer."""

    def __init__(self, config: VecSetConfig) -> None:
        super().__init__()
        head_dim = config.dim // config.cross_heads
        self.cross_attention = CrossAttention(
            config.dim, config.dim, heads=config.cross_heads, head_dim=head_dim
        )
        self.feed_forward = FeedForward(config.dim) if config.decoder_feed_forward else None
        self.to_logits = nn.Linear(config.dim, 1)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """queries (B, Q, dim), keys and values of the decoded tokens -> logits (B, Q)."""
        y = self.cross_attention.attend(queries, keys, values)
        if self.feed_forward is not None:
            y = y + self.feed_forward(y)
        return self.to_logits(y).squeeze(-1)


class VecSetVAE(PretrainedModel):
    """The 3DShape2VecSet autoencoder, plain (`latent_dim=None`) or with the KL bottleneck.

    `query` returns occupancy LOGITS: positive inside, the surface at 0 (the opposite sign of an sdf).

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
        self.encoder = Encoder(config)
        self.bottleneck = None if config.latent_dim is None else Bottleneck(config.dim, config.latent_dim)
        self.layers = nn.ModuleList([DecoderLayer(config) for _ in range(config.depth)])
        self.head = Head(config)

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
        _require_points(points, "points")
        if points.shape[1] == 0:
            raise ValueError(f"`points` must have at least one point, got {tuple(points.shape)}")
        count = self.config.num_latents if num_latents is None else num_latents
        with torch.no_grad():
            indices = farthest_point_sampling(points.contiguous(), count, start=start, generator=generator)
        embedded = self.point_embed(points)  # (B, N, dim)
        chosen = indices[..., None].clamp_min(0).expand(-1, -1, embedded.shape[-1])  # -1: fewer finite points
        x = self.encoder(embedded.gather(1, chosen), embedded)  # (B, M, dim)
        return Posterior(x) if self.bottleneck is None else self.bottleneck(x)

    def decode(self, latents: Tensor) -> Tensor:
        """latents (B, M, latent_dim) -> features (B, M, dim): all of the self-attention, once per shape."""
        width = self.config.dim if self.config.latent_dim is None else self.config.latent_dim
        if latents.dim() != 3 or latents.shape[-1] != width:
            raise ValueError(f"`latents` must have shape (B, M, {width}), got {tuple(latents.shape)}")
        x = latents if self.bottleneck is None else self.bottleneck.from_latent(latents)
        for layer in self.layers:
            x = layer(x)
        return x

    def query(self, points: Tensor, features: Tensor, *, chunk_size: int = 4096) -> Tensor:
        """Occupancy logits at query points: positive inside.

        The points of each shape are evaluated in chunks of exactly `chunk_size`, the last one padded, so that
        every product has one shape and a point's value does not depend, to the last bit, on how many other
        points (or shapes) are asked for with it.

        Args:
            points: (B, Q, 3) float32, any Q; or (1, Q, 3), the same points for every shape.
            features: (B, M, dim) from `decode`.
            chunk_size: points per evaluation; part of what fixes the bits.

        Returns:
            Logits (B, Q).
        """
        _require_points(points, "points")
        self._require_features(features)
        if chunk_size < 1:
            raise ValueError(f"`chunk_size` must be at least 1, got {chunk_size}")
        if points.shape[0] not in (1, features.shape[0]):
            raise ValueError(
                "`points` and `features` must agree on B, "
                f"got {tuple(points.shape)} and {tuple(features.shape)}"
            )
        points = points.expand(features.shape[0], -1, -1)
        count = points.shape[1]
        shapes = []
        for cloud, tokens in zip(points.split(1), features.split(1), strict=True):
            keys, values = self.head.cross_attention.keys_values(tokens)
            chunks = []
            for chunk in cloud.split(chunk_size, dim=1):
                padded = nn.functional.pad(chunk, (0, 0, 0, chunk_size - chunk.shape[1]))
                chunks.append(self.head(self.point_embed(padded), keys, values))
            shapes.append(torch.cat(chunks, dim=1)[:, :count])
        return torch.cat(shapes)

    def forward(
        self,
        points: Tensor,
        queries: Tensor,
        *,
        sample: bool | None = None,
        generator: torch.Generator | None = None,
        start: int | Tensor | str = 0,
    ) -> VecSetOutput:
        """One training pass: encode, sample the posterior, decode, query in one unpadded piece.

        Args:
            points: (B, N, 3) surface points.
            queries: (B, Q, 3).
            sample: draw the latents from the posterior (True) or take its mode (False); None: draw in
                training only.
            generator: draws the posterior's noise.
            start: as in `encode`; an index, (B,) indices or "random".

        Returns:
            Logits (B, Q), positive inside, and the posterior.
        """
        _require_points(queries, "queries")
        posterior = self.encode(points, start=start, generator=generator)
        sampled = self.training if sample is None else sample
        features = self.decode(posterior.sample(generator) if sampled else posterior.mode())
        keys, values = self.head.cross_attention.keys_values(features)
        return VecSetOutput(self.head(self.point_embed(queries), keys, values), posterior)

    @torch.no_grad()
    def extract(self, features: Tensor, resolution: int = 128, *, chunk_size: int = 4096) -> Mesh:
        """The surface of one shape.

        Args:
            features: (1, M, dim) or (M, dim) from `decode`.
            resolution: lattice points per axis over [-1, 1]; time and memory grow with its cube.
            chunk_size: as in `query`.

        Returns:
            The mesh where the logits change sign, faces outward; closed where the solid reaches the cube's
            border.
        """
        if resolution < 2:
            raise ValueError(f"`resolution` must be at least 2, got {resolution}")
        features = features[None] if features.dim() == 2 else features
        self._require_features(features)
        if features.shape[0] != 1:
            raise ValueError(f"`features` must be of one shape, (1, M, dim), got {tuple(features.shape)}")
        from fastshape.geometry import extract_surface

        axis = torch.linspace(-1.0, 1.0, resolution, device=features.device)
        total = resolution**3
        values = torch.empty(total, device=features.device)
        block = 16 * chunk_size  # the lattice itself is never in memory
        for begin in range(0, total, block):
            flat = torch.arange(begin, min(begin + block, total), device=features.device)
            x, y, z = flat // resolution**2, flat // resolution % resolution, flat % resolution
            lattice = torch.stack([axis[x], axis[y], axis[z]], dim=-1)
            values[begin : begin + block] = self.query(lattice[None], features, chunk_size=chunk_size)[0]
        field = values.view(resolution, resolution, resolution)
        return extract_surface(field, level=0.0, inside="positive", bounds=1.0, closed=True)

    @classmethod
    def from_official(
        cls, source: str | os.PathLike[str] | Mapping[str, Tensor], config: VecSetConfig | None = None
    ) -> VecSetVAE:
        """Loads a checkpoint of the official repository: see `fastshape.checkpoints.vecset.load`."""
        from fastshape.checkpoints import vecset

        return vecset.load(source, config)

    def _require_features(self, features: Tensor) -> None:
        if features.dim() != 3 or features.shape[-1] != self.config.dim:
            raise ValueError(
                f"`features` must have shape (B, M, {self.config.dim}), got {tuple(features.shape)}"
            )


def _require_points(points: Tensor, name: str) -> None:
    if not isinstance(points, Tensor):
        raise TypeError(f"`{name}` must be a tensor, got {type(points).__name__}")
    if points.dim() != 3 or points.shape[-1] != 3:
        raise ValueError(f"`{name}` must have shape (B, N, 3), got {tuple(points.shape)}")
