"""Shapes prepared for training, and the batches drawn from them.

What a step sees is a function of (seed, step, place in the batch) alone: there is no loader state, and a
resumed run, on any number of processes, sees what the uninterrupted one would have seen.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeVar, overload

import torch
from torch import Tensor

from fastshape.geometry import Prepared, draw_balanced, open_prepared
from fastshape.geometry.prepared import read_prepared
from fastshape.runtime.files import CheckpointError, read_safetensors, write_safetensors
from fastshape.train.augment import augment
from fastshape.train.config import QUERY_KINDS, RunConfig, TrainConfig

_NONE = torch.zeros(0, 3)
_HINT = "prepare the meshes with the model's own preset, or with a specification that has them"


class SamplesError(ValueError):
    """Prepared shapes that lack what a model is trained on."""


ItemT = TypeVar("ItemT")


@dataclass(frozen=True)
class ShapeSamples:
    """One shape: points on its surface, and query points with their labels. CPU tensors.

    Labels are bool, True inside, or float32 signed distances, negative inside; models of a distance need the
    latter.

    Attributes:
        surface: (S, 3) float32, uniform on the surface, in [-1, 1].
        volume: (V, 3) float32, uniform in the cube [-1, 1]^3.
        volume_labels: (V,).
        near: (W, 3) float32, near the surface.
        near_labels: (W,).
        normals: (S, 3) unit normals of `surface`; or none, (0, 3).
        sharp, sharp_normals: (E, 3) points on sharp edges and their normals; or none.
        sharp_near, sharp_near_labels: (X, 3) queries near sharp edges and their labels; or none.
    """

    surface: Tensor
    volume: Tensor
    volume_labels: Tensor
    near: Tensor
    near_labels: Tensor
    normals: Tensor = _NONE
    sharp: Tensor = _NONE
    sharp_normals: Tensor = _NONE
    sharp_near: Tensor = _NONE
    sharp_near_labels: Tensor = _NONE[:, 0]

    def __post_init__(self) -> None:
        for entry in fields(self):
            if not entry.name.endswith("_labels"):
                self._check_points(entry.name)
        for kind in QUERY_KINDS:
            labels = getattr(self, f"{kind}_labels")
            if labels.dtype not in (torch.bool, torch.float32):
                raise TypeError(f"`{kind}_labels` must be bool or float32, got {labels.dtype}")
            if labels.shape != getattr(self, kind).shape[:1]:
                raise ValueError(
                    f"`{kind}_labels` must have shape (N,) of `{kind}`, got {tuple(labels.shape)}"
                )
        for points, normals in (("surface", "normals"), ("sharp", "sharp_normals")):
            count = len(getattr(self, normals))
            if count not in (0, len(getattr(self, points))):
                raise ValueError(
                    f"`{normals}` must have a row for each of `{points}`, "
                    f"got {count} and {len(getattr(self, points))}"
                )
        if len(self.surface) == 0:
            raise ValueError("`surface` must have at least one point")

    def _check_points(self, name: str) -> None:
        points = getattr(self, name)
        if points.dim() != 2 or points.shape[1] != 3:
            raise ValueError(f"`{name}` must have shape (N, 3), got {tuple(points.shape)}")
        if points.dtype != torch.float32:
            raise TypeError(f"`{name}` must be float32, got {points.dtype}")
        if not bool(torch.isfinite(points).all()):
            raise ValueError(f"`{name}` must be finite")

    def inside(self, kind: str) -> Tensor:
        """Which queries of a kind ("volume", "near", "sharp_near") are inside, bool."""
        labels: Tensor = getattr(self, f"{kind}_labels")
        # The sign bit: what is inside by less than its precision holds, or lies on the surface, is -0.
        return labels if labels.dtype == torch.bool else labels.signbit()

    def cloud(self, name: str, channels: int) -> Tensor:
        """The points of an encoder's input, "surface" or "sharp": (N, 3), or (N, 6) with their normals.

        Raises:
            ValueError: the shape has no such points, or no normals.
        """
        points: Tensor = getattr(self, name)
        normals = self.normals if name == "surface" else self.sharp_normals
        if len(points) == 0:
            raise SamplesError(
                f"the model takes points on sharp edges, and the shape has no `{name}`: {_HINT}"
            )
        if channels == 3:
            return points
        if len(normals) == 0:
            raise SamplesError(
                f"the model takes normals, and the shape has none of its `{name}` points: {_HINT}"
            )
        return torch.cat([points, normals], 1)

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
        """What `geometry.prepare` made, or a file that `fastshape prepare` wrote; all in single precision.

        Raises:
            PrepareError: the file is missing or damaged.
            ValueError: there are no surface points.
        """
        if not isinstance(prepared, Prepared):
            prepared = read_prepared(prepared)
        values = {
            field: prepared[name].float()
            for field, name in (
                ("normals", "surface_normals"),
                ("sharp", "sharp_points"),
                ("sharp_normals", "sharp_normals"),
            )
            if name in prepared
        }
        values["surface"] = prepared.get("surface_points", _NONE).float()
        for kind in QUERY_KINDS:
            values[kind] = prepared.get(f"{kind}_points", _NONE).float()
            sdf, occupancy = prepared.get(f"{kind}_sdf"), prepared.get(f"{kind}_occupancy")
            if occupancy is not None:
                values[f"{kind}_labels"] = occupancy
            else:
                values[f"{kind}_labels"] = (_NONE[:, 0] if sdf is None else sdf).float()
        return cls(**values)


class PreparedDataset(Sequence[ItemT]):
    """The shapes of a prepared folder, read when asked for; a subclass says what of them.

    Args:
        path: a folder that `fastshape prepare` or `fastshape pack` wrote.
        cache: number of shapes to keep in memory; 0 for none.

    Raises:
        PrepareError: no such folder, one without an index, or without a shape.
    """

    def __init__(self, path: str | os.PathLike[str], *, cache: int = 0) -> None:
        self.prepared = open_prepared(path)
        self._read = lru_cache(cache)(self._load) if cache else self._load

    def _load(self, index: int) -> ItemT:
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.prepared)

    @overload
    def __getitem__(self, index: int) -> ItemT: ...
    @overload
    def __getitem__(self, index: slice) -> list[ItemT]: ...
    def __getitem__(self, index: int | slice) -> ItemT | list[ItemT]:
        if isinstance(index, slice):
            return [self._read(place) for place in range(*index.indices(len(self)))]
        return self._read(index)

    def fingerprint(self) -> str:
        """A hash of all the data; nothing is read for it."""
        return self.prepared.fingerprint


class ShapeDataset(PreparedDataset[ShapeSamples]):
    """The points and labels of a prepared folder; arguments and errors as of `PreparedDataset`."""

    def _load(self, index: int) -> ShapeSamples:
        return ShapeSamples.from_prepared(self.prepared[index])


class Batch(NamedTuple):
    """A training batch.

    Attributes:
        inputs: the encoder's point clouds in the model's order, (B, N, 3 or 6) each.
        queries: (B, Q, 3), the kinds one after the other.
        labels: (B, Q) float32: 1 inside and 0 outside, or signed distances for a model of a distance.
        counts: queries of each kind.
    """

    inputs: tuple[Tensor, ...]
    queries: Tensor
    labels: Tensor
    counts: dict[str, int]

    @property
    def size(self) -> int:
        """B."""
        return self.queries.shape[0]

    @property
    def device(self) -> torch.device:
        return self.queries.device

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        move = lambda tensor: tensor.to(device, non_blocking=True)  # noqa: E731
        return Batch(tuple(map(move, self.inputs)), move(self.queries), move(self.labels), self.counts)

    def split(self, size: int) -> list[Batch]:
        """Batches of at most `size` shapes."""
        parts = zip(*(t.split(size) for t in (*self.inputs, self.queries, self.labels)), strict=True)
        return [Batch(tuple(p[:-2]), p[-2], p[-1], self.counts) for p in parts]


def sample_batch(
    samples: Sequence[ShapeSamples], config: TrainConfig, step: int, *, rank: int = 0, world_size: int = 1
) -> Batch:
    """The batch of a step: the same for the same (seed, step), whatever came before.

    The shapes go round in an order shuffled anew for each pass over them. Ranks take consecutive parts of the
    one batch of `config.batch_size` shapes.

    Raises:
        ValueError: the batch is not the same for every rank, or a shape lacks what the configuration draws.
    """
    items = [
        _sample_item(shape, config, keyed_generator(*key))
        for shape, key in batch_items(samples, config, step, rank, world_size)
    ]
    clouds, queries, labels = zip(*items, strict=True)
    inputs = tuple(torch.stack(parts) for parts in zip(*clouds, strict=True))
    return Batch(inputs, torch.stack(queries), torch.stack(labels), config.queries)


def batch_items(
    samples: Sequence[ItemT], config: RunConfig, step: int, rank: int, world_size: int
) -> Iterator[tuple[ItemT, tuple[int | str, ...]]]:
    """The shapes of a step and rank, each with the key of its generator.

    Raises:
        ValueError: the batch is not the same for every rank.
    """
    places = batch_places(len(samples), config, step, rank, world_size)
    for item, place in enumerate(places, rank * len(places)):
        yield samples[place], (config.seed, "item", step, item)


def batch_places(count: int, config: RunConfig, step: int, rank: int, world_size: int) -> list[int]:
    """Which of `count` shapes a rank takes in a step."""
    if config.batch_size % world_size:
        raise ValueError(
            f"`batch_size` must be a multiple of the {world_size} processes, got {config.batch_size}"
        )
    share = config.batch_size // world_size
    first = step * config.batch_size + rank * share
    turns = (divmod(item, count) for item in range(first, first + share))
    return [int(_order(count, config.seed, epoch)[place]) for epoch, place in turns]


def num_tokens(config: TrainConfig, step: int) -> int | None:
    """Tokens (of a hierarchy: of its finest level) in a step, the same on every rank; None: the model's own.

    Reference: Dora (arXiv 2412.17808): a table with probabilities, and its advice to begin with few tokens.
    """
    if not config.token_counts:
        return None
    count = len(config.token_counts)
    opening = config.token_warmup * config.steps
    if step < opening:
        count = min(count, 1 + int(step / opening * count))
    weights = torch.tensor(config.token_probabilities[:count] or (1.0,) * count, dtype=torch.float64)
    drawn = torch.multinomial(weights, 1, generator=keyed_generator(config.seed, "tokens", step))
    return config.token_counts[int(drawn)]


@lru_cache(4)
def _order(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=keyed_generator(seed, "order", epoch))


def keyed_generator(seed: int | str, *key: int | str) -> torch.Generator:
    """A CPU generator whose stream is a function of the seed and the key."""
    digest = hashlib.sha256(repr((seed, *key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def _sample_item(
    shape: ShapeSamples, config: TrainConfig, generator: torch.Generator
) -> tuple[list[Tensor], Tensor, Tensor]:
    model = config.model_class
    channels = 3 + getattr(config.model, "point_features", 0)
    clouds = []
    for name in model.inputs:
        cloud = shape.cloud(name, channels)
        clouds.append(cloud[_choose(len(cloud), config.model.num_inputs, generator)])  # type: ignore[attr-defined]
    points, labels = [], []
    for kind, count in config.queries.items():
        kind_points, kind_labels = _draw_queries(shape, config, kind, count, generator)
        points.append(kind_points)
        labels.append(kind_labels)
    clouds, queries, factor = augment(config.augment, clouds, torch.cat(points), generator)
    answers = torch.cat(labels)
    return clouds, queries, answers if config.output == "occupancy" or factor is None else answers * factor


def _choose(size: int, count: int, generator: torch.Generator) -> Tensor:
    """Rows without repetition, where there are enough."""
    if size >= count:
        return torch.randperm(size, generator=generator)[:count]
    return torch.randint(size, (count,), generator=generator)


def _draw_queries(
    shape: ShapeSamples, config: TrainConfig, kind: str, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Points (count, 3) and labels (count,) float32 of a kind."""
    points: Tensor = getattr(shape, kind)
    labels: Tensor = getattr(shape, f"{kind}_labels")
    if count and not len(points):
        raise SamplesError(f"a shape has no `{kind}` points, and the configuration draws {count}: {_HINT}")
    if config.output == "occupancy":
        labels = shape.inside(kind)
    elif count and labels.dtype == torch.bool:
        raise SamplesError(
            f"the model's {config.output!r} needs signed distances, and a shape's `{kind}_labels` are bool: "
            f"{_HINT}"
        )
    if kind == "volume" and config.balanced:
        rows = draw_balanced(shape.inside("volume"), shape.inside("near"), count, generator=generator)
        points = torch.cat([points, shape.near])
        labels = torch.cat(
            [labels, shape.inside("near") if labels.dtype == torch.bool else shape.near_labels]
        )
    else:
        rows = torch.randint(max(len(points), 1), (count,), generator=generator)
    return points[rows], labels[rows].float()
