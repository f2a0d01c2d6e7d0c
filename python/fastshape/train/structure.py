"""Training of structure autoencoders: occupancy grids of prepared shapes, their batches and their loss."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from fastshape.geometry import Prepared
from fastshape.geometry.prepared import PrepareError, read_prepared
from fastshape.losses import structure_loss
from fastshape.models import SparseStructureVAE
from fastshape.models.structure import require_voxels
from fastshape.nn.posterior import Generators
from fastshape.train.config import StructureTrainConfig
from fastshape.train.data import PreparedDataset, batch_items, keyed_generator


@dataclass(frozen=True)
class ShapeVoxels:
    """One shape as the voxels that its surface touches. CPU tensor.

    Attributes:
        coords: (N, 3) integers, x, y, z of each occupied voxel.
        resolution: voxels along an axis.
    """

    coords: Tensor
    resolution: int

    def __post_init__(self) -> None:
        require_voxels(self.coords, "coords", self.resolution)
        if len(self.coords) == 0:
            raise ValueError("`coords` must have at least one voxel")

    def fingerprint(self) -> str:
        """A hash of the data, by which a resumed run knows its shapes."""
        digest = hashlib.sha256(str(self.resolution).encode())
        digest.update(self.coords.int().contiguous().numpy().data)
        return digest.hexdigest()

    @classmethod
    def from_prepared(cls, prepared: Prepared | str | os.PathLike[str], resolution: int) -> ShapeVoxels:
        """What `geometry.prepare` made with `voxels`, or a file that `fastshape prepare` wrote.

        Raises:
            PrepareError: the file is missing or damaged, or has no voxels.
        """
        if not isinstance(prepared, Prepared):
            prepared = read_prepared(prepared)
        if "voxels" not in prepared:
            raise PrepareError(
                "the shape was prepared without voxels: set `voxels` to their resolution when preparing"
            )
        return cls(prepared["voxels"], resolution)


class VoxelDataset(PreparedDataset[ShapeVoxels]):
    """The voxels of a folder that `fastshape prepare` or `fastshape pack` wrote, read when asked for.

    Args:
        path: the folder.
        cache: number of shapes to keep in memory; 0 for none.

    Raises:
        PrepareError: no such folder, one without an index, without a shape, or without voxels.
    """

    def __init__(self, path: str | os.PathLike[str], *, cache: int = 0) -> None:
        super().__init__(path, cache=cache)
        if not self.prepared.spec.voxels:
            raise PrepareError(f"{os.fspath(path)}: prepared without voxels (`--set voxels=64`)")

    def _load(self, index: int) -> ShapeVoxels:
        return ShapeVoxels.from_prepared(self.prepared[index], self.prepared.spec.voxels)


class GridBatch(NamedTuple):
    """A batch of occupancy grids.

    Attributes:
        occupancy: (B, 1, R, R, R) float32, 1 where a voxel is occupied, else 0.
    """

    occupancy: Tensor

    @property
    def size(self) -> int:
        """B."""
        return self.occupancy.shape[0]

    @property
    def device(self) -> torch.device:
        return self.occupancy.device

    def to(self, device: torch.device) -> GridBatch:
        """The batch on another device."""
        return GridBatch(self.occupancy.to(device, non_blocking=True))

    def split(self, size: int) -> list[GridBatch]:
        """Batches of at most `size` shapes."""
        return [GridBatch(part) for part in self.occupancy.split(size)]


def sample_grids(
    samples: Sequence[ShapeVoxels],
    config: StructureTrainConfig,
    step: int,
    *,
    rank: int = 0,
    world_size: int = 1,
) -> GridBatch:
    """The batch of a step: the same for the same (seed, step), whatever came before; see `sample_batch`.

    Raises:
        ValueError: the batch is not the same for every rank, or a shape has another resolution.
    """
    size = config.size
    grids = []
    for shape, key in batch_items(samples, config, step, rank, world_size):
        if shape.resolution != config.model.resolution:  # type: ignore[attr-defined]
            raise ValueError(
                f"the model takes {config.model.resolution} voxels along an axis, "  # type: ignore[attr-defined]
                f"and a shape has {shape.resolution}"
            )
        generator = keyed_generator(*key)
        coords = shape.coords.long()
        if config.augment == "axes":
            coords = turned(coords, shape.resolution, generator)
        if config.crop is not None:
            coords = cropped(coords, shape.resolution, size, generator)
        grid = torch.zeros(1, size, size, size)
        grid[0, coords[:, 0], coords[:, 1], coords[:, 2]] = 1.0
        grids.append(grid)
    return GridBatch(torch.stack(grids))


def turned(coords: Tensor, resolution: int, generator: Generator) -> Tensor:
    """The voxels (N, 3) after a random permutation of the axes and random reflections."""
    coords = coords[:, torch.randperm(3, generator=generator)]
    mirrored = torch.randint(2, (3,), generator=generator).bool()
    return torch.where(mirrored, resolution - 1 - coords, coords)


def cropped(coords: Tensor, resolution: int, size: int, generator: Generator) -> Tensor:
    """What of the voxels (N, 3) lies in a random cube of `size` voxels that holds a random one of them."""
    chosen = coords[int(torch.randint(len(coords), (1,), generator=generator))]
    offset = (torch.rand(3, generator=generator) * size).long()
    first = (chosen - offset).clamp(0, resolution - size)
    moved = coords - first
    return moved[((moved >= 0) & (moved < size)).all(1)]


def structure_losses(
    model: nn.Module, batch: GridBatch, config: StructureTrainConfig, noise: Generators
) -> dict[str, Tensor]:
    """The parts of a batch's loss: "loss", the weighted sum, then "reconstruction" and "kl".

    Args:
        model: the model, or its data parallel wrapper.
        batch: what it is shown.
        config: the weights.
        noise: a generator of the posterior's noise, or one for each shape.
    """
    logits, posterior = model(batch.occupancy, sample=config.sample_posterior, generator=noise)
    reconstruction = structure_loss(logits.float(), batch.occupancy, config.loss)
    kl = posterior.kl().mean()
    return {"loss": reconstruction + config.kl_weight * kl, "reconstruction": reconstruction, "kl": kl}


@torch.no_grad()
def validate_structure(
    model: SparseStructureVAE, shapes: Sequence[ShapeVoxels], *, device: str | torch.device = "cpu"
) -> dict[str, float]:
    """How many occupied voxels come back, of the mode of the posterior, over whole grids.

    Args:
        model: on `device`; its mode of training or evaluation is left as it is.
        shapes: not trained on.
        device: where the grids go.

    Returns:
        "validation_voxel_iou": the mean over the shapes of the intersection over union of occupied voxels;
        "validation_voxel_exact": the share of the shapes that come back without a wrong voxel.
    """
    training = model.training
    model.eval()
    scores = []
    for shape in shapes:
        occupancy = model.occupancy([shape.coords], resolution=shape.resolution).to(device)
        occupied, truth = model.decode(model.encode(occupancy).mode()) > 0, occupancy > 0
        scores.append(int((occupied & truth).sum()) / int((occupied | truth).sum()))
    model.train(training)
    return {
        "validation_voxel_iou": sum(scores) / len(scores),
        "validation_voxel_exact": sum(score == 1.0 for score in scores) / len(scores),
    }
