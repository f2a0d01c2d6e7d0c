"""Shapes prepared for training, and the batches drawn from them.

What a step sees is a function of (seed, step, place in the batch) alone: there is no loader state, and a
resumed run sees what the uninterrupted one would have seen.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple, overload

import torch
from torch import Tensor

from fastshape.geometry import Prepared, open_prepared
from fastshape.geometry.prepared import labeled_queries, read_prepared
from fastshape.models.pretrained import CheckpointError, read_safetensors, write_safetensors
from fastshape.train.config import TrainConfig


@dataclass(frozen=True)
class ShapeSamples:
    """One shape: points on its surface, and query points with their occupancy. CPU tensors.

    Attributes:
        surface: (S, 3) float32, uniform on the surface, in [-1, 1].
        volume: (V, 3) float32, uniform in the cube [-1, 1]^3.
        volume_occupancy: (V,) bool, True inside.
        near: (W, 3) float32, near the surface.
        near_occupancy: (W,) bool, True inside.
    """

    surface: Tensor
    volume: Tensor
    volume_occupancy: Tensor
    near: Tensor
    near_occupancy: Tensor

    def __post_init__(self) -> None:
        for name in ("surface", "volume", "near"):
            points = getattr(self, name)
            if points.dim() != 2 or points.shape[1] != 3:
                raise ValueError(f"`{name}` must have shape (N, 3), got {tuple(points.shape)}")
            if points.dtype != torch.float32:
                raise TypeError(f"`{name}` must be float32, got {points.dtype}")
            if not bool(torch.isfinite(points).all()):
                raise ValueError(f"`{name}` must be finite")
        for name in ("volume", "near"):
            labels = getattr(self, f"{name}_occupancy")
            if labels.dtype != torch.bool:
                raise TypeError(f"`{name}_occupancy` must be bool, got {labels.dtype}")
            if labels.shape != getattr(self, name).shape[:1]:
                raise ValueError(
                    f"`{name}_occupancy` must have shape (N,) of `{name}`, got {tuple(labels.shape)}"
                )
        if len(self.surface) == 0:
            raise ValueError("`surface` must have at least one point")

    @cached_property
    def inside(self) -> Tensor:
        """Indices of the volume points inside."""
        return self.volume_occupancy.nonzero().squeeze(1)

    @cached_property
    def outside(self) -> Tensor:
        """Indices of the volume points outside."""
        return (~self.volume_occupancy).nonzero().squeeze(1)

    def fingerprint(self) -> str:
        """A hash of the data, by which a resumed run knows its shapes."""
        digest = hashlib.sha256()
        for entry in fields(self):
            digest.update(getattr(self, entry.name).contiguous().numpy().data)
        return digest.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one safetensors file, atomically."""
        write_safetensors(Path(path), {entry.name: getattr(self, entry.name) for entry in fields(self)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ShapeSamples:
        """Reads what `save` wrote.

        Raises:
            CheckpointError: the file is missing, damaged, or holds something else.
        """
        tensors, _ = read_safetensors(Path(path))
        names = {entry.name for entry in fields(cls)}
        if tensors.keys() != names:
            raise CheckpointError(f"{path} does not hold shape samples: it has {', '.join(sorted(tensors))}")
        return cls(**tensors)

    @classmethod
    def from_prepared(cls, prepared: Prepared | str | os.PathLike[str]) -> ShapeSamples:
        """What `geometry.prepare` made, or a file that `fastshape prepare` wrote.

        Signed distances become occupancy, half precision becomes single.

        Raises:
            PrepareError: the file is missing or damaged.
            ValueError: there are no surface points.
        """
        if not isinstance(prepared, Prepared):
            prepared = read_prepared(prepared)
        surface = prepared.get("surface_points", torch.zeros(0, 3)).float()
        return cls(surface, *labeled_queries(prepared, "volume"), *labeled_queries(prepared, "near"))


class ShapeDataset(Sequence[ShapeSamples]):
    """The shapes of a folder that `fastshape prepare` or `fastshape pack` wrote, read when asked for.

    Args:
        path: the folder.
        cache: number of shapes to keep in memory; 0 for none.

    Raises:
        PrepareError: no such folder, one without an index, or without a shape.
    """

    def __init__(self, path: str | os.PathLike[str], *, cache: int = 0) -> None:
        self.prepared = open_prepared(path)
        self._read = lru_cache(cache)(self._load) if cache else self._load

    def _load(self, index: int) -> ShapeSamples:
        return ShapeSamples.from_prepared(self.prepared[index])

    def __len__(self) -> int:
        return len(self.prepared)

    @overload
    def __getitem__(self, index: int) -> ShapeSamples: ...
    @overload
    def __getitem__(self, index: slice) -> list[ShapeSamples]: ...
    def __getitem__(self, index: int | slice) -> ShapeSamples | list[ShapeSamples]:
        if isinstance(index, slice):
            return [self._read(place) for place in range(*index.indices(len(self)))]
        return self._read(index)

    def fingerprint(self) -> str:
        """A hash of all the data; nothing is read for it."""
        return self.prepared.fingerprint


class Batch(NamedTuple):
    """Surface points (B, N, 3); queries (B, Q, 3), volume before near; occupancy (B, Q) float32."""

    surface: Tensor
    queries: Tensor
    occupancy: Tensor


def sample_batch(
    samples: Sequence[ShapeSamples], config: TrainConfig, step: int, *, rank: int = 0, world_size: int = 1
) -> Batch:
    """The batch of a step: the same for the same (seed, step, rank, world size), whatever came before.

    The shapes go round in an order shuffled anew for each pass over them. Ranks take consecutive parts of one
    large batch: what a step sees of all ranks together depends on its size alone.
    """
    items = []
    size = config.batch_size * world_size
    for item in range(rank * config.batch_size, (rank + 1) * config.batch_size):
        epoch, place = divmod(step * size + item, len(samples))
        generator = keyed_generator(config.seed, "item", step, item)
        items.append(
            _sample_item(samples[int(_order(len(samples), config.seed, epoch)[place])], config, generator)
        )
    return Batch(*(torch.stack(parts) for parts in zip(*items, strict=True)))


@lru_cache(4)
def _order(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=keyed_generator(seed, "order", epoch))


def keyed_generator(seed: int, *key: int | str) -> torch.Generator:
    """A CPU generator whose stream is a function of the seed and the key."""
    digest = hashlib.sha256(repr((seed, *key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def _sample_item(
    shape: ShapeSamples, config: TrainConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    count = config.model.num_inputs
    if len(shape.surface) >= count:
        chosen = torch.randperm(len(shape.surface), generator=generator)[:count]
    else:
        chosen = torch.randint(len(shape.surface), (count,), generator=generator)
    surface = shape.surface[chosen]
    volume = _volume_indices(shape, config, generator)
    near = _draw(len(shape.near), config.near_queries, generator)
    queries = torch.cat([shape.volume[volume], shape.near[near]])
    occupancy = torch.cat([shape.volume_occupancy[volume], shape.near_occupancy[near]])
    if config.augment:
        surface, queries = _augment(surface, queries, generator)
    return surface, queries, occupancy.float()


def _volume_indices(shape: ShapeSamples, config: TrainConfig, generator: torch.Generator) -> Tensor:
    if not config.balanced or len(shape.inside) == 0 or len(shape.outside) == 0:
        return _draw(len(shape.volume), config.volume_queries, generator)
    half = config.volume_queries // 2
    inside = _draw(len(shape.inside), half, generator)
    outside = _draw(len(shape.outside), config.volume_queries - half, generator)
    return torch.cat([shape.inside[inside], shape.outside[outside]])


def _draw(size: int, count: int, generator: torch.Generator) -> Tensor:
    if count and not size:
        raise ValueError("a shape has no query points of a kind that the configuration draws")
    return torch.randint(max(size, 1), (count,), generator=generator)


def _augment(surface: Tensor, queries: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    scale = 0.75 + 0.5 * torch.rand(1, 3, generator=generator)
    scale = scale * (0.999999 / (surface * scale).abs().max().clamp_min(1e-6))
    jitter = 0.005 * torch.randn(surface.shape, generator=generator)
    return (surface * scale + jitter).clamp(-1.0, 1.0), queries * scale
