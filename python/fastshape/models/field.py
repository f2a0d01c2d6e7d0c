"""What autoencoders of fields share: queries in fixed chunks, extraction of the surface, checks of input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn

from fastshape.models.pretrained import PretrainedModel
from fastshape.nn import Generators, LevelPosterior, Posterior
from fastshape.ops import farthest_point_sampling

if TYPE_CHECKING:
    from fastshape.geometry import ExtractionReport, Mesh, SurfaceKind

Features = Tensor | Sequence[Tensor]  # of one level, or of each level of a hierarchy
Context = tuple[tuple[Tensor, Tensor], ...]  # keys and values of each level, of one shape or of a batch


class FieldOutput(NamedTuple):
    """What `forward` returns: the field (B, Q) in the sign of the model's `query`, and the posterior."""

    values: Tensor
    posterior: Posterior | LevelPosterior


class FieldAutoencoder(PretrainedModel):
    """The base of the models whose decoder is a field over query points.

    A model gives `_levels`, `_prepare` and `_field`, and says on which side of 0 its field is inside.
    """

    bounds: ClassVar[float] = 1.0
    """Half side of the cube over which `extract` looks for the surface."""

    inputs: ClassVar[tuple[str, ...]] = ("surface",)
    """The point clouds that `encode` takes, in its order: "surface", and "sharp" (points on sharp edges)."""

    @property
    def input_channels(self) -> int:
        """Channels of each input point: 3, or 6 with its normal."""
        return 3

    @property
    def inside(self) -> Literal["positive", "negative"]:
        """The sign of the field inside the solid."""
        return "positive"

    def _levels(self, features: Features) -> tuple[Tensor, ...]:
        """Checks the features of `decode` and gives them level by level, (B, M_l, dim) each; here of one."""
        if not isinstance(features, Tensor):
            raise TypeError(f"`features` must be a tensor, got {type(features).__name__}")
        require_tokens(features, "features", self.config.dim)
        return (features,)

    def _prepare(self, levels: Sequence[Tensor]) -> Context:
        """What every query point of a shape uses: keys and values of each level."""
        raise NotImplementedError

    def _field(self, points: Tensor, context: Context) -> Tensor:
        """points (B, Q, 3) -> values (B, Q)."""
        raise NotImplementedError

    def decode(self, latents: Any) -> Any:
        """Latents -> features, once per shape."""
        raise NotImplementedError

    def _checked_count(self, num_latents: int | None) -> int:
        """The tokens of `encode`: as many as were asked for, or the configuration's.

        Raises:
            ValueError: another number than that of learned queries.
        """
        own = self.config.num_latents
        count = own if num_latents is None else num_latents
        if getattr(self.config, "learned_queries", False) and count != own:
            raise ValueError(f"learned queries fix the number of latents at {own}, got {count}")
        return count

    def _pass(
        self, posterior: Any, queries: Tensor, sample: bool | None, generator: Generators | None
    ) -> FieldOutput:
        """What `forward` does after encoding: draw or take the mode, decode, query in one unpadded piece."""
        sampled = self.training if sample is None else sample
        features = self.decode(posterior.sample(generator) if sampled else posterior.mode())
        return FieldOutput(self._field(queries, self._prepare(self._levels(features))), posterior)

    def query(self, points: Tensor, features: Features, *, chunk_size: int = 4096) -> Tensor:
        """The field at query points; its meaning and sign stand in the model's own description.

        The points of each shape are evaluated in chunks of exactly `chunk_size`, the last one padded, so that
        every product has one shape and a point's value does not depend, to the last bit, on how many other
        points (or shapes) are asked for with it. Without gradients the working memory is that of one chunk,
        however many points there are: at most `query_bytes`.

        Args:
            points: (B, Q, 3) float32, any Q; or (1, Q, 3), the same points for every shape.
            features: of `decode`.
            chunk_size: points per evaluation; part of what fixes the bits.

        Returns:
            Values (B, Q).
        """
        require_points(points, "points")
        levels = self._levels(features)
        batch = levels[0].shape[0]
        if chunk_size < 1:
            raise ValueError(f"`chunk_size` must be at least 1, got {chunk_size}")
        if points.shape[0] not in (1, batch):
            raise ValueError(
                "`points` and `features` must agree on B, "
                f"got {tuple(points.shape)} and {tuple(levels[0].shape)}"
            )
        points = points.expand(batch, -1, -1)
        shapes = []
        for shape, cloud in enumerate(points.split(1)):
            context = self._prepare([level[shape : shape + 1] for level in levels])
            shapes.append(self._in_chunks(cloud, context, chunk_size))
        return torch.cat(shapes)

    def _in_chunks(self, cloud: Tensor, context: Context, chunk_size: int) -> Tensor:
        """The field of one shape at points (1, Q, 3), in chunks of one size: (1, Q)."""
        chunks = []
        for chunk in cloud.split(chunk_size, dim=1):
            padded = nn.functional.pad(chunk, (0, 0, 0, chunk_size - chunk.shape[1]))
            chunks.append(self._field(padded, context))
        return torch.cat(chunks, dim=1)[:, : cloud.shape[1]]

    def _lattice_field(
        self, levels: Sequence[Tensor], resolution: int, chunk_size: int
    ) -> Callable[[Tensor], Tensor]:
        """The field of one shape, points (P, 3) -> (P,), most of them points of a lattice."""
        context = self._prepare(levels)
        return lambda points: self._in_chunks(points[None], context, chunk_size)[0]

    def query_bytes(self, num_latents: int | Sequence[int], *, chunk_size: int = 4096) -> int:
        """An upper bound of the working memory of `query` without gradients, in bytes.

        It counts one chunk in the parameters' dtype, with the whole score matrix of the attention, which most
        back ends never store, and the keys and values of one shape; not the points, features and values.
        """
        counts = [num_latents] if isinstance(num_latents, int) else list(num_latents)
        dim, heads = self._query_width()
        per_point = 256 + 24 * dim * len(counts) + heads * max(counts)
        parameter = next(self.parameters())
        return parameter.element_size() * (chunk_size * per_point + 6 * dim * sum(counts))

    def _query_width(self) -> tuple[int, int]:
        """Channels (the larger of dim and heads * head_dim) and heads of the queries' cross-attention."""
        raise NotImplementedError

    @overload
    def extract(
        self,
        features: Features,
        resolution: int = ...,
        *,
        method: Literal["coarse_to_fine", "dense"] = ...,
        surface: SurfaceKind = ...,
        verify: int = ...,
        stride: int | None = ...,
        chunk_size: int = ...,
        progress: Callable[[float], None] | None = ...,
        return_report: Literal[False] = ...,
    ) -> Mesh: ...

    @overload
    def extract(
        self,
        features: Features,
        resolution: int = ...,
        *,
        method: Literal["coarse_to_fine", "dense"] = ...,
        surface: SurfaceKind = ...,
        verify: int = ...,
        stride: int | None = ...,
        chunk_size: int = ...,
        progress: Callable[[float], None] | None = ...,
        return_report: Literal[True],
    ) -> tuple[Mesh, ExtractionReport]: ...

    @torch.no_grad()
    def extract(
        self,
        features: Features,
        resolution: int = 128,
        *,
        method: Literal["coarse_to_fine", "dense"] = "coarse_to_fine",
        surface: SurfaceKind = "marching_cubes",
        verify: int = 1000,
        stride: int | None = None,
        chunk_size: int = 4096,
        progress: Callable[[float], None] | None = None,
        return_report: bool = False,
    ) -> Mesh | tuple[Mesh, ExtractionReport]:
        """The surface of one shape.

        Args:
            features: of `decode`, of one shape; the batch dimension may be left out.
            resolution: lattice points per axis over [-bounds, bounds].
            method: "coarse_to_fine" asks the field near the surface only and gives the mesh of "dense", to
                the last bit, where it finds all of the surface; "dense" asks all resolution^3 points. See
                `geometry.extract`. Below 95 points an axis both ask all.
            surface: "marching_cubes" or "dual_marching_cubes"; see `geometry.extract_surface`.
            verify: how many of the cells that "coarse_to_fine" skipped are looked into, at 8 queries each:
                with n that show nothing, at 95 % confidence a share less than 3 / n of them is missed.
            stride: of the first lattice, 8, 4 or 2; see `geometry.extract`.
            chunk_size: as in `query`.
            progress: called with the share that is done, from 0 to 1.
            return_report: return what was asked and verified too, a `geometry.ExtractionReport`.

        Returns:
            The mesh where the field changes sign, faces outward; closed where the solid reaches the cube's
            border. Or (mesh, report).

        Raises:
            NoSurfaceError: the field does not change sign where it was asked.
            ValueError: features of several shapes, or a wrong argument.
        """
        if resolution < 2:
            raise ValueError(f"`resolution` must be at least 2, got {resolution}")
        given = (features,) if isinstance(features, Tensor) else tuple(features)
        batched = tuple(level[None] if level.dim() == 2 else level for level in given)
        levels = self._levels(batched[0] if isinstance(features, Tensor) else batched)
        if levels[0].shape[0] != 1:
            raise ValueError(f"`features` must be of one shape, (1, M, dim), got {tuple(levels[0].shape)}")
        from fastshape.geometry import extract

        mesh, report = extract(
            self._lattice_field(levels, resolution, chunk_size),
            resolution,
            inside=self.inside,
            bounds=self.bounds,
            closed=True,
            method=method,
            surface=surface,
            stride=stride,
            verify=verify,
            chunk=16 * chunk_size,  # the lattice itself is never in memory
            device=levels[0].device,
            progress=progress,
            return_report=True,
        )
        return (mesh, report) if return_report else mesh


def require_points(points: Tensor, name: str, channels: int = 3) -> None:
    """TypeError or ValueError unless `points` is a tensor (B, N, channels)."""
    if not isinstance(points, Tensor):
        raise TypeError(f"`{name}` must be a tensor, got {type(points).__name__}")
    if points.dim() != 3 or points.shape[-1] != channels:
        raise ValueError(f"`{name}` must have shape (B, N, {channels}), got {tuple(points.shape)}")


def require_tokens(tokens: Tensor, name: str, channels: int) -> None:
    """TypeError or ValueError unless `tokens` is a tensor (B, M, channels)."""
    if not isinstance(tokens, Tensor):
        raise TypeError(f"`{name}` must be a tensor, got {type(tokens).__name__}")
    if tokens.dim() != 3 or tokens.shape[-1] != channels:
        raise ValueError(f"`{name}` must have shape (B, M, {channels}), got {tuple(tokens.shape)}")


def require_cloud(points: Tensor, name: str, channels: int = 3) -> None:
    """As `require_points`, and at least one point."""
    require_points(points, name, channels)
    if points.shape[1] == 0:
        raise ValueError(f"`{name}` must have at least one point, got {tuple(points.shape)}")


def sample_rows(
    rows: Tensor,
    points: Tensor,
    count: int,
    start: int | Tensor | str = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """rows (B, N, C) of the first `count` points of farthest point sampling -> (B, count, C).

    The points are (B, N, 3) or have more channels, which play no part; `start` and `generator` as of
    `ops.farthest_point_sampling`. Of fewer finite points than `count` point 0 is taken again.
    """
    with torch.no_grad():
        places = points[..., :3].contiguous()
        indices = farthest_point_sampling(places, count, start=start, generator=generator)
    return rows.gather(1, indices[..., None].clamp_min(0).expand(-1, -1, rows.shape[-1]))
