"""LaGeM: a shape as a hierarchy of sets of latent vectors.

Zhang and Wonka: "LaGeM: A Large Geometry Model for 3D Representation Learning and Diffusion", ICLR 2025,
section 3.2 (equations 6 to 9, figure 4, table 2) and appendix C.

Level 1 is the finest, level L the coarsest; level 0 is the input. Everything that has a value per level keeps
them in this order.

    P_l = FPS(P_{l-1})                                    nested samples, (B, M_l, 3)
    X_0 = embed(P_0)
    X_l = embed(P_l); X_l += cross(X_l, X_{l-1}); X_l += feed_forward(X_l)        encoder, (B, M_l, dim)
    z_l = standardize(to_latent(X_l))                                            eq. 6, (B, M_l, latent_dim_l)
    X'_l = from_latent(z_l * gamma + beta)                                        eq. 7
    F_L = self_l(X'_L)
    F_l = self_l(X'_l + up(X'_l, F_{l+1}))                                        eq. 8, (B, M_l, dim)
    logit(q) = to_logits[cross_1(embed(q), F_1) | .. | cross_L(embed(q), F_L)]    eq. 9, no residual

self_l is depth_l times (x += attention(x); x += feed_forward(x)). `up` is a whole block (x += cross(x, F);
x += feed_forward(x)), so that X'_l counts twice, as in the official code; equation 8 has the attention alone.

Farthest point sampling orders its samples such that a prefix of them is the sampling of that size, of the
input and of the samples alike: the levels are prefixes of one sampling. The official code samples each level
anew from a random point; here the start is point 0 unless asked otherwise. It rounds what goes into attention
to bfloat16, in evaluation too; here that is `attention_dtype="bfloat16"`, and float32 unless asked. It
concatenates the levels of equation 9 from the coarsest on; `from_official` permutes the columns.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastshape.models.field import (
    Context,
    Features,
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
    Generators,
    KLBottleneck,
    LevelPosterior,
    NormalizedBottleneck,
    PointEmbed,
    SelfAttentionBlock,
)

_DTYPES = {"float32": None, "bfloat16": torch.bfloat16}


def _require_counts(counts: Sequence[int], num_levels: int) -> None:
    if len(counts) != num_levels:
        raise ValueError(f"`num_latents` must have {num_levels} levels, got {tuple(counts)}")
    if min(counts) < 1 or any(fine < coarse for fine, coarse in pairwise(counts)):
        raise ValueError(
            f"`num_latents` must be at least 1 and never grow from level to level, got {tuple(counts)}"
        )


@dataclass(frozen=True)
class LaGeMConfig(ModelConfig):
    """Sizes of a `LaGeM`; the defaults are the published model of Objaverse.

    Attributes:
        dim: width of the tokens on every level.
        heads, head_dim: of every attention; heads * head_dim need not equal dim.
        num_latents: tokens per level, the finest first, never growing, and the default of `encode`; no
            parameter depends on it.
        latent_dims: channels of each level's latents.
        depths: self-attention layers of each level's decoder.
        num_inputs: surface points per shape in training; no parameter depends on it.
        bottleneck: "normalized", the paper's, or "kl", of 3DShape2VecSet.
        attention_dtype: "float32" leaves queries, keys and values as they are; "bfloat16" rounds them, as
            the official code does.
        output: what `query` returns: "occupancy" logits, the paper's, or a "tsdf": the signed distance
            divided by `truncation`, learned within -1 and 1. Both are positive inside.
        truncation: the distance at which the field saturates; used with "tsdf".
    """

    dim: int = 1024
    heads: int = 16
    head_dim: int = 64
    num_latents: tuple[int, ...] = (2048, 512, 128)
    latent_dims: tuple[int, ...] = (16, 32, 64)
    depths: tuple[int, ...] = (8, 8, 8)
    num_inputs: int = 8192
    bottleneck: str = "normalized"
    attention_dtype: str = "float32"
    output: str = "occupancy"
    truncation: float = 0.05

    def __post_init__(self) -> None:
        for name in ("num_latents", "latent_dims", "depths"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has lists
        for name in ("dim", "heads", "head_dim", "num_inputs"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if not len(self.num_latents) == len(self.latent_dims) == len(self.depths) > 0:
            raise ValueError(
                "`num_latents`, `latent_dims` and `depths` must have an entry for each level, "
                f"got {self.num_latents}, {self.latent_dims} and {self.depths}"
            )
        _require_counts(self.num_latents, len(self.num_latents))
        if min(self.latent_dims) < 1:
            raise ValueError(f"`latent_dims` must be at least 1, got {self.latent_dims}")
        if min(self.depths) < 0:
            raise ValueError(f"`depths` must not be negative, got {self.depths}")
        if self.bottleneck not in ("normalized", "kl"):
            raise ValueError(f"`bottleneck` must be 'normalized' or 'kl', got {self.bottleneck!r}")
        if self.attention_dtype not in _DTYPES:
            raise ValueError(
                f"`attention_dtype` must be 'float32' or 'bfloat16', got {self.attention_dtype!r}"
            )
        if self.output not in ("occupancy", "tsdf"):
            raise ValueError(f"`output` must be 'occupancy' or 'tsdf', got {self.output!r}")
        if self.truncation <= 0:
            raise ValueError(f"`truncation` must be positive, got {self.truncation}")

    @property
    def num_levels(self) -> int:
        return len(self.num_latents)

    def token_counts(self, finest: int) -> tuple[int, ...]:
        """The tokens of every level where the finest has `finest`, in the configuration's proportions."""
        return tuple(max(1, round(finest * count / self.num_latents[0])) for count in self.num_latents)

    @property
    def attention(self) -> dict[str, Any]:
        """The options of every attention."""
        return {"heads": self.heads, "head_dim": self.head_dim, "dtype": _DTYPES[self.attention_dtype]}


class Level(nn.Module):
    """One level: its encoder, its bottleneck, and the self-attention of its decoder."""

    def __init__(self, config: LaGeMConfig, level: int) -> None:
        super().__init__()
        make_bottleneck = NormalizedBottleneck if config.bottleneck == "normalized" else KLBottleneck
        self.encoder = CrossAttentionBlock(config.dim, **config.attention)
        self.bottleneck = make_bottleneck(config.dim, config.latent_dims[level])
        self.layers = nn.ModuleList(
            SelfAttentionBlock(config.dim, **config.attention) for _ in range(config.depths[level])
        )

    def decode(self, x: Tensor) -> Tensor:
        """x (B, M, dim) -> (B, M, dim)."""
        for layer in self.layers:
            x = layer(x)
        return x


class LaGeM(FieldAutoencoder):
    """The LaGeM autoencoder, of any number of levels.

    Latents and features are tuples with a tensor per level, the FINEST first. `query` returns occupancy
    LOGITS, or a truncated distance if the configuration says so: positive inside, the surface at 0 (the
    opposite sign of an sdf).

    Example:
        >>> model = LaGeM(LaGeM.configs["objaverse"]).eval()
        >>> latents = model.encode(points).mode()  # points (B, N, 3) in the unit ball
        >>> [tuple(level.shape) for level in latents]
        [(1, 2048, 16), (1, 512, 32), (1, 128, 64)]
        >>> logits = model.query(queries, model.decode(latents))  # queries (B, Q, 3) -> (B, Q)
    """

    Config = LaGeMConfig
    configs: ClassVar[Mapping[str, LaGeMConfig]] = MappingProxyType(
        {
            "objaverse": LaGeMConfig(),
            # Of the paper alone, which does not say the depths.
            "shapenet": LaGeMConfig(
                dim=512, heads=8, num_latents=(512, 128, 32), latent_dims=(8, 16, 32), depths=(8, 8, 8)
            ),
        }
    )

    config: LaGeMConfig
    levels: Sequence[Level]  # these three are nn.ModuleList
    up: Sequence[CrossAttentionBlock]
    heads: Sequence[CrossAttention]

    def __init__(self, config: LaGeMConfig) -> None:
        super().__init__()
        self.config = config
        self.point_embed = PointEmbed(config.dim)
        self.levels = nn.ModuleList(  # type: ignore[assignment]
            Level(config, level) for level in range(config.num_levels)
        )
        # up[l] brings features of level l + 1 to level l, counted from 0.
        self.up = nn.ModuleList(  # type: ignore[assignment]
            CrossAttentionBlock(config.dim, **config.attention) for _ in range(config.num_levels - 1)
        )
        self.heads = nn.ModuleList(  # type: ignore[assignment]
            CrossAttention(config.dim, config.dim, **config.attention) for _ in range(config.num_levels)
        )
        self.to_logits = nn.Linear(config.num_levels * config.dim, 1)

    def encode(
        self,
        points: Tensor,
        *,
        num_latents: Sequence[int] | None = None,
        start: int | Tensor | str = 0,
        generator: torch.Generator | None = None,
    ) -> LevelPosterior:
        """Encodes surface points.

        Args:
            points: (B, N, 3) float32 in the unit ball, any N >= 1.
            num_latents: tokens M_l of each level, the finest first, never growing; None is the
                configuration's. Any numbers work, whatever the training used.
            start: the first point of farthest point sampling: an index, (B,) indices, or "random".
            generator: used by start="random".

        Returns:
            A posterior per level over latents (B, M_l, latent_dims[l]), the finest first.

        Raises:
            ValueError: the shape of `points`, an empty cloud, or the counts.
        """
        require_cloud(points, "points", self.input_channels)
        counts = self.config.num_latents if num_latents is None else tuple(num_latents)
        _require_counts(counts, self.config.num_levels)
        x = self.point_embed(points)  # (B, N, dim)
        samples = sample_rows(x, points, counts[0], start, generator)  # (B, M_1, dim)
        posteriors = []
        for level, count in zip(self.levels, counts, strict=True):
            x = level.encoder(samples[:, :count], x)  # (B, M_l, dim)
            posteriors.append(level.bottleneck(x))
        return LevelPosterior(tuple(posteriors))

    def decode(self, latents: Sequence[Tensor], *, standardize: bool = False) -> tuple[Tensor, ...]:
        """The decoder of a U-Net, from the coarsest level up, once per shape.

        Args:
            latents: (B, M_l, latent_dims[l]) of each level, the finest first.
            standardize: bring each latent vector to mean 0 and variance 1 first, as the normalized bottleneck
                leaves it and a diffusion model does not quite.

        Returns:
            Features (B, M_l, dim) of each level, the finest first.
        """
        latents = self._check_levels(latents, "latents", self.config.latent_dims)
        if standardize:
            if self.config.bottleneck != "normalized":
                raise ValueError("`standardize` is for the normalized bottleneck")
            latents = tuple(NormalizedBottleneck.standardize(z) for z in latents)
        features: list[Tensor] = []
        for index in reversed(range(self.config.num_levels)):
            level = self.levels[index]
            x = level.bottleneck.from_latent(latents[index])  # (B, M_l, dim)
            if features:
                x = x + self.up[index](x, features[0])
            features.insert(0, level.decode(x))
        return tuple(features)

    def forward(
        self,
        points: Tensor,
        queries: Tensor,
        *,
        sample: bool | None = None,
        num_latents: Sequence[int] | None = None,
        generator: Generators | None = None,
        start: int | Tensor | str = 0,
    ) -> FieldOutput:
        """One training pass: encode, sample the posterior, decode, query in one unpadded piece.

        Args:
            points: (B, N, 3) surface points.
            queries: (B, Q, 3).
            sample: draw the latents from the posterior (True) or take its mode (False); None: draw in
                training only. The normalized bottleneck has no noise: there it makes no difference.
            generator: draws the posterior's noise: one, or one for each of the B shapes.
            num_latents, start: as in `encode`.

        Returns:
            Logits (B, Q), positive inside, and the posterior.
        """
        require_points(queries, "queries")
        one = generator if isinstance(generator, torch.Generator) else None
        posterior = self.encode(points, num_latents=num_latents, start=start, generator=one)
        return self._pass(posterior, queries, sample, generator)

    @classmethod
    def from_official(
        cls, source: str | os.PathLike[str] | Mapping[str, Tensor], config: LaGeMConfig | None = None
    ) -> LaGeM:
        """Loads a checkpoint of the official repository: see `fastshape.checkpoints.lagem.load`."""
        from fastshape.checkpoints import lagem

        return lagem.load(source, config)

    def _levels(self, features: Features) -> tuple[Tensor, ...]:
        return self._check_levels(features, "features", (self.config.dim,) * self.config.num_levels)

    def _prepare(self, levels: Sequence[Tensor]) -> Context:
        return tuple(head.keys_values(level) for head, level in zip(self.heads, levels, strict=True))

    def _field(self, points: Tensor, context: Context) -> Tensor:
        queries = self.point_embed(points)  # (B, Q, dim)
        answers = [head.attend(queries, *level) for head, level in zip(self.heads, context, strict=True)]
        return self.to_logits(torch.cat(answers, dim=-1)).squeeze(-1)

    def _query_width(self) -> tuple[int, int]:
        return max(self.config.dim, self.config.heads * self.config.head_dim), self.config.heads

    def _check_levels(
        self, levels: Tensor | Sequence[Tensor], name: str, channels: Sequence[int]
    ) -> tuple[Tensor, ...]:
        if isinstance(levels, Tensor) or not isinstance(levels, Sequence):
            raise TypeError(
                f"`{name}` must be a sequence of a tensor per level, the finest first, "
                f"got {type(levels).__name__}"
            )
        if len(levels) != len(channels):
            raise ValueError(f"`{name}` must have {len(channels)} levels, got {len(levels)}")
        for index, (level, width) in enumerate(zip(levels, channels, strict=True)):
            require_tokens(level, f"{name}[{index}]", width)
        if len({level.shape[0] for level in levels}) != 1:
            shapes = ", ".join(str(tuple(level.shape)) for level in levels)
            raise ValueError(f"the levels of `{name}` must agree on B, got {shapes}")
        return tuple(levels)
