"""TripoSF's autoencoder: a surface, open or closed, as latents of the voxels around it.

He et al.: "SparseFlex: High-Resolution and Arbitrary-Topology 3D Shape Modeling", ICCV 2025 (arXiv
2503.21732); layers and sizes are those of its code.

    points (N, 6), voxels (V, 4)              points and normals of the surface; the voxels that it touches
    f = PointNet pooled over each voxel's points                                   (V, feature_dim)
    x = linear(f) + embed(voxel); depth times: window attention, feed-forward      every second window shifted
    z ~ N(to_mean(norm(x)), exp(to_logvar(norm(x))))                               (V, latent_channels)
    x = linear(z) + embed(voxel); depth times the same                             decoder
    twice: voxels to their eight children, each with a logit: is the surface in it?
    distance, deformation and weights of each fine voxel (53 numbers), and FlexiCubes over them

The decoder's subdivision runs in overlapping cubes of the grid, so that its memory is bounded. Its norms take
the statistics of what they see: the result depends on the cubes. `merge="official"` keeps the official
code's, with voxels that are there twice along their borders; "exact" keeps each voxel once.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastshape import ops
from fastshape.models.pretrained import ModelConfig, PretrainedModel
from fastshape.nn import Generators, Posterior
from fastshape.nn.sparse_layers import PointPool, SubdivideBlock, voxel_places
from fastshape.nn.sparse_tensor import SparseTensor
from fastshape.nn.sparse_transformer import SparseTransformer
from fastshape.nn.sparseflex import SHAPE_CHANNELS, SparseFlexSurface, sparseflex_surface

if TYPE_CHECKING:
    from fastshape.geometry import Mesh

Merge = Literal["official", "exact"]

_UPSAMPLING = 4  # the decoder's two subdivisions
_MARGIN = 4  # latent voxels around a chunk
_MANY = 150_000  # latent voxels, from which on there are twice as many chunks along an axis
_OVERLAP = 3  # fine voxels that the official chunks keep beyond their end


@dataclass(frozen=True)
class TripoSFConfig(ModelConfig):
    """Sizes of a `TripoSFVAE`; the defaults are the published model.

    Attributes:
        resolution: latent voxels along an axis; a surface has four times as many. No parameter depends on it.
        point_channels: of a point: coordinates and normal.
        point_hidden, point_depth: channels within the PointNet, and its residual layers.
        feature_dim: channels of a voxel's point features.
        dim, depth, heads: of either transformer.
        ratio: hidden channels of the feed-forward layers over `dim`.
        window: latent voxels along an axis of a window.
        latent_channels: of a latent.
        groups: of the decoder's norms; a quarter of `dim`, and an eighth, are multiples of it.
        qk_norm: RMS norm of queries and keys.
    """

    resolution: int = 256
    point_channels: int = 6
    point_hidden: int = 256
    point_depth: int = 5
    feature_dim: int = 1024
    dim: int = 768
    depth: int = 12
    heads: int = 12
    ratio: float = 4.0
    window: int = 8
    latent_channels: int = 8
    groups: int = 32
    qk_norm: bool = False

    def __post_init__(self) -> None:
        for name in ("resolution", "point_hidden", "point_depth", "feature_dim", "heads", "window", "groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if self.latent_channels < 1:
            raise ValueError(f"`latent_channels` must be at least 1, got {self.latent_channels}")
        if self.point_channels < 3:
            raise ValueError(f"`point_channels` must be at least 3, got {self.point_channels}")
        if self.depth < 0:
            raise ValueError(f"`depth` must not be negative, got {self.depth}")
        if self.dim < 6 or self.dim % self.heads:
            raise ValueError(f"`heads` must divide `dim` of at least 6, got {self.heads} and {self.dim}")


class SparseConfig(Protocol):
    """What the transformers take of a configuration."""

    @property
    def feature_dim(self) -> int: ...
    @property
    def dim(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def ratio(self) -> float: ...
    @property
    def window(self) -> int: ...
    @property
    def latent_channels(self) -> int: ...
    @property
    def groups(self) -> int: ...
    @property
    def qk_norm(self) -> bool: ...


def surface_mesh(surface: SparseFlexSurface) -> Mesh:
    """A decoded surface as a mesh on the CPU, without what else it has; NoSurfaceError if it has no face."""
    from fastshape.geometry import Mesh, NoSurfaceError

    if len(surface.faces) == 0:
        raise NoSurfaceError("the decoded voxels have no surface")
    return Mesh(surface.vertices.float().cpu(), surface.faces.cpu())


class SparsePosterior(NamedTuple):
    """A diagonal Gaussian over the latents of voxels.

    Attributes:
        mean: of latent_channels.
        logvar: (V, latent_channels), clamped to [-30, 20].
    """

    mean: SparseTensor
    logvar: Tensor

    def mode(self) -> SparseTensor:
        """The most probable latents: the mean."""
        return self.mean

    def sample(self, generator: Generators | None = None, *, noise: Tensor | None = None) -> SparseTensor:
        """mean + exp(logvar / 2) * noise.

        Args:
            generator: draws the noise, as of `Posterior.sample`: one, or one for each item.
            noise: (V, latent_channels) standard normal, used instead of drawing.
        """
        if generator is not None and not isinstance(generator, torch.Generator):
            if len(generator) != self.mean.batch_size:
                raise ValueError(
                    f"`generator` must be one, or one for each of {self.mean.batch_size}, "
                    f"got {len(generator)}"
                )
            offsets = self.mean.offsets
            parts = [
                Posterior(self.mean.feats[begin:end], self.logvar[begin:end]).sample(one)
                for one, (begin, end) in zip(generator, itertools.pairwise(offsets), strict=True)
            ]
            return self.mean.replace(torch.cat(parts))
        return self.mean.replace(Posterior(self.mean.feats, self.logvar).sample(generator, noise=noise))

    def kl(self) -> Tensor:
        """KL divergence from the standard normal, a mean over voxels and channels of each item: (B,)."""
        mean = self.mean.feats
        terms = mean.square() + self.logvar.exp() - 1.0 - self.logvar
        return 0.5 * ops.segment_reduce(terms.mean(1, keepdim=True), self.mean.items)[:, 0]


class SparseLatentEncoder(SparseTransformer):
    """Point features of voxels to the posterior of their latents."""

    def __init__(self, config: SparseConfig) -> None:
        super().__init__(
            config.feature_dim,
            config.dim,
            depth=config.depth,
            heads=config.heads,
            ratio=config.ratio,
            window=config.window,
            qk_norm=config.qk_norm,
        )
        self.out_layer = nn.Linear(config.dim, 2 * config.latent_channels)

    def moments(self, x: SparseTensor) -> SparsePosterior:
        """x of feature_dim -> the posterior over latents of the same voxels."""
        tokens = self.forward(x)
        feats = tokens.feats
        normed = F.layer_norm(feats.float() if feats.dtype.itemsize < 4 else feats, feats.shape[1:])
        mean, logvar = self.out_layer(normed.to(feats.dtype)).chunk(2, dim=1)
        return SparsePosterior(tokens.replace(mean), Posterior.gaussian(mean, logvar).logvar)  # type: ignore[arg-type]


class SparseFlexDecoder(SparseTransformer):
    """Latents of voxels to what the surface's head takes of voxels four times as fine.

    Args:
        config: the sizes.
        prunes: whether the subdivisions have logits.
        out_channels: of a fine voxel.
    """

    def __init__(
        self, config: SparseConfig, *, prunes: bool = True, out_channels: int = SHAPE_CHANNELS
    ) -> None:
        super().__init__(
            config.latent_channels,
            config.dim,
            depth=config.depth,
            heads=config.heads,
            ratio=config.ratio,
            window=config.window,
            qk_norm=config.qk_norm,
        )
        widths = (config.dim, config.dim // 4, config.dim // 8)
        self.upsample = nn.ModuleList(
            SubdivideBlock(a, b, groups=config.groups, prunes=prunes) for a, b in itertools.pairwise(widths)
        )
        self.out_layer = nn.Linear(widths[-1], out_channels)

    def subdivide(
        self, tokens: SparseTensor, *, prune: bool = False
    ) -> tuple[SparseTensor, list[Tensor | None]]:
        """tokens of dim -> voxels four times as fine of out_channels, and the logits of each subdivision."""
        logits: list[Tensor | None] = []
        for block in self.upsample:
            tokens, said = block(tokens, prune=prune)
            logits.append(said)
        return tokens.replace(self.out_layer(tokens.feats)), logits


class Chunk(NamedTuple):
    """A cube of the latent grid, whose voxels are subdivided together.

    Attributes:
        first, end: (3,) int64: its first voxel, and the one behind its last.
        rows: (N,) bool: the voxels in it and in the margin around it.
    """

    first: Tensor
    rows: Tensor
    end: Tensor


class Decoded(NamedTuple):
    """What `forward` and `TripoSFVAE.decode_whole` give.

    Attributes:
        fine: 53 channels of each fine voxel.
        logits: of each subdivision, (8 V_i,): whether the surface is in a child; a child of the voxels that
            it was made of, in the order of `ops.subdivide_voxels`.
        coords: (8 V_i, 4) of these children.
    """

    fine: SparseTensor
    logits: list[Tensor]
    coords: list[Tensor]


class TripoSFOutput(NamedTuple):
    """What `forward` returns: what was decoded, and the posterior."""

    decoded: Decoded
    posterior: SparsePosterior


class TripoSFVAE(PretrainedModel):
    """The TripoSF variational autoencoder.

    Example:
        >>> model = TripoSFVAE(TripoSFVAE.Config()).eval()
        >>> inputs = pipelines.sparse_inputs(mesh, model)                   # points (N, 6), voxels (V, 4)
        >>> latents = model.encode(inputs.points, inputs.voxels).mode()     # a SparseTensor of 8 channels
        >>> mesh = model.extract(model.decode(latents, prune=True))
    """

    Config = TripoSFConfig
    configs: ClassVar[Mapping[str, TripoSFConfig]] = MappingProxyType({"256": TripoSFConfig()})

    bounds: ClassVar[float] = 0.5
    """Half side of the cube that the voxels fill."""

    config: TripoSFConfig

    def __init__(self, config: TripoSFConfig) -> None:
        super().__init__()
        self.config = config
        self.local_pc_encoder = PointPool(
            config.point_channels, config.point_hidden, config.feature_dim, config.point_depth
        )
        self.encoder = SparseLatentEncoder(config)
        self.decoder = SparseFlexDecoder(config)

    def at_resolution(self, resolution: int) -> TripoSFVAE:
        """The same model, with the same parameters in memory, for other latent voxels along an axis.

        What `resolution` is must be an integer of at least 1, else ValueError.
        """
        other = copy.copy(self)
        other.config = dataclasses.replace(self.config, resolution=resolution)
        return other

    def point_features(self, points: Tensor | list[Tensor], voxels: Tensor) -> SparseTensor:
        """What the points say of their voxels.

        Args:
            points: (N, point_channels) of one shape, or a list of B of them: coordinates in [-0.5, 0.5] and
                unit normals. A point whose voxel is not listed counts nowhere.
            voxels: (V, 4) int32: item, x, y, z, the rows of an item behind each other.

        Returns:
            The voxels with feature_dim channels; zeros where there is no point.

        Raises:
            TypeError, ValueError: wrong shapes or dtypes, or voxels beyond the items.
        """
        clouds = [points] if isinstance(points, Tensor) else list(points)
        for item, cloud in enumerate(clouds):
            if not isinstance(cloud, Tensor):
                raise TypeError(f"`points[{item}]` must be a tensor, got {type(cloud).__name__}")
            if cloud.dim() != 2 or cloud.shape[1] != self.config.point_channels:
                raise ValueError(
                    f"`points[{item}]` must have shape (N, {self.config.point_channels}), "
                    f"got {tuple(cloud.shape)}"
                )
        layout = SparseTensor(voxels, voxels[:, :1].float(), len(clouds))
        cloud = torch.cat(clouds)
        with torch.autocast(cloud.device.type, enabled=False):  # in single precision, as the official code
            within, places = voxel_places(cloud[:, :3], self.config.resolution, self.bounds)
            items = torch.repeat_interleave(
                torch.arange(len(clouds), dtype=torch.int32, device=cloud.device),
                torch.tensor([len(part) for part in clouds], device=cloud.device),
            )
            rows = ops.lookup_voxels(layout.coords, torch.cat([items[:, None], within], 1))
            dtype = self.local_pc_encoder.fc_pos.weight.dtype
            feats = self.local_pc_encoder(cloud[:, 3:].to(dtype), rows, places.to(dtype), len(layout))
        return layout.replace(feats)

    def encode(self, points: Tensor | list[Tensor], voxels: Tensor) -> SparsePosterior:
        """The posterior over the latents of `voxels`; arguments and errors as of `point_features`."""
        return self.encoder.moments(self.point_features(points, voxels))

    def decode_whole(self, latents: SparseTensor, *, prune: bool = False) -> Decoded:
        """Decodes without chunks: all voxels of an item share the statistics of the norms; for training.

        Args:
            latents: of latent_channels.
            prune: leave the voxels out whose logit is negative.
        """
        self._require_latents(latents)
        tokens = self.decoder(latents)
        coords, logits = [], []
        for block in self.decoder.upsample:
            coords.append(ops.subdivide_voxels(tokens.coords))
            tokens, said = block(tokens, prune=prune)
            logits.append(said)
        return Decoded(tokens.replace(self.decoder.out_layer(tokens.feats)), logits, coords)

    @torch.no_grad()
    def decode(
        self,
        latents: SparseTensor,
        *,
        prune: bool = False,
        merge: Merge = "exact",
        chunks: int | None = None,
        memory: int | None = None,
    ) -> SparseTensor:
        """Latents to what `extract` takes, in chunks of bounded memory; without gradients.

        Args:
            latents: of latent_channels.
            prune: leave the voxels out whose logit is negative. The official code does not by default; its
                authors advise it for open surfaces.
            merge: "exact": each fine voxel once; "official": chunks keep three fine voxels more along each
                axis, which are then there twice, as in the official code.
            chunks: along an axis; None is the official code's: 4, or 8 for 150,000 voxels and more, or the
                most below that which divides the resolution.
            memory: bytes that the subdivision of a chunk may take; where the official number of chunks needs
                more it is doubled until it does not. None: no limit. The transformer and what is returned,
                224 bytes for each fine voxel, come on top.

        Returns:
            53 channels of each fine voxel: chunk after chunk of each item.

        Raises:
            ValueError: a wrong number of channels, chunks that do not divide the resolution, or latents
                beyond it.
        """
        self._require_latents(latents)
        _require_merge(merge)
        tokens = self.decoder(latents)
        return self.subdivide(tokens, prune=prune, merge=merge, chunks=chunks, memory=memory)

    @torch.no_grad()
    def subdivide(
        self,
        tokens: SparseTensor,
        *,
        prune: bool = False,
        merge: Merge = "exact",
        chunks: int | None = None,
        memory: int | None = None,
    ) -> SparseTensor:
        """The second half of `decode`, behind `decoder(latents)`: tokens of dim channels to fine voxels.

        Arguments, result and errors as of `decode`.
        """
        _require_merge(merge)
        return SparseTensor.cat([self._subdivide_item(item, prune, merge, chunks, memory) for item in tokens])

    def chunk_count(
        self, tokens: SparseTensor, *, chunks: int | None = None, memory: int | None = None
    ) -> int:
        """How many chunks along an axis `subdivide` takes of one item of tokens; arguments as of `decode`."""
        size = self.config.resolution
        count = chunks if chunks is not None else math.gcd(size, 4 if len(tokens) < _MANY else 8)
        if count < 1 or size % count:
            raise ValueError(f"`chunks` must divide the resolution of {size}, got {count}")
        if memory is None or chunks is not None:
            return count
        most = memory // (_voxel_numbers(self.config) * tokens.dtype.itemsize)
        while size % (2 * count) == 0 and size // count > _MARGIN:
            if max((int(part.rows.sum()) for part in self.chunks(tokens, count)), default=0) <= most:
                break
            count *= 2
        return count

    def chunks(self, tokens: SparseTensor, count: int) -> Iterator[Chunk]:
        """The chunks of one item of tokens, `count` along an axis, x slowest: those that have voxels."""
        places, side = tokens.coords[:, 1:], self.config.resolution // count
        spans = [
            (places >= step * side - _MARGIN) & (places < (step + 1) * side + _MARGIN)
            for step in range(count)
        ]
        for i in range(count):
            if not bool(spans[i][:, 0].any()):
                continue
            for j in range(count):
                here = spans[i][:, 0] & spans[j][:, 1]
                for k in range(count):
                    rows = here & spans[k][:, 2]
                    if not bool(rows.any()):
                        continue
                    first = torch.tensor([i, j, k], device=places.device) * side
                    yield Chunk(first, rows, first + side)

    def _subdivide_item(
        self, tokens: SparseTensor, prune: bool, merge: Merge, chunks: int | None, memory: int | None
    ) -> SparseTensor:
        coords, feats = [], []
        count = self.chunk_count(tokens, chunks=chunks, memory=memory)
        for first, rows, end in self.chunks(tokens, count):
            part = tokens.select(rows)
            fine, _ = self.decoder.subdivide(part, prune=prune)
            low, high = first * _UPSAMPLING, end * _UPSAMPLING + (_OVERLAP if merge == "official" else 0)
            places = fine.coords[:, 1:]
            kept = ((places >= low) & (places < high)).all(1)
            coords.append(fine.coords[kept])
            feats.append(fine.feats[kept])
        if not coords:
            return SparseTensor(
                tokens.coords.new_zeros(0, 4), tokens.feats.new_zeros(0, SHAPE_CHANNELS), tokens.batch_size
            )
        return SparseTensor(torch.cat(coords), torch.cat(feats), tokens.batch_size)

    def surface(self, fine: SparseTensor, *, training: bool = False) -> SparseFlexSurface:
        """The surface of what was decoded of one item, with gradients; see `nn.sparseflex_surface`."""
        return sparseflex_surface(
            fine, _UPSAMPLING * self.config.resolution, bounds=self.bounds, training=training
        )

    @torch.no_grad()
    def extract(self, fine: SparseTensor) -> Mesh:
        """The surface of one item as a mesh in [-0.5, 0.5]^3.

        Raises:
            NoSurfaceError: no quad.
            ValueError: several items.
        """
        return surface_mesh(self.surface(fine))

    def forward(
        self,
        points: Tensor | list[Tensor],
        voxels: Tensor,
        *,
        sample: bool | None = None,
        generator: Generators | None = None,
    ) -> TripoSFOutput:
        """One training pass: encode, sample the posterior, decode without chunks or pruning.

        Args:
            points, voxels: as in `encode`.
            sample: draw the latents (True) or take the mode (False); None: draw in training only.
            generator: draws the posterior's noise.
        """
        posterior = self.encode(points, voxels)
        sampled = self.training if sample is None else sample
        return TripoSFOutput(
            self.decode_whole(posterior.sample(generator) if sampled else posterior.mode()), posterior
        )

    @classmethod
    def from_official(
        cls, source: str | os.PathLike[str] | Mapping[str, Tensor], config: TripoSFConfig | None = None
    ) -> TripoSFVAE:
        """Loads a checkpoint of the official repository: see `fastshape.checkpoints.triposf.load`."""
        from fastshape.checkpoints import triposf

        return triposf.load(source, config)

    def _require_latents(self, latents: SparseTensor) -> None:
        if not isinstance(latents, SparseTensor):
            raise TypeError(f"`latents` must be a SparseTensor, got {type(latents).__name__}")
        if latents.num_channels != self.config.latent_channels:
            raise ValueError(
                f"`latents` must have {self.config.latent_channels} channels, got {latents.num_channels}"
            )


def _require_merge(merge: str) -> None:
    if merge not in ("official", "exact"):
        raise ValueError(f"`merge` must be 'official' or 'exact', got {merge!r}")


def _voxel_numbers(config: TripoSFConfig) -> int:
    """How many numbers the subdivision of one latent voxel holds at a time, without pruning."""
    fine = config.dim // 4 + 6 * (config.dim // 8) + SHAPE_CHANNELS + 27  # the last: a row of neighbors
    return _UPSAMPLING**3 * fine
